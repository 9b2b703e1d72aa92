"""A record of the files and settings that a factory or a metric reads: if all are unchanged, its answer is reused.

:func:`watching` notes the reads of a block in this process; :meth:`Reading.record` is plain JSON with digests, and
:func:`unchanged` compares it with the present without torch. Two kinds of reads are not seen: those of a native library
that opens a file by itself and neither maps it nor keeps it open, and those of another process (noted as unknown if a
user's own code has started it).
"""

import contextlib
import hashlib
import os
import stat
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from autotune.model import native_reads
from autotune.model.own_files import (
    Initiator,
    initiator,
    installed_folders,
    is_installed,
    is_of_autotune,
    is_of_python,
    is_own,
    package_folders,
    python_folders,
)

SET_FOR_WORKERS = ("AUTOTUNE_DB", "PGPASSWORD", "PYTORCH_NVML_BASED_CUDA_CHECK")
"""Environment variables with another value in a worker than in the process that started it; so have all PYTHON*."""
NEAR = 6
"""A look-up of an environment variable is a user's if one of this number of frames of its stack is a user's."""
WATCHERS = (__file__, native_reads.__file__)
CHUNK_BYTES = 1 << 20
_OF_SYSTEM = ("/proc/", "/sys/", "/dev/")
_LIBRARIES = ("/lib/", "/lib64/", "/usr/lib/", "/usr/lib64/", "/usr/local/lib/", "/usr/local/cuda")
_CODE = (".py", ".pyc", ".so")
_PASSING = ("-wal", "-shm", "-journal")
"""Ends of the names of files that SQLite keeps beside an open database."""
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

_Path = int | str | bytes | os.PathLike[str] | os.PathLike[bytes]
_stat, _environment_item = os.stat, type(os.environ).__getitem__


