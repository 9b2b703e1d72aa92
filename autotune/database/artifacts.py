"""The artifact store: the files of builds, named by their content.

A store that this process cannot write (a read-only mount or image, another user's folder) can still be read: its files
are copied into a temporary folder elsewhere and verified there, without a lock.

An artifact is code: it is loaded only after every byte was verified, and only through :meth:`ArtifactStore.verified`.
That protects against damage, against other users, and against a program of this user that replaces a file by another.
A program of the same user that writes into the very file during a load is noticed only after the load, and one that
attaches to the process that loads is not noticed: such a program needs no artifact to run its code here.
"""

import contextlib
import hashlib
import logging
import os
import shutil
import tempfile
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path

from autotune.database.artifact_folder import REBUILD, ArtifactFolder, check_folder
from autotune.database.files import hashed, holds, make_folder, names_below, open_plain, sync_folder
from autotune.database.manifest import ArtifactFile, is_digest, manifest_json
from autotune.errors import ArtifactError
from autotune.scratch import ScratchFolder

_log = logging.getLogger(__name__)


class ArtifactStore(ArtifactFolder):
    """Artifacts under one folder; safe to use from several processes and threads at once.

    ``add`` and ``open`` share a lock that ``remove`` takes alone, so that no blob is deleted while it is being used.
    Methods that write raise ArtifactError if the folder cannot be written. ``close`` deletes the copies that
    :meth:`open` has made of a store that cannot be written.
    """

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._copies: ArtifactStore | None = None
        self._scratch: ScratchFolder | None = None
        self._copying = threading.Lock()

    def close(self) -> None:
        """Delete the copies that :meth:`open` has made in temporary folders."""
        if self._scratch is not None:
            self._scratch.close()

    def size_bytes(self, digest: str | None = None) -> int:
        """Return the size of one artifact, or without a digest of all of them; a shared file counts once."""
        digests = [digest] if digest is not None else self.digests()
        return sum({file.sha256: file.size_bytes for name in digests for file in self.files(name)}.values())

    def add(self, folder: Path) -> str:
        """Store a folder's files and return the artifact's digest; links and special files are refused."""
        with self.kept(folder) as digest:
            return digest

    @contextlib.contextmanager
    def kept(self, folder: Path) -> Iterator[str]:
        """Store a folder's files and hold them, see :meth:`held`, until a row can name the digest that this yields."""
        with contextlib.ExitStack() as stack:
            with self.locked():
                files = [
                    self._store(folder, name) for name in names_below(folder, refusal=f"{folder} cannot be stored")
                ]
                if not files:
                    raise ArtifactError(f"{folder} holds no file, so there is nothing to store")
                text = manifest_json(files)
                digest = hashlib.sha256(text.encode()).hexdigest()
                with self.written(self.manifest(digest)) as target:
                    target.write(text.encode())
                stack.enter_context(self.held(digest))
            yield digest

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
        check_folder(blob.parent)
        if not holds(blob, size, sha256):
            with self.written(blob) as target, open_plain(source) as stream:
                if hashed(stream, target) != (size, sha256):
                    raise ArtifactError(f"{source} changed while it was being stored")
        return file

    def open(self, digest: str) -> Path:
        """Verify every byte of an artifact and return a folder with its files under their names.

        The folder is shared and must not be written; a load reads it through :meth:`verified`. If the store cannot be
        written, the folder is a copy, deleted by :meth:`close`, unless the store has it already. Raises ArtifactError
        if a file is missing or damaged.
        """
        files = self.files(digest)
        with self.reading():
            for file in files:
                if not holds(self.blob(file.sha256), file.size_bytes, file.sha256):
                    raise ArtifactError(
                        f"Artifact {digest} is damaged",
                        found=f"{file.name} is missing or does not match its SHA-256",
                        run=REBUILD,
                    )
            folder = self.root / "folders" / digest
            if not self.matches(folder, files):
                if self.read_only:
                    return self._copied(digest, files)
                self._materialise(folder, files)
        return folder

    def _copied(self, digest: str, files: Sequence[ArtifactFile]) -> Path:
        """Open an artifact in a store of temporary files, which a worker reads like any other store."""
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
                with copies.written(copies.manifest(digest)) as target:
                    target.write(manifest_json(files).encode())
            return copies.open(digest)

    @contextlib.contextmanager
    def verified(self, digest: str) -> Iterator[Path]:
        """Yield a private folder with the verified files of an artifact, for the time of a load.

        The files are hard links or copies, made before they are verified, so that a file that another process puts in
        their place afterwards is not loaded. At the end ArtifactError is raised if a file was changed nevertheless.
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
        """Verify one file through one descriptor; returns the fields of its status that would change with it."""
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
                run=REBUILD,
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

    def _materialise(self, folder: Path, files: Sequence[ArtifactFile]) -> None:
        fresh = Path(tempfile.mkdtemp(dir=self.root / "temporary"))
        try:
            for file in files:
                _link(self.blob(file.sha256), fresh / "artifact" / file.name)
            for attempt in range(100):
                with contextlib.suppress(OSError):  # refused if a folder of that name has files already
                    os.rename(fresh / "artifact", folder)
                    return
                if self.matches(folder, files):  # another process was first
                    return
                with contextlib.suppress(FileNotFoundError):
                    os.rename(folder, fresh / f"stale-{attempt}")
            raise ArtifactError(f"{folder} cannot be written: other processes keep writing it")
        finally:
            shutil.rmtree(fresh, ignore_errors=True)

    def remove(self, digest: str) -> None:
        """Delete an artifact's manifest and the files that no other artifact shares.

        An absent artifact is no error; an artifact that a process holds stays.
        """
        manifest = self.manifest(digest)
        if not self.has(digest):
            return
        with self.locked(alone=True):
            if self.is_held(digest):
                return
            try:
                own = {file.sha256 for file in self.files(digest)}
                others = (name for name in self.digests() if name != digest)
                shared = {file.sha256 for name in others for file in self.files(name)}
            except ArtifactError:  # a damaged manifest: its shared files are unknown, so its blobs stay
                own, shared = set(), set()
            manifest.unlink(missing_ok=True)
            sync_folder(manifest.parent)
            shutil.rmtree(self.root / "folders" / digest, ignore_errors=True)
            for sha256 in own - shared:
                self.blob(sha256).unlink(missing_ok=True)

    def discard(self, digests: Set[str]) -> None:
        """Remove artifacts; call it in the transaction that read them as unneeded, so that no row comes to name one."""
        for digest in sorted(digests):
            self.remove(digest)
        if digests:
            _log.info("dropped %d artifacts", len(digests))


@contextlib.contextmanager
def stored(folder: Path) -> Iterator[Path]:
    """Yield the folder to load in place of one: of a store's artifact the files of :meth:`ArtifactStore.verified`.

    Any other folder was written by a build of this study in its own working folder, and is returned as it is.
    """
    if folder.parent.name != "folders" or not is_digest(folder.name):
        yield folder
        return
    with ArtifactStore(folder.parent.parent).verified(folder.name) as own:
        yield own


def _link(blob: Path, target: Path) -> None:
    """Link a file to a second name, or copy it if it cannot have one."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(blob, target, follow_symlinks=False)
    except OSError:
        with contextlib.suppress(FileNotFoundError), open_plain(blob) as source, open(target, "xb") as copy:
            shutil.copyfileobj(source, copy)


def _state(status: os.stat_result) -> tuple[int, ...]:
    """Return the fields that change with a file's place or content.

    The last one, which no program can set, also changes with its links.
    """
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
