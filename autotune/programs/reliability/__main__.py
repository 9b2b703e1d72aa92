"""Runs the reliability campaign."""

from autotune import standard_streams
from autotune.programs.reliability.main import main

if __name__ == "__main__":
    standard_streams.run(main)
