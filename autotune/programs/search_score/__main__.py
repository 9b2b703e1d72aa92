"""Replays searches over whole models on recorded studies."""

from autotune import standard_streams
from autotune.programs.search_score.main import main

if __name__ == "__main__":
    standard_streams.run(main)
