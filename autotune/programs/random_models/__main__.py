"""Compares loaded plans with their models."""

from autotune import standard_streams
from autotune.programs.random_models.main import main

if __name__ == "__main__":
    standard_streams.run(main)
