"""Standard output and error of a program: text that any locale can hold, and writing that outlives its readers.

A reader of a pipe that has seen enough does not end the work: what is written after that is dropped. A full disk is
different, for the answer was lost: the program says so at its end, and its exit code is 1.
"""

import codecs
import contextlib
import io
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn, TextIO

ERRORS = "autotune-readable"
"""The codec error handler that writes what an encoding cannot hold in characters that it can."""

READABLE = {
    **dict.fromkeys("‐‑‒–—−─━┄┅┈┉═╌╍╴╶╸╺", "-"),
    **dict.fromkeys("│┃┆┇┊┋║", "|"),
    **dict.fromkeys("┌┐└┘├┤┬┴┼┏┓┗┛┡┩╇╈┳┻╋┠┨┯┷┿╔╗╚╝╠╣╦╩╬╭╮╯╰┢┪┞┦┣┫╞╡╪╒╕╘╛╓╖╙╜╟╢╥╨╫", "+"),
    **dict.fromkeys("█▉▊▋▌▐▬■▪●", "#"),
    **dict.fromkeys("‘’", "'"),
    **dict.fromkeys("“”", '"'),
    **{"\N{NO-BREAK SPACE}": " ", "×": "x", "·": "*", "•": "*", "÷": "/", "…": "...", "‖": "||", "±": "+/-"},
    **{"→": "->", "←": "<-", "≤": "<=", "≥": ">=", "≠": "!=", "≈": "~", "∞": "inf", "√": "sqrt", "Δ": "d"},
    **{"\N{MICRO SIGN}": "u", "\N{GREEK SMALL LETTER MU}": "u", "²": "^2", "³": "^3", "⁸": "^8", "ᵀ": "^T"},
}
"""What stands for a character in an encoding without it; whatever is not here becomes a backslash escape."""


def readable(text: str, encoding: str) -> str:
    """The text as an encoding shows it, so that its width is known before it is written."""
    return text.encode(encoding, errors=ERRORS).decode(encoding)


def run(program: Callable[[], object]) -> NoReturn:
    """Run a program with standard streams that do not fail, and leave by its exit code."""
    _open_missing()
    out, err = _Lasting(1), _Lasting(2)
    sys.stdout, sys.stderr = _text(out, sys.stdout), _text(err, sys.stderr)
    code: Any
    try:
        code = program()
    except SystemExit as left:
        code = left.code
    if isinstance(code, str):
        sys.stderr.write(code + "\n")
        code = 1
    sys.stdout.flush()
    if out.lost and not code:
        sys.stderr.write(
            f"error: the answer could not be written to standard output\n  found: {out.lost}\n"
            "  expected: room for all of it; what the command has stored is kept\n"
        )
        code = 1
    sys.stderr.flush()
    sys.exit(code)


class _Lasting(io.FileIO):
    """A standard stream's descriptor; once it cannot be written to, what is written is dropped.

    ``lost`` is why it cannot be written to, unless only its reader has gone.
    """

    def __init__(self, fd: int) -> None:
        super().__init__(fd, "w", closefd=False)
        self._dropping = False
        self.lost = ""

    def write(self, data: Any) -> int:
        """Write a part of the data at most, as the base class does."""
        if not self._dropping:
            try:
                return super().write(data)
            except (BrokenPipeError, ConnectionResetError):
                self._drop()
            except BlockingIOError:
                raise
            except OSError as error:
                self.lost = error.strerror or str(error)
                self._drop()
        return memoryview(data).nbytes

    def _drop(self) -> None:
        """Have libraries and child processes write to nothing, too."""
        self._dropping = True
        nothing = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        os.dup2(nothing, self.fileno())
        os.close(nothing)


def _open_missing() -> None:
    """Give each standard descriptor that is closed a file without content, so that no other file gets its number."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            nothing = os.open(os.devnull, os.O_RDWR)
            if nothing != fd:
                os.dup2(nothing, fd)
                os.close(nothing)
            os.set_inheritable(fd, True)


def _text(raw: _Lasting, before: TextIO | None) -> TextIO:
    """A stream of text with the encoding and the buffering of the one before, if there was one."""
    if before is not None:
        with contextlib.suppress(OSError):
            before.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(raw), encoding=getattr(before, "encoding", None) or "utf-8", errors=ERRORS,
        line_buffering=getattr(before, "line_buffering", True),
    )  # fmt: skip


def _replace(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = "".join(
        READABLE.get(each) or each.encode("ascii", "backslashreplace").decode()
        for each in error.object[error.start : error.end]
    )
    return text, error.end


codecs.register_error(ERRORS, _replace)
