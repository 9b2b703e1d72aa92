"""The folder of an artifact store: ArtifactFolder, which names, locks and lists its files.

::

    <root>/blobs/<2 hex>/<SHA-256 of a file>     every file once, read-only
    <root>/manifests/<digest>.json               the files of one artifact; their canonical JSON hashes to the digest
    <root>/folders/<digest>/                     an artifact as a folder again, hard links to its blobs
    <root>/temporary/                            files that are being written, and marks of artifacts that no row names
                                                 yet; the process that made one holds a lock on it
"""

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from autotune.database.files import holds, in_use, make_folder, may, names_below, open_plain, sync_folder
from autotune.database.manifest import ArtifactFile, digest_of, is_digest, manifest_files
from autotune.errors import ArtifactError

FOLDERS = ("blobs", "manifests", "folders", "temporary")
REBUILD = "autotune tune STUDY, which builds it again"


class ArtifactFolder:
    """The files below one root; several processes may use it at once.

    :class:`autotune.database.artifacts.ArtifactStore` adds what stores, verifies and removes artifacts. Raises
    ArtifactError if the root is a link or can be written by everyone.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        check_folder(root)

    @property
    def read_only(self) -> bool:
        """Whether this process cannot write below the root, so that nothing is locked, added or removed there."""
        folders = [folder for folder in (self.root, *(self.root / name for name in FOLDERS)) if os.path.exists(folder)]
        lock = self.root / "lock"
        return not (
            all(may(folder, os.W_OK | os.X_OK) for folder in folders or [_nearest(self.root)])
            and (may(lock, os.R_OK | os.W_OK) or not os.path.exists(lock))
        )

    @contextlib.contextmanager
    def locked(self, *, alone: bool = False) -> Iterator[None]:
        """Hold the store's lock, shared unless it is taken ``alone``; for the modules of this package."""
        try:
            self.root.parent.mkdir(parents=True, exist_ok=True)
            for folder in (self.root, *(self.root / name for name in FOLDERS)):
                make_folder(folder)
                check_folder(folder)
            lock = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
                yield
            finally:
                os.close(lock)
        except OSError as error:
            raise ArtifactError(
                f"The artifact store {self.root} cannot be used",
                found=f"{error.strerror or error} ({error.filename or self.root})",
                expected="a folder with free space that this user can write",
            ) from error

    @contextlib.contextmanager
    def reading(self, *, alone: bool = False) -> Iterator[None]:
        """Hold the store's lock to read, see :meth:`locked`; a store that cannot be written has no lock.

        A file that another process removes from such a store in the meantime fails its verification.
        """
        if not self.read_only:
            with self.locked(alone=alone):
                yield
            return
        try:
            for folder in (self.root, *(self.root / name for name in FOLDERS)):
                check_folder(folder)
            yield
        except OSError as error:
            raise self.unreadable(error) from error

    def unreadable(self, error: OSError) -> ArtifactError:
        """Return the error to raise if the system refuses a read."""
        return ArtifactError(
            f"The artifact store {self.root} cannot be read",
            found=f"{error.strerror or error}{f' ({error.filename})' if error.filename else ''}",
            expected="files that this user can read and, if it is read-only, space for copies of them in TMPDIR",
            run=f"chmod -R go+rX {self.root}, as its owner, or the same command with another TMPDIR",
        )

    def blob(self, sha256: str) -> Path:
        """Return the path of a file with this SHA-256."""
        return self.root / "blobs" / sha256[:2] / sha256

    def manifest(self, digest: str) -> Path:
        """Return the path of the list of an artifact's files; raises ArtifactError if the name is no digest."""
        if not is_digest(digest):
            raise ArtifactError(f"{digest!r} names no artifact", expected="a SHA-256 in hexadecimal")
        return self.root / "manifests" / f"{digest}.json"

    def has(self, digest: str) -> bool:
        """Return whether the artifact is here (its bytes are verified by :meth:`open`, not by this).

        Raises ArtifactError if this user may not read the folder.
        """
        try:
            return stat.S_ISREG(os.stat(self.manifest(digest)).st_mode)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            raise self.unreadable(error) from error

    def digests(self) -> list[str]:
        """Return the digests of all artifacts, sorted."""
        try:
            names = os.listdir(self.root / "manifests")
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(name[:-5] for name in names if name.endswith(".json") and is_digest(name[:-5]))

    def files(self, digest: str) -> tuple[ArtifactFile, ...]:
        """Return the files of an artifact, sorted by name; raises ArtifactError if the list is missing or changed."""
        try:
            with open_plain(self.manifest(digest)) as stream:
                files = manifest_files(stream.read())
            actual = digest_of(files)
        except (FileNotFoundError, NotADirectoryError):
            raise ArtifactError(f"Artifact {digest} is not in {self.root}", run=REBUILD) from None
        except PermissionError as error:
            raise self.unreadable(error) from error
        except (ValueError, OSError) as error:
            raise ArtifactError(
                f"The manifest of artifact {digest} is damaged", found=str(error), run=REBUILD
            ) from error
        if actual != digest:
            raise ArtifactError(
                f"The manifest of artifact {digest} is damaged", found=f"the manifest of {actual}", run=REBUILD
            )
        return files

    def matches(self, folder: Path, files: Sequence[ArtifactFile]) -> bool:
        """Return whether a folder holds exactly these files: links to the verified blobs, or copies that verify."""
        try:
            if names_below(folder, refusal="", hard_links=True) != [file.name for file in files]:
                return False
            return all(
                os.path.samestat(os.lstat(folder / file.name), os.lstat(self.blob(file.sha256)))
                or holds(folder / file.name, file.size_bytes, file.sha256)
                for file in files
            )
        except (ArtifactError, OSError):
            return False

    @contextlib.contextmanager
    def written(self, path: Path) -> Iterator[IO[bytes]]:
        """Yield a file that appears under its name, read-only, only when it is complete and on the disk."""
        descriptor, temporary = tempfile.mkstemp(dir=self.root / "temporary")
        try:
            with os.fdopen(descriptor, "wb") as target:
                fcntl.flock(target, fcntl.LOCK_EX)
                yield target
                target.flush()
                os.fchmod(target.fileno(), 0o444)
                os.fsync(target.fileno())
                os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            raise
        sync_folder(path.parent)

    @contextlib.contextmanager
    def held(self, digest: str) -> Iterator[None]:
        """Keep every process from removing an artifact that no row names yet, until the end or this process's death.

        Builds with equal files are one artifact: without this, the process that drops it would take it from others
        that have not named it yet.
        """
        with self.locked():
            mark, path = tempfile.mkstemp(dir=self.root / "temporary", prefix=f"{digest}.")
            fcntl.flock(mark, fcntl.LOCK_EX)
        try:
            yield
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            os.close(mark)

    @contextlib.contextmanager
    def turn(self, name: str) -> Iterator[None]:
        """Take turns with every process of this store that does the work of this name (a digest), such as a rebuild.

        The second process looks again once it has its turn, and finds the work complete. The turn of a process that
        dies passes to the next.
        """
        with self.locked():
            path = self.root / "temporary" / f"turn.{name}"
        while True:
            mark = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(mark, fcntl.LOCK_EX)
                if _is_at(mark, path):  # otherwise it was deleted while this process waited
                    yield
                    return
            finally:
                if _is_at(mark, path):
                    os.unlink(path)
                os.close(mark)

    def is_held(self, digest: str) -> bool:
        """Return whether a process holds the artifact; certain only while the store's lock is held alone."""
        return any(in_use(path) for path in self.root.glob(f"temporary/{digest}.*"))

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """Yield an empty folder beside the artifacts, locked while it is in use and deleted at the end."""
        with self.locked():
            folder = Path(tempfile.mkdtemp(dir=self.root / "temporary"))
            in_use = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(in_use, fcntl.LOCK_EX)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(in_use)


def _nearest(path: Path) -> Path:
    """Return the nearest folder that exists above a path."""
    return next(parent for parent in path.absolute().parents if parent.exists())


def check_folder(folder: Path) -> None:
    """Raise ArtifactError for a folder that is a link or a file, or that every user can write."""
    try:
        mode = os.lstat(folder).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return
    if not stat.S_ISDIR(mode):
        kind = "a symbolic link" if stat.S_ISLNK(mode) else "a file"
        raise ArtifactError(f"The artifact store {folder} is refused", found=kind, expected="a folder")
    if mode & stat.S_IWOTH:
        raise ArtifactError(
            f"The artifact store {folder} is refused",
            found="a folder that every user can write",
            expected="a folder that only its owner can write: its files are code that is run",
            run=f"chmod o-w {folder}",
        )


def _is_at(descriptor: int, path: Path) -> bool:
    """Return whether an open file is the one at a path now."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False
