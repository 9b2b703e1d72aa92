"""Compares kernels with the libraries' calls."""

from autotune import standard_streams
from autotune.programs.kernel_comparison.main import main

if __name__ == "__main__":
    standard_streams.run(main)
