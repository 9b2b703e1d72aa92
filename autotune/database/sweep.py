"""Files of an artifact store that nothing needs: listed by ``autotune db check``, deleted by ``autotune db gc``."""

import contextlib
import shutil
from collections.abc import Iterator, Set
from dataclasses import dataclass
from pathlib import Path

from autotune.database.artifact_folder import FOLDERS
from autotune.database.artifacts import ArtifactStore
from autotune.database.files import in_use, sync_folder
from autotune.database.manifest import is_digest
from autotune.errors import ArtifactError

GRACE_S = 86_400.0
"""An artifact is added before a row names it, at the end of its trial; no trial takes a day."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unneeded:
    """Artifacts that no row names, blobs that no artifact lists, and folders and files that no process is writing.

    ``size_bytes`` is the size of the blobs and the leftover files; folders hold links to blobs.
    """

    artifacts: tuple[str, ...] = ()
    blobs: tuple[Path, ...] = ()
    leftovers: tuple[Path, ...] = ()
    size_bytes: int = 0


def unneeded(store: ArtifactStore, named: Set[str], before: float) -> Unneeded:
    """Return what can be deleted if plans and trials name the artifacts ``named``; hold the store's lock alone.

    ``before`` is a Unix time: files that were added or written since stay. While an artifact that a row names has a
    damaged manifest, the blobs that it needs are unknown, and no blob is returned.
    """
    artifacts = [
        digest for digest in store.digests()
        if digest not in named and _modified(store.manifest(digest)) < before and not store.is_held(digest)
    ]  # fmt: skip
    kept: set[str] | None = set()
    for digest in set(store.digests()) - set(artifacts):
        try:
            kept = None if kept is None else kept | {file.sha256 for file in store.files(digest)}
        except ArtifactError:
            kept = None
    blobs = [path for path in blobs_of(store) if kept is not None and path.name not in kept]
    there = set(store.digests()) - set(artifacts)
    folders = [
        path for path in _inside(store.root / "folders")
        if path.name not in there or not _is_whole(store, path)
    ]  # fmt: skip
    blobs = [path for path in blobs if _modified(path) < before]
    leftovers = [
        *(path for path in folders if path.name not in artifacts and _modified(path) < before),
        *(path for path in _inside(store.root / "temporary") if not in_use(path)),
    ]
    return Unneeded(
        artifacts=tuple(artifacts),
        blobs=tuple(blobs),
        leftovers=tuple(leftovers),
        size_bytes=sum(path.lstat().st_size for path in (*blobs, *leftovers) if path.is_file()),
    )


def sweep(store: ArtifactStore, named: Set[str], before: float) -> Unneeded:
    """Delete what :func:`unneeded` returns; call it in the write transaction that read ``named``."""
    with store.locked(alone=True):
        needless = unneeded(store, named, before)
        for digest in needless.artifacts:
            store.manifest(digest).unlink(missing_ok=True)
        sync_folder(store.root / "manifests")  # before the blobs: an artifact that is listed is whole
        for path in (
            *(store.root / "folders" / digest for digest in needless.artifacts),
            *needless.leftovers,
            *needless.blobs,
        ):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
    return needless


def blobs_of(store: ArtifactStore) -> Iterator[Path]:
    """Yield every file in the folders of blobs, whatever its name."""
    for folder in _inside(store.root / "blobs"):
        yield from _inside(folder) if folder.is_dir() and not folder.is_symlink() else [folder]


def strays(store: ArtifactStore) -> Iterator[Path]:
    """Yield the files that autotune never puts into a store."""
    for path in _inside(store.root):
        if path.name not in (*FOLDERS, "lock"):
            yield path
    for path in _inside(store.root / "manifests"):
        if not (path.name.endswith(".json") and is_digest(path.name[:-5])):
            yield path
    for path in blobs_of(store):
        if not is_digest(path.name) or path.parent.name != path.name[:2]:
            yield path


def _inside(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _is_whole(store: ArtifactStore, folder: Path) -> bool:
    try:
        return store.matches(folder, store.files(folder.name))
    except ArtifactError:
        return False


def _modified(path: Path) -> float:
    """Return the Unix time of the last write; infinite for a file that is gone."""
    with contextlib.suppress(OSError):
        return path.lstat().st_mtime
    return float("inf")
