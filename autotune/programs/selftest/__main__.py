"""Runs the self-test of the timing layer."""

from autotune import standard_streams
from autotune.programs.selftest.main import main

if __name__ == "__main__":
    standard_streams.run(main)
