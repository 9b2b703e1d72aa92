"""Replays the search of recorded studies in simulated time."""

from autotune import standard_streams
from autotune.programs.study_replay.main import main

if __name__ == "__main__":
    standard_streams.run(main)
