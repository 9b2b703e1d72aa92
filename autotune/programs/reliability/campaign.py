"""What a reliability campaign works with: Campaign."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from autotune.records.device import Device
from autotune.runtime.discovery import cpu


@dataclass(frozen=True, slots=True, kw_only=True)
class Campaign:
    """One run of the promises: where it may write, the databases it is run on, and how thoroughly.

    ``databases`` are URLs of empty databases by the name of their kind (``sqlite``, ``postgresql``); ``quick`` asks for
    a short form; ``seed`` fixes every random choice; ``device`` is where candidates misbehave.
    """

    folder: Path
    databases: Mapping[str, str]
    quick: bool = False
    seed: int = 0
    device: Device = field(default_factory=cpu)

    def pick(self, whole: int, quick: int) -> int:
        """Choose how many of something to do."""
        return quick if self.quick else whole
