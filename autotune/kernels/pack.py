"""Packs: files of compiled kernels that another machine uses without a compiler.

A pack is a tar archive compressed by xz. Its first member ``manifest.json`` lists the kernels with the digests of
their files; the other members are these files. The digest of the manifest names the pack.
"""

import hashlib
import io
import json
import lzma
import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from autotune.errors import RequestError, WorkError
from autotune.kernel import PacksKernels, StoredKernel
from autotune.records.canonical import canonical, digest
from autotune.scratch import ScratchFolder

SCHEMA = 1
MANIFEST = "manifest.json"
MOST_BYTES = 2**31
"""A pack of 700 kernels has 80 MB; a file that unpacks to more than this is none."""

FILE = re.compile(r"[a-z0-9_]+/[A-Za-z0-9_.-]+")
IMPORTED = "packs"
"""The folder of the cache with the manifests of the packs that were imported."""

SHOWN = 16
"""The characters of a digest that are shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackManifest:
    """The content of a pack: kernels of one backend, and the digests of their files by name."""

    backend: str
    abi: int
    kernels: tuple[StoredKernel, ...]
    files: Mapping[str, str]

    @property
    def digest(self) -> str:
        """SHA-256 of its canonical JSON."""
        return digest(self.as_dict())

    @property
    def architectures(self) -> tuple[str, ...]:
        """The architectures of its kernels."""
        return tuple(sorted({kernel.architecture for kernel in self.kernels}))

    def counts(self) -> Mapping[tuple[str, str, str], int]:
        """Return the number of kernels by architecture, kind and group."""
        return Counter((kernel.architecture, kernel.kind, kernel.group) for kernel in self.kernels)

    def as_dict(self) -> dict[str, object]:
        """Return plain data for JSON."""
        kernels = [
            {**asdict(kernel), "cuda": list(kernel.cuda), "files": list(kernel.files)} for kernel in self.kernels
        ]
        return {
            "schema": SCHEMA, "backend": self.backend, "abi": self.abi, "kernels": kernels, "files": dict(self.files)
        }  # fmt: skip

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "PackManifest":
        """Read the output of :meth:`as_dict`; raises ValueError, KeyError or TypeError for anything else."""
        if data["schema"] != SCHEMA:
            raise ValueError(f"schema {data['schema']!r} and not {SCHEMA}")
        kernels = tuple(
            StoredKernel(**{**kernel, "cuda": tuple(kernel["cuda"]), "files": tuple(kernel["files"])})
            for kernel in data["kernels"]
        )
        files = {str(name): str(value) for name, value in data["files"].items()}
        listed = sorted(name for kernel in kernels for name in kernel.files)
        strange = [name for name in listed if not FILE.fullmatch(name)]
        if listed != sorted(files) or strange:
            raise ValueError(f"its files are not those of its kernels: {(strange or listed)[:3]}")
        return cls(backend=str(data["backend"]), abi=int(data["abi"]), kernels=kernels, files=files)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportedPack:
    """The result of an import: kernels that were added, and those that the cache had."""

    manifest: PackManifest
    added: int
    present: int


def export_pack(
    provider: PacksKernels, backend: str, folder: Path, path: Path, *, architectures: Sequence[str] = ()
) -> PackManifest:
    """Write the kernels of a cache, of some architectures or all, that this release launches; the file appears whole.

    Raises RequestError if there is none, WorkError if the file cannot be written.
    """
    kernels = [
        kernel
        for kernel in provider.stored(folder)
        if kernel.abi == provider.abi and (not architectures or kernel.architecture in architectures)
    ]
    if not kernels:
        raise RequestError(
            f"a pack of the kernels in {folder}", found=f"none{_of(architectures)} that this release launches",
            expected="compiled kernels", run="autotune kernels build --arch ARCH",
        )  # fmt: skip
    kernels.sort(key=lambda kernel: (kernel.architecture, kernel.kind, kernel.group, kernel.name))
    for kernel in kernels:
        provider.check_stored(folder, kernel)
    contents = {name: (folder / name).read_bytes() for kernel in kernels for name in kernel.files}
    files = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    manifest = PackManifest(backend=backend, abi=provider.abi, kernels=tuple(kernels), files=files)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with lzma.open(temporary, "wb", preset=6) as stream, tarfile.open(fileobj=stream, mode="w|") as archive:
            _add(archive, MANIFEST, canonical(manifest.as_dict()).encode())
            for name, content in contents.items():
                _add(archive, name, content)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise WorkError(
            f"writing the pack {path}", found=str(error), expected="a new file in a folder that can be written"
        ) from error
    return manifest


def read_manifest(path: Path) -> PackManifest:
    """Read what a pack holds; raises RequestError if the file is no pack or is damaged."""
    with _opened(path) as archive:
        return _manifest(archive)


def import_pack(provider: PacksKernels, backend: str, path: Path, folder: Path) -> ImportedPack:
    """Add the kernels of a pack to a cache; a kernel appears whole, and one that is there stays.

    Raises RequestError, and adds nothing, if the pack is damaged, of another backend, or of another ABI.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with ScratchFolder("pack", folder) as scratch:
        manifest = _unpack(provider, backend, path, scratch)
        added = sum(_place(kernel, scratch, folder) for kernel in manifest.kernels)
        _note(manifest, folder, scratch)
    return ImportedPack(manifest=manifest, added=added, present=len(manifest.kernels) - added)


