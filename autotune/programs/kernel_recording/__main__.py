"""Records a space of kernels."""

from autotune import standard_streams
from autotune.programs.kernel_recording.main import main

if __name__ == "__main__":
    standard_streams.run(main)
