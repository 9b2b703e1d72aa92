"""The artifact store: what builds produced, named by its content.

::

    <root>/blobs/<2 hex>/<SHA-256 of a file>     every file once, read-only
    <root>/manifests/<digest>.json               the files of one artifact; their canonical JSON hashes to the digest
    <root>/folders/<digest>/                     an artifact as a folder again, hard links to its blobs
    <root>/temporary/                            what is being written, and marks of artifacts that no row names yet;
                                                 whoever made one holds a lock on it

A store that this process cannot write (a read-only mount or image, another user's folder) is read all the same: what is
taken or opened of it is copied into a temporary folder elsewhere and verified there, without a lock.

Longer than most modules because it is the whole life of an artifact in one class: what stores, holds, verifies, reads
and removes one shares its lock and its folders.

An artifact is code: nothing in it is loaded before every byte was verified, and by :meth:`ArtifactStore.taken` nothing
else is. That holds against damage, against other users, and against a file put in the place of another by this one. A
program of the same user that writes into the very file under way is found out only after the load, and one that
attaches to the process that loads is not: such a program needs no artifact to run its code here.
"""

import contextlib
import fcntl
import hashlib
import logging
import os
import shutil
import stat
import tempfile
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import IO

from autotune.database.files import hashed, holds, in_use, make_folder, may, names_below, open_plain, sync_folder
from autotune.database.manifest import ArtifactFile, digest_of, is_digest, manifest_files, manifest_json
from autotune.errors import ArtifactError
from autotune.scratch import ScratchFolder

_log = logging.getLogger(__name__)

FOLDERS = ("blobs", "manifests", "folders", "temporary")
_REBUILD = "autotune tune STUDY, which builds it again"


