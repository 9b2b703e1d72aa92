"""The list of an artifact's files, whose SHA-256 names the artifact."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeGuard

_DIGEST = re.compile(r"[0-9a-f]{64}")


def is_digest(text: object) -> TypeGuard[str]:
    """Return whether a value is a SHA-256 in lower-case hexadecimal."""
    return isinstance(text, str) and _DIGEST.fullmatch(text) is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactFile:
    """One file of an artifact: its name relative to the artifact (``/`` between parts), size and SHA-256."""

    name: str
    size_bytes: int
    sha256: str

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not 0 < len(self.name.encode(errors="replace")) <= 1024:
            raise ValueError(f"the name of an artifact's file has 1 to 1024 bytes, found {self.name!r}")
        if any(part in ("", ".", "..") or len(part) > 255 for part in self.name.split("/")):
            raise ValueError(f"{self.name!r} is not a name below the artifact's folder")
        if "\\" in self.name or not self.name.isprintable():
            raise ValueError(f"{self.name!r} holds a backslash or a character that does not print")
        if type(self.size_bytes) is not int or self.size_bytes < 0:
            raise ValueError(f"{self.name}: a size is a number of bytes, found {self.size_bytes!r}")
        if not is_digest(self.sha256):
            raise ValueError(f"{self.name}: expected a SHA-256 in hexadecimal, found {self.sha256!r}")

    def as_dict(self) -> dict[str, object]:
        """Plain data for JSON."""
        return {"name": self.name, "size_bytes": self.size_bytes, "sha256": self.sha256}


def manifest_json(files: Sequence[ArtifactFile]) -> str:
    """Return the canonical JSON of an artifact's files, sorted by name; raises ``ValueError`` if two names collide."""
    names = {file.name for file in files}
    folders = {"/".join(name.split("/")[:depth]) for name in names for depth in range(1, name.count("/") + 1)}
    if not files or len(names) != len(files) or names & folders:
        raise ValueError("an artifact has at least one file, and no two of the same name")
    return json.dumps([f.as_dict() for f in sorted(files, key=lambda f: f.name)], sort_keys=True, separators=(",", ":"))


def manifest_files(text: str | bytes) -> tuple[ArtifactFile, ...]:
    """Return the files of a text that :func:`manifest_json` wrote; raises ``ValueError`` for any other text."""
    try:
        return tuple(ArtifactFile(**entry) for entry in json.loads(text))
    except (TypeError, RecursionError) as error:
        raise ValueError(f"not the manifest of an artifact: {error}") from error


def digest_of(files: Sequence[ArtifactFile]) -> str:
    """Return the digest that names an artifact: the SHA-256 of :func:`manifest_json`."""
    return hashlib.sha256(manifest_json(files).encode()).hexdigest()
