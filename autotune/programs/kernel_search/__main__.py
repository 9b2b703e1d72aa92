"""Replays the search over tiles."""

from autotune import standard_streams
from autotune.programs.kernel_search.main import main

if __name__ == "__main__":
    standard_streams.run(main)
