"""Estimates the share of models that is left to torch."""

from autotune import standard_streams
from autotune.programs.coverage.main import main

if __name__ == "__main__":
    standard_streams.run(main)
