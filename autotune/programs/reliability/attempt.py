"""One attempt to make autotune accept something that it must refuse: Attempt, Case."""

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """A folder of its own, a file outside of it that must stay as it is, and a file that exists if a payload ran."""

    folder: Path
    outside: Path
    tripwire: Path

    def bomb(self) -> object:
        """Return an object that writes the tripwire when it is unpickled."""
        return Bomb(self.tripwire)

    def pickled(self) -> bytes:
        """Return the pickle of a bomb."""
        return pickle.dumps(self.bomb())


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, tripwire: Path) -> None:
        self._tripwire = tripwire

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.write_text, (self._tripwire, "ran"))


@dataclass(frozen=True, slots=True)
class Case:
    """A case of the security page, and code that presents it; the code returns only if the case was accepted."""

    name: str
    present: Callable[[Attempt], object]