class Reading:
    """The reads of a watched block; made by :func:`watching`."""

    def __init__(self) -> None:
        self._modules, self._open = set(sys.modules), _held_open()
        self._environment = dict(os.environ)
        self._read, self._written, self._read_first = set[str](), set[str](), set[str]()
        self._folders, self._absent, self._present = set[str](), set[str](), dict[str, str]()
        self._looked_up, self._unknown = set[str](), set[str]()
        self._new_folders, self._imported = set[str](), set[str]()

    def record(self) -> dict[str, Any]:
        """Return the reads as plain JSON, with digests of the present contents.

        ``files``: contents; ``folders``: names in listed folders; ``present``: kind, size and time of paths that were
        only looked up; ``absent``: paths that did not exist; ``environment``: variables; ``packages``: installed
        top-level modules; ``unknown``: reasons why something cannot be known, so that nothing counts as unchanged.
        """
        sources = own_sources(self._imported)
        unknown = self._unknown | {f"{path} is read and written" for path in self._read_first & self._written}
        appeared = {path for path in self._absent if os.path.exists(path)}  # by the block itself
        read = self._read | {path for path in appeared if os.path.isfile(path)}
        files = dict[str, str]()
        for path in sorted(self._others(read) - set(sources)):
            if digest := _file_digest(path):
                files[path] = digest
            else:
                unknown.add(f"{path} was read and cannot be read any more")
        digested = {*files, *sources}
        return {
            "files": {**files, **sources},
            "folders": {path: _folder_digest(path) for path in sorted(self._others(self._folders))},
            "present": {path: self._present[path] for path in sorted(self._others(self._present) - digested)},
            "absent": sorted(self._others(self._absent) - appeared),
            "environment": {key: _text_digest(self._environment.get(key)) for key in sorted(self._looked_up)},
            "packages": sorted(self._packages()),
            "unknown": sorted(unknown),
        }

    def end(self) -> None:
        """Add the modules that the block has loaded, and the files that it has left mapped or open."""
        self._imported |= set(sys.modules) - self._modules
        for path in _held_open() - self._open:
            if _counts(path) and ".so" not in os.path.basename(path):
                self._read.add(path)

    def opened(self, path: object, flags: object) -> None:
        """Note that a file is about to be opened; ``flags`` are those of ``os.open``."""
        if isinstance(path, str) and path.endswith(".pyc"):
            return  # most opened files, which are skipped quickly
        flags = flags if isinstance(flags, int) else 0
        name = _absolute(path)
        if name is None or not _counts(name) or (initiator(WATCHERS) is Initiator.IMPORT and not is_installed(name)):
            return
        try:
            status = _stat(name)
        except OSError:
            if flags & _WRITES:
                self._written.add(name)
            elif _user_code_runs():
                self._absent.add(name)
            return
        if not stat.S_ISREG(status.st_mode):
            return
        reads = not flags & _WRITES or (flags & os.O_RDWR and not flags & (os.O_CREAT | os.O_TRUNC | os.O_APPEND))
        if reads and name not in self._written:
            self._read.add(name)
            self._read_first.add(name)
        if flags & _WRITES:
            self._written.add(name)

    def listed(self, path: object) -> None:
        """Note that a folder is about to be listed."""
        name = _absolute("." if path is None else path)
        if name is not None and not _is_of_library(name + os.sep) and _user_code_runs():
            (self._folders if os.path.isdir(name) else self._absent).add(name)

    def looked_for(self, path: object, status: os.stat_result | None) -> None:
        """Note that a path was looked up, with its status if it exists."""
        name = _absolute(path)
        if name is None or not _counts(name) or _is_of_library(name + os.sep) or not _user_code_runs():
            return
        if status is None:
            self._absent.add(name)
        else:
            self._present.setdefault(name, _kind(status))

    def makes_folder(self, path: object) -> None:
        """Note that a folder is about to be made; its content is the block's own."""
        name = _absolute(path)
        if name is not None and not os.path.lexists(name):
            self._new_folders.add(name)

    def looked_up(self, key: object) -> None:
        """Note that an environment variable was looked up."""
        name = os.fsdecode(key) if isinstance(key, str | bytes) else None
        if name is None or name in SET_FOR_WORKERS or name.startswith("PYTHON"):
            return
        if initiator(WATCHERS, NEAR) is Initiator.USER:
            self._looked_up.add(name)

    def cannot_know(self, reason: str) -> None:
        """Note that a user's own code depends on something that cannot be watched."""
        if _user_code_runs():
            self._unknown.add(reason)

    def _others(self, paths: Iterable[str]) -> set[str]:
        """Return the paths that the block has not written itself."""
        below = tuple(folder + os.sep for folder in self._new_folders)
        return {path for path in paths if path not in self._written | self._new_folders and not path.startswith(below)}

    def _packages(self) -> set[str]:
        """Return the top-level installed modules that were imported, or that the imported files name."""
        own = [sys.modules[name] for name in self._imported if name in sys.modules and is_own(_file_of(name))]
        named = {_module_of(value) for module in own for value in list(vars(module).values())}
        return {name.partition(".")[0] for name in {*self._imported, *named} if is_third_party(name)}


@contextlib.contextmanager
def watching() -> Iterator[Reading]:
    """Note the reads of a block; blocks may be nested, and each notes its own."""
    _install()
    reading = Reading()
    with native_reads.noting(lambda path: reading.opened(path, os.O_RDONLY)):
        try:
            with _LOCK:
                _active.append(reading)
                _patch()
            yield reading
        finally:
            with _LOCK:
                _active.remove(reading)
                _patch()
            reading.end()


def unchanged(record: Mapping[str, Any]) -> bool:
    """Return whether everything in a record is unchanged; False if the record has an unknown."""
    if record["unknown"]:
        return False
    return (
        all(_text_digest(os.environ.get(key)) == had for key, had in record["environment"].items())
        and not any(os.path.exists(path) for path in record["absent"])
        and all(_what_is_at(path) == had for path, had in record["present"].items())
        and all(_folder_digest(path) == had for path, had in record["folders"].items())
        and all(_file_digest(path) == had for path, had in record["files"].items())
    )


