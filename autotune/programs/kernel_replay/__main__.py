"""Replays the tuning of kernels in simulated time."""

from autotune import standard_streams
from autotune.programs.kernel_replay.main import main

if __name__ == "__main__":
    standard_streams.run(main)
