"""What a reliability campaign works with: Campaign."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from autotune.measure.selftests.outcome import Outcome

__all__ = ["Campaign", "Outcome"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Campaign:
    """One run of the promises: where it may write, the databases it is run on, and how thoroughly.

    ``databases`` are URLs of empty databases by the name of their kind (``sqlite``, ``postgresql``); ``quick`` asks for
    a short form; ``seed`` fixes every random choice.
    """

    folder: Path
    databases: Mapping[str, str]
    quick: bool = False
    seed: int = 0

    def pick(self, whole: int, quick: int) -> int:
        """Choose how many of something to do."""
        return quick if self.quick else whole