class ArtifactStore:
    """Artifacts under one folder; safe to use from several processes and threads at once.

    ``add`` and ``open`` share a lock that whoever deletes takes alone, so that no blob goes while it is being used.
    Raises ArtifactError where the folder is a link or can be written by everyone, and what writes where it cannot be
    written. ``close`` deletes what :meth:`open` has copied out of a store that cannot be written.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._copies: ArtifactStore | None = None
        self._scratch: ScratchFolder | None = None
        self._copying = threading.Lock()
        _check_folder(root)

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
        """Hold the store's lock, which several share unless one asks for it alone; for the modules of this package."""
        try:
            self.root.parent.mkdir(parents=True, exist_ok=True)
            for folder in (self.root, *(self.root / name for name in FOLDERS)):
                make_folder(folder)
                _check_folder(folder)
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
        """Hold the store's lock to read, see :meth:`locked`; a store that cannot be written has none to hold.

        What another process removes from such a store meanwhile fails its verification.
        """
        if not self.read_only:
            with self.locked(alone=alone):
                yield
            return
        try:
            for folder in (self.root, *(self.root / name for name in FOLDERS)):
                _check_folder(folder)
            yield
        except OSError as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: OSError) -> ArtifactError:
        return ArtifactError(
            f"The artifact store {self.root} cannot be read",
            found=f"{error.strerror or error}{f' ({error.filename})' if error.filename else ''}",
            expected="files that this user can read and, if it is read-only, space for copies of them in TMPDIR",
            run=f"chmod -R go+rX {self.root}, as its owner, or the same command with another TMPDIR",
        )

    def close(self) -> None:
        """Delete what :meth:`open` has copied into temporary folders."""
        if self._scratch is not None:
            self._scratch.close()

    def blob(self, sha256: str) -> Path:
        """Where a file of this SHA-256 lies."""
        return self.root / "blobs" / sha256[:2] / sha256

    def manifest(self, digest: str) -> Path:
        """Where the list of an artifact's files lies; raises ArtifactError for what is no digest."""
        if not is_digest(digest):
            raise ArtifactError(f"{digest!r} names no artifact", expected="a SHA-256 in hexadecimal")
        return self.root / "manifests" / f"{digest}.json"

    def has(self, digest: str) -> bool:
        """Whether the artifact is here (its bytes are verified by :meth:`open`, not by this).

        Raises ArtifactError where this user may not look.
        """
        try:
            return stat.S_ISREG(os.stat(self.manifest(digest)).st_mode)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            raise self._unreadable(error) from error

    def digests(self) -> list[str]:
        """Give the digests of all artifacts, sorted."""
        try:
            names = os.listdir(self.root / "manifests")
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(name[:-5] for name in names if name.endswith(".json") and is_digest(name[:-5]))

    def files(self, digest: str) -> tuple[ArtifactFile, ...]:
        """Give the files of an artifact, sorted by name; raises ArtifactError where the list is missing or changed."""
        try:
            with open_plain(self.manifest(digest)) as stream:
                files = manifest_files(stream.read())
            found = digest_of(files)
        except (FileNotFoundError, NotADirectoryError):
            raise ArtifactError(f"Artifact {digest} is not in {self.root}", run=_REBUILD) from None
        except PermissionError as error:
            raise self._unreadable(error) from error
        except (ValueError, OSError) as error:
            raise ArtifactError(
                f"The manifest of artifact {digest} is damaged", found=str(error), run=_REBUILD
            ) from error
        if found != digest:
            raise ArtifactError(f"The manifest of artifact {digest} is damaged", found=f"one of {found}", run=_REBUILD)
        return files

    def size_bytes(self, digest: str | None = None) -> int:
        """Give the size of one artifact; without a digest what all of them take together, shared files counted once."""
        digests = [digest] if digest is not None else self.digests()
        return sum({file.sha256: file.size_bytes for each in digests for file in self.files(each)}.values())

    def add(self, folder: Path) -> str:
        """Store a folder's files and return the artifact's digest; links and special files are refused."""
        with self.kept(folder) as digest:
            return digest

    @contextlib.contextmanager
    def kept(self, folder: Path) -> Iterator[str]:
        """Store a folder's files and hold them, see :meth:`held`, until a row can name the digest that is given."""
        with contextlib.ExitStack() as stack:
            with self.locked():
                files = [self._store(folder, name) for name in names_below(folder, asked=f"{folder} cannot be stored")]
                if not files:
                    raise ArtifactError(f"{folder} holds no file, so there is nothing to store")
                text = manifest_json(files)
                digest = hashlib.sha256(text.encode()).hexdigest()
                with self._written(self.manifest(digest)) as target:
                    target.write(text.encode())
                stack.enter_context(self.held(digest))
            yield digest

    @contextlib.contextmanager
    def held(self, digest: str) -> Iterator[None]:
        """Keep every process from removing an artifact that no row names yet, until the end or this process's death.

        What several builds turned out alike is one artifact: without this, whoever drops it last takes it from those
        that are still to name it.
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

        Whoever comes second finds the work done: it looks again once it has its turn. The turn of a process that dies
        passes on.
        """
        with self.locked():
            path = self.root / "temporary" / f"turn.{name}"
        while True:
            mark = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(mark, fcntl.LOCK_EX)
                if _is_at(mark, path):  # else it was deleted while this one waited
                    yield
                    return
            finally:
                if _is_at(mark, path):
                    os.unlink(path)
                os.close(mark)

    def is_held(self, digest: str) -> bool:
        """Whether anyone holds the artifact; certain only while the store's lock is held alone."""
        return any(in_use(path) for path in self.root.glob(f"temporary/{digest}.*"))

    def _store(self, folder: Path, name: str) -> ArtifactFile:
        source = folder / name
        try:
            with open_plain(source) as stream:
                size, sha256 = hashed(stream)
            file = ArtifactFile(name=name, size_bytes=size, sha256=sha256)
        except ValueError as error:
            raise ArtifactError(f"{folder} cannot be stored", found=str(error)) from error
        blob = self.blob(sha256)
        make_folder(blob.parent)
        _check_folder(blob.parent)
        if not holds(blob, size, sha256):
            with self._written(blob) as target, open_plain(source) as stream:
                if hashed(stream, target) != (size, sha256):
                    raise ArtifactError(f"{source} changed while it was being stored")
        return file

    @contextlib.contextmanager
    def _written(self, path: Path) -> Iterator[IO[bytes]]:
        """Give a file that appears under its name only when it is complete and on the disk; read-only from then on."""
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
    def scratch(self) -> Iterator[Path]:
        """Give an empty folder beside the artifacts, deleted at the end; while it is in use it is locked."""
        with self.locked():
            folder = Path(tempfile.mkdtemp(dir=self.root / "temporary"))
            in_use = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(in_use, fcntl.LOCK_EX)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(in_use)

    def open(self, digest: str) -> Path:
        """Verify every byte of an artifact and return a folder with its files under their names.

        The folder is shared and not to be written; a load reads it through :meth:`taken`. Of a store that cannot be
        written it is a copy, deleted by :meth:`close`, unless the store has the folder already. Raises ArtifactError
        where a file is missing or damaged.
        """
        files = self.files(digest)
        with self.reading():
            for file in files:
                if not holds(self.blob(file.sha256), file.size_bytes, file.sha256):
                    raise ArtifactError(
                        f"Artifact {digest} is damaged",
                        found=f"{file.name} is missing or does not match its SHA-256",
                        run=_REBUILD,
                    )
            folder = self.root / "folders" / digest
            if not self.matches(folder, files):
                if self.read_only:
                    return self._copied(digest, files)
                self._materialise(folder, files)
        return folder

    def _copied(self, digest: str, files: Sequence[ArtifactFile]) -> Path:
        """Open an artifact in a store of temporary files, which a worker reads as it reads any other."""
        with self._copying:
            if self._copies is None:
                scratch = self._scratch = ScratchFolder("artifacts")
                weakref.finalize(self, scratch.close)
                self._copies = ArtifactStore(scratch.path / "store")
            copies = self._copies
            with copies.locked():
                for file in files:
                    blob = copies.blob(file.sha256)
                    make_folder(blob.parent)
                    if not blob.exists():
                        _link(self.blob(file.sha256), blob)
                with copies._written(copies.manifest(digest)) as target:
                    target.write(manifest_json(files).encode())
            return copies.open(digest)

    @contextlib.contextmanager
    def taken(self, digest: str) -> Iterator[Path]:
        """Give a folder of this process's own with an artifact's verified files, for as long as a load takes.

        The files are hard links or copies, made before they are verified, so that what another process puts in their
        place afterwards is not what is loaded. At the end ArtifactError is raised where one was written to all the
        same.
        """
        with self._elsewhere() if self.read_only else self.scratch() as own:
            folder = own / digest
            with self.reading():
                files = self.files(digest)
                for file in files:
                    _link(self.blob(file.sha256), folder / file.name)
            before = {file: self._verified(digest, folder / file.name, file) for file in files}
            yield folder
            self._check_unchanged(digest, folder, before)

    @contextlib.contextmanager
    def _elsewhere(self) -> Iterator[Path]:
        with self.reading():
            scratch = ScratchFolder("artifact")
        with scratch as folder:
            yield folder

    @staticmethod
    def _verified(digest: str, path: Path, file: ArtifactFile) -> tuple[int, ...]:
        """Verify one file through one descriptor; gives what would change with it."""
        try:
            with open_plain(path) as stream:
                before = _state(os.fstat(stream.fileno()))
                sound = hashed(stream) == (file.size_bytes, file.sha256)
        except OSError:
            sound = False
        if not sound:
            raise ArtifactError(
                f"Artifact {digest} is damaged",
                found=f"{file.name} is missing or does not match its SHA-256",
                run=_REBUILD,
            )
        return before

    def _check_unchanged(self, digest: str, folder: Path, before: Mapping[ArtifactFile, tuple[int, ...]]) -> None:
        for file, state in before.items():
            path = folder / file.name
            with contextlib.suppress(OSError):
                now = _state(os.lstat(path))
                # Another link to the same bytes moves the time of the last change too: then the bytes decide.
                if now == state or (now[:-1] == state[:-1] and holds(path, file.size_bytes, file.sha256)):
                    continue
            raise ArtifactError(
                f"Artifact {digest} is refused",
                found=f"{file.name} was changed by another process while it was being loaded",
                expected="a store that nothing but autotune writes",
                run="autotune db check",
            )

    def matches(self, folder: Path, files: Sequence[ArtifactFile]) -> bool:
        """Whether a folder holds exactly these files: links to the verified blobs, or copies that verify."""
        try:
            if names_below(folder, asked="", hard_links=True) != [file.name for file in files]:
                return False
            return all(
                os.path.samestat(os.lstat(folder / file.name), os.lstat(self.blob(file.sha256)))
                or holds(folder / file.name, file.size_bytes, file.sha256)
                for file in files
            )
        except (ArtifactError, OSError):
            return False

    def _materialise(self, folder: Path, files: Sequence[ArtifactFile]) -> None:
        fresh = Path(tempfile.mkdtemp(dir=self.root / "temporary"))
        try:
            for file in files:
                _link(self.blob(file.sha256), fresh / "artifact" / file.name)
            for attempt in range(100):
                with contextlib.suppress(OSError):  # refused where a folder of that name has files already
                    os.rename(fresh / "artifact", folder)
                    return
                if self.matches(folder, files):  # another process was first
                    return
                with contextlib.suppress(FileNotFoundError):
                    os.rename(folder, fresh / f"stale-{attempt}")
            raise ArtifactError(f"{folder} cannot be made: other processes keep making it")
        finally:
            shutil.rmtree(fresh, ignore_errors=True)

    def remove(self, digest: str) -> None:
        """Forget an artifact and delete the files that no other artifact shares.

        One that is absent is no error, and one that somebody holds stays.
        """
        manifest = self.manifest(digest)
        if not self.has(digest):
            return
        with self.locked(alone=True):
            if self.is_held(digest):
                return
            try:
                gone = {file.sha256 for file in self.files(digest)}
                kept = {file.sha256 for each in self.digests() if each != digest for file in self.files(each)}
            except ArtifactError:  # a damaged manifest: what it shared is unknown, so its blobs stay
                gone, kept = set(), set()
            manifest.unlink(missing_ok=True)
            sync_folder(manifest.parent)
            shutil.rmtree(self.root / "folders" / digest, ignore_errors=True)
            for sha256 in gone - kept:
                self.blob(sha256).unlink(missing_ok=True)

    def discard(self, digests: Set[str]) -> None:
        """Remove artifacts; call it in the transaction that read them as unneeded, so that no row comes to name one."""
        for digest in sorted(digests):
            self.remove(digest)
        if digests:
            _log.info("dropped %d artifacts", len(digests))