def imported_packs(folder: Path, architecture: str | None = None) -> tuple[str, ...]:
    """Return the digests of the packs that were imported into a cache and have kernels of an architecture."""
    digests = []
    for path in sorted((folder / IMPORTED).glob("*.json")):
        try:
            manifest = PackManifest.from_dict(json.loads(path.read_text()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
        if architecture is None or architecture in manifest.architectures:
            digests.append(manifest.digest)
    return tuple(digests)


def _unpack(provider: PacksKernels, backend: str, path: Path, scratch: Path) -> PackManifest:
    """Write the files of a pack into a folder, and check each."""
    with _opened(path) as archive:
        manifest = _manifest(archive)
        _check_for_here(provider, backend, manifest, path)
        unpacked, unpacked_bytes = set(), 0
        while (member := archive.next()) is not None:
            expected = manifest.files.get(member.name)
            stream = archive.extractfile(member) if member.isfile() else None
            if expected is None or stream is None:
                raise ValueError(f"it has {member.name!r}, which its manifest does not list")
            unpacked_bytes += member.size
            _check_size(unpacked_bytes)
            content = stream.read()
            if hashlib.sha256(content).hexdigest() != expected:
                raise ValueError(f"{member.name} is damaged")
            target = scratch / member.name
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(content)
            unpacked.add(member.name)
        if missing := sorted(set(manifest.files) - unpacked):
            raise ValueError(f"{missing[0]} is missing")
        for kernel in manifest.kernels:
            provider.check_stored(scratch, kernel)
    return manifest


def _check_for_here(provider: PacksKernels, backend: str, manifest: PackManifest, path: Path) -> None:
    if manifest.backend != backend or manifest.abi != provider.abi:
        raise RequestError(
            f"importing the pack {path}", found=f"kernels of {manifest.backend}, ABI {manifest.abi}",
            expected=f"kernels of {backend}, ABI {provider.abi}, which this release launches",
            run="a pack of this release: autotune kernels build and autotune kernels export",
        )  # fmt: skip


def _place(kernel: StoredKernel, source: Path, folder: Path) -> bool:
    """Move a kernel's files into the cache, in their order, unless they are there."""
    if all((folder / name).is_file() for name in kernel.files):
        return False
    for name in kernel.files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(source / name, folder / name)
    return True


def _note(manifest: PackManifest, folder: Path, scratch: Path) -> None:
    noted = scratch / MANIFEST
    noted.write_text(canonical(manifest.as_dict()))
    (folder / IMPORTED).mkdir(exist_ok=True)
    os.replace(noted, folder / IMPORTED / f"{manifest.digest}.json")


def _manifest(archive: tarfile.TarFile) -> PackManifest:
    first = archive.next()
    stream = archive.extractfile(first) if first is not None and first.name == MANIFEST else None
    if first is None or stream is None:
        raise ValueError(f"it does not begin with {MANIFEST}")
    _check_size(first.size)
    return PackManifest.from_dict(json.loads(stream.read()))


def _check_size(unpacked_bytes: int) -> None:
    if unpacked_bytes > MOST_BYTES:
        raise ValueError(f"it unpacks to more than {MOST_BYTES:,} bytes")


@contextmanager
def _opened(path: Path) -> Iterator[tarfile.TarFile]:
    """Open a pack; whatever is wrong with it is a RequestError that names it."""
    try:
        with lzma.open(path, "rb") as stream, tarfile.open(fileobj=stream, mode="r|") as archive:
            yield archive
    except (OSError, EOFError, lzma.LZMAError, tarfile.TarError, ValueError, KeyError, TypeError, WorkError) as error:
        raise RequestError(
            f"reading the pack {path}", found=str(error) or type(error).__name__,
            expected="a file that autotune kernels export wrote", run="the same command with a fresh copy of the file",
        ) from error  # fmt: skip


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)  # no time, owner or mode of this machine: the same kernels are the same bytes
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def _of(architectures: Sequence[str]) -> str:
    return f" of {', '.join(architectures)}" if architectures else ""