def own_sources(names: set[str]) -> dict[str, str]:
    """Return digests of the files of loaded modules of no installed package, extension modules included."""
    files = {_file_of(name) for name in names}
    own = {str(Path(file).resolve()) for file in files if file.endswith((".py", ".so")) and is_own(file)}
    digests = {file: _file_digest(file) for file in sorted(own) if is_own(file)}
    return {file: digest for file, digest in digests.items() if digest is not None}


def is_third_party(name: str) -> bool:
    """Return whether a loaded module belongs to an installed package."""
    return "__main__" not in name and is_installed(_file_of(name))


# The hook cannot be removed, so there is one a process; it does nothing while no block is watched.
_LOCK = threading.Lock()
_active: list[Reading] = []
_installed: list[Callable[[str, tuple[object, ...]], None]] = []


def _install() -> None:
    for find in (python_folders, installed_folders, package_folders):
        find()  # now, because an event must not import
    with _LOCK:
        if not _installed:
            _installed.append(_hook)
            sys.addaudithook(_hook)


def _hook(event: str, arguments: tuple[object, ...]) -> None:
    note = _NOTES.get(event)
    if note is None or not _active:
        return
    for reading in list(_active):
        try:
            note(reading, arguments)
        except Exception as error:  # an error here would become one of the code that is watched
            reading.cannot_know(f"{event}: {type(error).__name__}: {error}")


def _patch() -> None:
    """Replace look-ups that raise no event by noting ones while a block is watched, and restore them afterwards."""
    watched = bool(_active)
    type(os.environ).__getitem__ = _noted_item if watched else _environment_item  # type: ignore[method-assign]
    replaced = os.stat
    os.stat = _noted_stat if watched else _stat
    for supported in (os.supports_dir_fd, os.supports_fd, os.supports_follow_symlinks):
        if replaced in supported:  # shutil looks for the function itself
            supported.discard(replaced)
            supported.add(os.stat)
    accessor = getattr(sys.modules.get("pathlib"), "_NormalAccessor", None)
    if accessor is not None:  # Python 3.10
        accessor.stat = staticmethod(os.stat)


def _noted_item(environment: "os._Environ[str]", key: str) -> str:
    for reading in list(_active):
        reading.looked_up(key)
    return _environment_item(environment, key)


def _noted_stat(path: _Path, *, dir_fd: int | None = None, follow_symlinks: bool = True) -> os.stat_result:
    try:
        status = _stat(path, dir_fd=dir_fd, follow_symlinks=follow_symlinks)
    except (FileNotFoundError, NotADirectoryError):
        if dir_fd is None:
            for reading in list(_active):
                reading.looked_for(path, None)
        raise
    if dir_fd is None:
        for reading in list(_active):
            reading.looked_for(path, status)
    return status


def _dlopen(reading: Reading, arguments: tuple[object, ...]) -> None:
    path = arguments[0]
    name = _absolute(path) if isinstance(path, str | bytes | os.PathLike) and os.sep in os.fsdecode(path) else None
    if name is not None and not _is_of_library(name) and not name.startswith(_LIBRARIES):
        reading.cannot_know(f"loads the native library {name}")


def _connects(reading: Reading, arguments: tuple[object, ...]) -> None:
    if arguments[0] not in (":memory:", b":memory:"):
        reading.cannot_know(f"opens the SQLite database {arguments[0]}")


def _starts(reading: Reading, arguments: tuple[object, ...]) -> None:
    command = arguments[1] if len(arguments) > 1 else arguments[0]
    first = command[0] if isinstance(command, list | tuple) and command else command
    reading.cannot_know(f"starts the program {_shown(first)}")


