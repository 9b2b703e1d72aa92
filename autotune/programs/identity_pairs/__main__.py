"""Draws pairs of models and compares their keys."""

from autotune import standard_streams
from autotune.programs.identity_pairs.main import main

if __name__ == "__main__":
    standard_streams.run(main)
