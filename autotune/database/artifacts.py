"""The artifact store: what builds produced, named by its content.

::

    <root>/blobs/<2 hex>/<SHA-256 of a file>     every file once, read-only
    <root>/manifests/<digest>.json               the files of one artifact; their canonical JSON hashes to the digest
    <root>/folders/<digest>/                     an artifact as a folder again, hard links to its blobs
    <root>/temporary/                            what is being written

An artifact is code: nothing in it is read by anyone before :meth:`ArtifactStore.open` has verified every byte.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from autotune.errors import ArtifactError

CHUNK_BYTES = 1 << 20
_DIGEST = re.compile(r"[0-9a-f]{64}")
_REBUILD = "autotune tune STUDY, which builds it again"


def is_digest(text: object) -> bool:
    """Whether a value is a SHA-256 in lower-case hexadecimal."""
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

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"name": self.name, "size_bytes": self.size_bytes, "sha256": self.sha256}


def manifest_json(files: Sequence[ArtifactFile]) -> str:
    """Give the canonical JSON of an artifact's files, sorted by name; raises ``ValueError`` where two names collide."""
    names = {file.name for file in files}
    folders = {"/".join(name.split("/")[:depth]) for name in names for depth in range(1, name.count("/") + 1)}
    if not files or len(names) != len(files) or names & folders:
        raise ValueError("an artifact has at least one file, and no two of the same name")
    return json.dumps([f.as_dict() for f in sorted(files, key=lambda f: f.name)], sort_keys=True, separators=(",", ":"))


def manifest_files(text: str | bytes) -> tuple[ArtifactFile, ...]:
    """Read what :func:`manifest_json` wrote; raises ``ValueError`` for anything else."""
    try:
        return tuple(ArtifactFile(**entry) for entry in json.loads(text))
    except (TypeError, RecursionError) as error:
        raise ValueError(f"not the manifest of an artifact: {error}") from error


def digest_of(files: Sequence[ArtifactFile]) -> str:
    """Give the digest that names an artifact: SHA-256 of :func:`manifest_json`."""
    return hashlib.sha256(manifest_json(files).encode()).hexdigest()


