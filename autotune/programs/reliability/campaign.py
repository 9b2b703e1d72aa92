"""The settings of a reliability campaign: Campaign."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from autotune.records.device import Device
from autotune.runtime.discovery import cpu


@dataclass(frozen=True, slots=True, kw_only=True)
class Campaign:
    """One run of the promises: a folder to write to, and the databases to use.

    ``databases`` are URLs of empty databases by the name of their kind (``sqlite``, ``postgresql``); ``quick`` asks for
    a short form; ``seed`` fixes every random choice; ``device`` is the place of candidates that misbehave.
    """

    folder: Path
    databases: Mapping[str, str]
    quick: bool = False
    seed: int = 0
    device: Device = field(default_factory=cpu)

    def pick(self, whole: int, quick: int) -> int:
        """Return the number for the whole form or for the quick one."""
        return quick if self.quick else whole