_NOTES: dict[str, Callable[[Reading, tuple[object, ...]], None]] = {
    "open": lambda reading, arguments: reading.opened(
        arguments[0], arguments[2] if isinstance(arguments[2], int) else 0
    ),
    "os.listdir": lambda reading, arguments: reading.listed(arguments[0]),
    "os.mkdir": lambda reading, arguments: reading.makes_folder(arguments[0]),
    "os.scandir": lambda reading, arguments: reading.listed(arguments[0]),
    "subprocess.Popen": _starts,
    "os.exec": lambda reading, arguments: reading.cannot_know(f"becomes the program {_shown(arguments[0])}"),
    "os.posix_spawn": lambda reading, arguments: reading.cannot_know(f"starts the program {_shown(arguments[0])}"),
    "os.system": lambda reading, arguments: reading.cannot_know(f"runs the command {_shown(arguments[0])}"),
    "os.fork": lambda reading, arguments: reading.cannot_know("starts another process"),
    "os.forkpty": lambda reading, arguments: reading.cannot_know("starts another process"),
    "socket.connect": lambda reading, arguments: reading.cannot_know(f"connects to {_shown(arguments[1])}"),
    "urllib.Request": lambda reading, arguments: reading.cannot_know(f"requests {_shown(arguments[0])}"),
    "sqlite3.connect": _connects,
    "ctypes.dlopen": _dlopen,
}


def _user_code_runs() -> bool:
    """Return whether a user's own code runs, or a thread that it may have begun through a library."""
    return initiator(WATCHERS) in (Initiator.USER, Initiator.THREAD)


def _counts(path: str) -> bool:
    """Return whether the content of a file may decide an answer that the versions of packages do not."""
    if path.startswith(_OF_SYSTEM) or is_of_autotune(path) or is_of_python(path):
        return False
    return not (is_installed(path) and (path.endswith(_CODE) or ".dist-info/" in path or ".egg-info" in path))


def _is_of_library(path: str) -> bool:
    return path.startswith(_OF_SYSTEM) or is_of_autotune(path) or is_of_python(path) or is_installed(path)


def _absolute(path: object) -> str | None:
    """Return the absolute path that a call names; a link stays a link, because its target may change later."""
    if isinstance(path, int) or not isinstance(path, str | bytes | os.PathLike):
        return None
    return os.path.abspath(os.fsdecode(path))


def _held_open() -> set[str]:
    """Return the regular files that this process has mapped or holds open, except those that it writes to."""
    held = set[str]()
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/maps").read_text(errors="replace").splitlines():
            _, access, *_, path = line.split(maxsplit=5)
            if path.startswith("/") and access != "rw-s":
                held.add(path)
    with contextlib.suppress(OSError):
        for number in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                flags = Path(f"/proc/self/fdinfo/{number}").read_text().partition("flags:")[2].split()[0]
                if not int(flags, 8) & _WRITES:
                    held.add(os.readlink(f"/proc/self/fd/{number}"))
    return {path for path in held if not path.startswith(_LIBRARIES) and os.path.isfile(path)}


def _kind(status: os.stat_result) -> str:
    return f"file {status.st_size} {status.st_mtime_ns}" if stat.S_ISREG(status.st_mode) else "folder or other"


def _what_is_at(path: str) -> str | None:
    try:
        return _kind(_stat(path))
    except OSError:
        return None


def _file_digest(path: str) -> str | None:
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
    except OSError:
        return None
    return digest.hexdigest()


def _folder_digest(path: str) -> str | None:
    """Return a digest of the names in a folder, without temporary ones of Python and SQLite."""
    try:
        names = [name for name in os.listdir(path) if name != "__pycache__" and not name.endswith(_PASSING)]
    except OSError:
        return None
    return hashlib.sha256("\0".join(sorted(names)).encode(errors="surrogateescape")).hexdigest()


def _text_digest(text: str | None) -> str | None:
    return None if text is None else hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


def _file_of(name: str) -> str:
    return getattr(sys.modules.get(name), "__file__", None) or ""


def _module_of(value: object) -> str:
    """Return the module that a global name of a file leads to."""
    if isinstance(value, ModuleType):
        return str(vars(value).get("__name__", ""))
    return str(value.__module__ or "") if isinstance(value, type | FunctionType) else ""


def _shown(value: object) -> str:
    return os.fsdecode(value) if isinstance(value, bytes) else str(value)[:200]