@contextlib.contextmanager
def stored(folder: Path) -> Iterator[Path]:
    """Give what may be loaded of a folder: of a store's artifact the verified files, see :meth:`ArtifactStore.taken`.

    Any other folder is one that a build of this study has just left in its own working folder, and is given as it is.
    """
    if folder.parent.name != "folders" or not is_digest(folder.name):
        yield folder
        return
    with ArtifactStore(folder.parent.parent).taken(folder.name) as own:
        yield own


def _nearest(path: Path) -> Path:
    """The nearest folder above a path that is not there."""
    return next(parent for parent in path.absolute().parents if parent.exists())


def _check_folder(folder: Path) -> None:
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
            expected="a folder that only its owner can write: what lies in it is run",
            run=f"chmod o-w {folder}",
        )


def _link(blob: Path, target: Path) -> None:
    """Give a file a second name, or copy it where it cannot have one."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(blob, target, follow_symlinks=False)
    except OSError:
        with contextlib.suppress(FileNotFoundError), open_plain(blob) as source, open(target, "xb") as copy:
            shutil.copyfileobj(source, copy)


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file is the one that lies at a path now."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _state(status: os.stat_result) -> tuple[int, ...]:
    """What changes with a file's place or content; the last of it, which nobody can set, also with its links."""
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
