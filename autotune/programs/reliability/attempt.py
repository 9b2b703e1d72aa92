"""One attempt to make autotune take in what it must refuse: Attempt, Case."""

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """A folder of its own, a file outside that is nobody's business, and where it shows that a payload ran."""

    folder: Path
    outside: Path
    tripwire: Path

    def bomb(self) -> object:
        """Give an object that writes the tripwire when it is unpickled."""
        return Bomb(self.tripwire)

    def pickled(self) -> bytes:
        """Give the pickle of a bomb."""
        return pickle.dumps(self.bomb())


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, tripwire: Path) -> None:
        self._tripwire = tripwire

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.write_text, (self._tripwire, "ran"))


@dataclass(frozen=True, slots=True)
class Case:
    """A case of the security page, and code that presents it; the code returns only where it was taken in."""

    name: str
    present: Callable[[Attempt], object]