class ArtifactStore:
    """Artifacts under one folder; safe to use from several processes and threads at once.

    ``add`` and ``open`` share a lock that ``remove`` takes alone, so that no blob goes while it is being used. Raises
    ArtifactError where the folder is a link, can be written by everyone or cannot be written at all.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._check_root()

    def _check_root(self) -> None:
        try:
            mode = os.lstat(self.root).st_mode
        except (FileNotFoundError, NotADirectoryError):
            return
        if not stat.S_ISDIR(mode):
            kind = "a symbolic link" if stat.S_ISLNK(mode) else "a file"
            raise ArtifactError(f"The artifact store {self.root} is refused", found=kind, expected="a folder")
        if mode & stat.S_IWOTH:
            raise ArtifactError(
                f"The artifact store {self.root} is refused",
                found="a folder that every user can write",
                expected="a folder that only its owner can write: what lies in it is run",
                run=f"chmod o-w {self.root}",
            )

    @contextlib.contextmanager
    def _locked(self, *, alone: bool = False) -> Iterator[None]:
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._check_root()
            for name in ("blobs", "manifests", "folders", "temporary"):
                (self.root / name).mkdir(mode=0o700, exist_ok=True)
            with open(self.root / "lock", "wb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
                yield
        except OSError as error:
            raise ArtifactError(
                f"The artifact store {self.root} cannot be used",
                found=f"{error.strerror or error} ({error.filename or self.root})",
                expected="a folder with free space that this user can write",
            ) from error

    def _blob(self, sha256: str) -> Path:
        return self.root / "blobs" / sha256[:2] / sha256

    def _manifest(self, digest: str) -> Path:
        if not is_digest(digest):
            raise ArtifactError(f"{digest!r} names no artifact", expected="a SHA-256 in hexadecimal")
        return self.root / "manifests" / f"{digest}.json"

    def has(self, digest: str) -> bool:
        """Whether the artifact is here (its bytes are verified by :meth:`open`, not by this)."""
        return self._manifest(digest).is_file()

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
            files = manifest_files(self._manifest(digest).read_bytes())
            found = digest_of(files)
        except (FileNotFoundError, NotADirectoryError):
            raise ArtifactError(f"Artifact {digest} is not in {self.root}", run=_REBUILD) from None
        except (ValueError, OSError) as error:
            raise ArtifactError(f"The manifest of artifact {digest} is damaged", found=str(error)) from error
        if found != digest:
            raise ArtifactError(f"The manifest of artifact {digest} is damaged", found=f"one of {found}", run=_REBUILD)
        return files

    def size_bytes(self, digest: str | None = None) -> int:
        """Give the size of one artifact; without a digest what all of them take together, shared files counted once."""
        digests = [digest] if digest is not None else self.digests()
        return sum({file.sha256: file.size_bytes for each in digests for file in self.files(each)}.values())

    def add(self, folder: Path) -> str:
        """Store a folder's files and return the artifact's digest; links and special files are refused."""
        with self._locked():
            files = [self._store(folder, name) for name in _names_below(folder)]
            if not files:
                raise ArtifactError(f"{folder} holds no file, so there is nothing to store")
            text = manifest_json(files)
            digest = hashlib.sha256(text.encode()).hexdigest()
            with self._written(self._manifest(digest)) as target:
                target.write(text.encode())
        return digest

    def _store(self, folder: Path, name: str) -> ArtifactFile:
        source = folder / name
        try:
            size, sha256 = _hashed(source)
            file = ArtifactFile(name=name, size_bytes=size, sha256=sha256)
        except ValueError as error:
            raise ArtifactError(f"{folder} cannot be stored", found=str(error)) from error
        blob = self._blob(sha256)
        if not _is_sound(blob, file):
            blob.parent.mkdir(mode=0o700, exist_ok=True)
            with self._written(blob) as target:
                if _hashed(source, target) != (size, sha256):
                    raise ArtifactError(f"{source} changed while it was being stored")
        return file

    @contextlib.contextmanager
    def _written(self, path: Path) -> Iterator[IO[bytes]]:
        """Give a file that appears under its name only when it is complete and on the disk; read-only from then on."""
        descriptor, temporary = tempfile.mkstemp(dir=self.root / "temporary")
        try:
            with os.fdopen(descriptor, "wb") as target:
                yield target
                target.flush()
                os.fchmod(target.fileno(), 0o444)
                os.fsync(target.fileno())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            raise
        _sync_folder(path.parent)

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """Give an empty folder beside the artifacts, deleted at the end."""
        with self._locked():
            folder = tempfile.mkdtemp(dir=self.root / "temporary")
        try:
            yield Path(folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def open(self, digest: str) -> Path:
        """Verify every byte of an artifact and return a folder with its files under their names.

        The folder is shared and not to be written. Raises ArtifactError where a file is missing or damaged.
        """
        files = self.files(digest)
        with self._locked():
            for file in files:
                if not _is_sound(self._blob(file.sha256), file):
                    raise ArtifactError(
                        f"Artifact {digest} is damaged",
                        found=f"{file.name} is missing or does not match its SHA-256",
                        run=_REBUILD,
                    )
            folder = self.root / "folders" / digest
            if not self._matches(folder, files):
                self._materialise(folder, files)
        return folder

    def _matches(self, folder: Path, files: Sequence[ArtifactFile]) -> bool:
        """Whether a folder holds exactly these files: links to the verified blobs, or copies that verify."""
        try:
            if _names_below(folder) != [file.name for file in files]:
                return False
            return all(
                os.path.samestat(os.lstat(folder / file.name), os.lstat(self._blob(file.sha256)))
                or _is_sound(folder / file.name, file)
                for file in files
            )
        except (ArtifactError, OSError):
            return False

    def _materialise(self, folder: Path, files: Sequence[ArtifactFile]) -> None:
        fresh = Path(tempfile.mkdtemp(dir=self.root / "temporary"))
        try:
            for file in files:
                target = fresh / "artifact" / file.name
                target.parent.mkdir(parents=True, exist_ok=True)
                try:
                    os.link(self._blob(file.sha256), target)
                except OSError:
                    shutil.copyfile(self._blob(file.sha256), target)
            for attempt in range(100):
                with contextlib.suppress(OSError):  # refused where a folder of that name has files already
                    os.rename(fresh / "artifact", folder)
                    return
                if self._matches(folder, files):  # another process was first
                    return
                with contextlib.suppress(FileNotFoundError):
                    os.rename(folder, fresh / f"stale-{attempt}")
            raise ArtifactError(f"{folder} cannot be made: other processes keep making it")
        finally:
            shutil.rmtree(fresh, ignore_errors=True)

    def remove(self, digest: str) -> None:
        """Forget an artifact and delete the files that no other artifact shares; one that is absent is no error."""
        manifest = self._manifest(digest)
        if not self.has(digest):
            return
        with self._locked(alone=True):
            try:
                gone = {file.sha256 for file in self.files(digest)}
                kept = {file.sha256 for each in self.digests() if each != digest for file in self.files(each)}
            except ArtifactError:  # a damaged manifest: what it shared is unknown, so its blobs stay
                gone, kept = set(), set()
            manifest.unlink(missing_ok=True)
            _sync_folder(manifest.parent)
            shutil.rmtree(self.root / "folders" / digest, ignore_errors=True)
            for sha256 in gone - kept:
                self._blob(sha256).unlink(missing_ok=True)


def _names_below(folder: Path) -> list[str]:
    """Give the names of the regular files below a folder, sorted; any link or special file is refused."""
    if folder.is_symlink() or not folder.is_dir():
        raise ArtifactError(f"{folder} cannot be stored", found="no folder of its own", expected="a folder of files")
    names = []
    for parent, folders, files in os.walk(folder, onerror=_refuse, followlinks=False):
        for entry in (*folders, *files):
            path = Path(parent, entry)
            mode = os.lstat(path).st_mode
            if stat.S_ISREG(mode):
                names.append(path.relative_to(folder).as_posix())
            elif not stat.S_ISDIR(mode):
                raise ArtifactError(f"{folder} cannot be stored", found=f"{path} is a link or a special file")
    return sorted(names)


def _refuse(error: OSError) -> None:
    raise error


def _hashed(source: Path, target: IO[bytes] | None = None) -> tuple[int, str]:
    """Size and SHA-256 of a file, copied to ``target`` on the way; a symbolic link is never followed."""
    digest, size = hashlib.sha256(), 0
    with open(os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb", buffering=0) as stream:
        while chunk := stream.read(CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
            if target is not None:
                target.write(chunk)
    return size, digest.hexdigest()


def _is_sound(path: Path, file: ArtifactFile) -> bool:
    """Whether a file is there, is no link, and holds exactly what it should."""
    try:
        found = os.lstat(path)
        if not stat.S_ISREG(found.st_mode) or found.st_size != file.size_bytes:
            return False
        return _hashed(path) == (file.size_bytes, file.sha256)
    except OSError:
        return False


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
