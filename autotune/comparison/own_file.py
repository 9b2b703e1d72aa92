"""A TOML file of figures that the user owns, and the refusal of an entry that cannot be used: OwnFile."""

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from autotune.errors import RequestError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnFile:
    """A file by its path.

    ``what`` it holds, such as ``the prices``, begins each refusal; ``run`` is the command that helps after one.
    """

    path: Path
    what: str
    example: str
    run: str = ""

    def read(self, keys: Sequence[str]) -> Mapping[str, object]:
        """Return the content, whose top level has no other keys than these; RequestError if it is no TOML file."""
        try:
            data = tomllib.loads(self.path.read_text(encoding="utf-8"))
        except OSError as error:
            raise self.refused(error.strerror or str(error), f"a TOML file: {self.example}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise self.refused(str(error), f"a TOML file: {self.example}") from error
        self.refuse_others("the file", data, keys)
        return data

    def devices(self, data: Mapping[str, object]) -> dict[str, Mapping[str, object]]:
        """Return the table of each device by its name; RequestError if there is none."""
        devices = data.get("devices")
        if not isinstance(devices, dict) or not devices:
            raise self.refused("no devices", self.example)
        for name, entry in devices.items():
            if not isinstance(entry, dict):
                raise self.refused(f"devices.{name} = {entry!r}", self.example)
        return devices

    def refuse_others(self, where: str, entry: Mapping[str, object], keys: Sequence[str]) -> None:
        """Raise RequestError for a key that is not among those that are understood."""
        others = sorted(set(entry) - set(keys))
        if others:
            raise self.refused(f"{', '.join(others)} in {where}", f"only {', '.join(keys)}")

    def positive(self, key: str, value: object) -> float:
        """Return a number above 0; RequestError for another value."""
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
            raise self.refused(f"{key} = {value!r}", "a number above 0")
        return float(value)

    def refused(self, found: str, expected: str) -> RequestError:
        """Return the error of an entry that cannot be used."""
        asked = f"{self.what} in {self.path} cannot be used"
        return RequestError(asked, found=found, expected=expected, run=self.run)
