"""The user's own files: neither Python's, nor an installed package's, nor autotune's; and the owner of running code."""

import functools
import importlib.util
import os
import site
import sys
import sysconfig
import threading
from collections.abc import Iterable, Iterator
from enum import Enum
from pathlib import Path
from types import FrameType, TracebackType

IMPORTING = "<frozen importlib"
"""The file names of Python's import system begin with this in the frames of a stack."""
LINE_LENGTH = 500
_INSTALLED_PARTS = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")


@functools.cache
def python_folders() -> tuple[str, ...]:
    """Return the folders of Python's own library, each with a separator at its end."""
    return _as_prefixes(sysconfig.get_path(name) for name in ("stdlib", "platstdlib"))


@functools.cache
def installed_folders() -> tuple[str, ...]:
    """Return the folders that packages are installed in, each with a separator at its end."""
    places = [sysconfig.get_path(name) for name in ("purelib", "platlib")]
    return _as_prefixes([*places, *site.getsitepackages(), site.getusersitepackages()])


@functools.cache
def package_folders() -> tuple[str, ...]:
    """Return the folders of autotune itself; in a checkout two of its packages lie beside it."""
    folders = [str(Path(__file__).resolve().parents[1])]
    for name in ("autotune.backends", "autotune.search_spaces"):
        spec = importlib.util.find_spec(name)
        folders += spec.submodule_search_locations or () if spec is not None else ()
    return _as_prefixes(folders)


def is_installed(file: str) -> bool:
    """Return whether an absolute path lies in a folder that packages are installed in."""
    return file.startswith(installed_folders()) or any(part in file for part in _INSTALLED_PARTS)


def is_of_python(file: str) -> bool:
    """Return whether an absolute path lies in Python's own library, installed packages aside."""
    return file.startswith(python_folders()) and not is_installed(file)


def is_of_autotune(file: str) -> bool:
    """Return whether an absolute path belongs to autotune."""
    return file.startswith(package_folders())


@functools.cache
def is_own(file: str) -> bool:
    """Return whether a file is the user's own, by its name in a module or a frame; ``<string>`` and such are not."""
    if not file or file.startswith("<"):
        return False
    path = os.path.abspath(file)
    return not (is_installed(path) or is_of_python(path) or is_of_autotune(path))


class Initiator(Enum):
    """On whose behalf something is done."""

    USER = "a user's own code"
    IMPORT = "the import of a module"
    AUTOTUNE = "autotune"
    THREAD = "a thread in which none of these is"
    NOBODY = "none of these"


def initiator(watchers: tuple[str, ...], near: int | None = None) -> Initiator:
    """Return the party for which the caller runs, by the innermost deciding frame of the ``near`` innermost or of all.

    Frames of the files ``watchers`` are skipped. The version of an installed package covers its actions at import, and
    the digests of the sources cover the import system's own look-ups.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename in watchers:
        frame = frame.f_back
    seen = 0
    while frame is not None and (near is None or seen < near):
        file = frame.f_code.co_filename
        if is_own(file) or file == "<stdin>":
            return Initiator.USER
        if file.startswith(IMPORTING):
            return Initiator.IMPORT
        if is_of_autotune(file):
            return Initiator.AUTOTUNE
        frame, seen = frame.f_back, seen + 1
    in_thread = frame is None and threading.current_thread() is not threading.main_thread()
    return Initiator.THREAD if in_thread else Initiator.NOBODY


def own_place(trace: TracebackType | None) -> str:
    """Return file and line of the last frame of a traceback in a file of the user's, or an empty text."""
    places = [(frame.tb_frame.f_code.co_filename, frame.tb_lineno) for frame in _frames(trace)]
    own = [f"{file}, line {line}" for file, line in places if is_own(file)]
    return own[-1] if own else ""


def described(error: BaseException) -> str:
    """Return type, first line and place in the user's own files of an error."""
    lines = [line.strip() for line in _text(error).splitlines() if line.strip()]
    text = f"{type(error).__name__}: {lines[0][:LINE_LENGTH]}" if lines else type(error).__name__
    place = own_place(error.__traceback__)
    if isinstance(error, SyntaxError) and error.filename:
        place = f"{error.filename}, line {error.lineno}"
    return f"{text} ({place})" if place else text


def _text(error: BaseException) -> str:
    if isinstance(error, SystemExit) and (message := _of_argparse(error)):
        return f"{error.code}, after argparse said: {message}"
    try:
        return str(error)
    except Exception:  # the text is made by the user's class
        return ""


def _of_argparse(error: SystemExit) -> str:
    """Return the message that a parser of a command line printed before it ended the program."""
    for frame in _frames(error.__traceback__):
        code = frame.tb_frame.f_code
        if code.co_name == "error" and os.path.basename(code.co_filename) == "argparse.py":
            return str(frame.tb_frame.f_locals.get("message", ""))
    return ""


def _frames(trace: TracebackType | None) -> Iterator[TracebackType]:
    while trace is not None:
        yield trace
        trace = trace.tb_next


def _as_prefixes(folders: Iterable[str]) -> tuple[str, ...]:
    places = {place for folder in folders if folder for place in (os.path.abspath(folder), os.path.realpath(folder))}
    return tuple(sorted(folder + os.sep for folder in places))
