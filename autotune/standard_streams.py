"""Standard output and error of a program: text that any locale can hold, and writing that outlives its readers.

If the reader of a pipe closes it, the work continues and further output is dropped. A full disk is different, because
the answer is lost: the program reports that at its end, and its exit code is 1.
"""

import codecs
import contextlib
import io
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

ERRORS = "autotune-readable"
"""The codec error handler that replaces characters which an encoding lacks by others that it has."""

READABLE = {
    **dict.fromkeys("‐‑‒–—−─━┄┅┈┉═╌╍╴╶╸╺", "-"),
    **dict.fromkeys("│┃┆┇┊┋║", "|"),
    **dict.fromkeys("┌┐└┘├┤┬┴┼┏┓┗┛┡┩╇╈┳┻╋┠┨┯┷┿╔╗╚╝╠╣╦╩╬╭╮╯╰┢┪┞┦┣┫╞╡╪╒╕╘╛╓╖╙╜╟╢╥╨╫", "+"),
    **dict.fromkeys("█▉▊▋▌▐▬■▪●", "#"),
    **dict.fromkeys("‘’", "'"),
    **dict.fromkeys("“”", '"'),
    **{
        "\N{NO-BREAK SPACE}": " ",
        "×": "x",
        "·": "*",
        "•": "*",
        "÷": "/",
        "…": "...",
        "‖": "||",
        "±": "+/-",
        "†": "(+)",
        "‡": "(++)",
    },
    **{"→": "->", "←": "<-", "≤": "<=", "≥": ">=", "≠": "!=", "≈": "~", "∞": "inf", "√": "sqrt", "Δ": "d"},
    **{"\N{MICRO SIGN}": "u", "\N{GREEK SMALL LETTER MU}": "u", "²": "^2", "³": "^3", "⁸": "^8", "ᵀ": "^T"},
}
"""The substitute of a character in an encoding without it; a character that is not here becomes a backslash escape."""


def readable(text: str, encoding: str) -> str:
    """Return the text as an encoding shows it, so that its width is known before it is written."""
    return text.encode(encoding, errors=ERRORS).decode(encoding)


def run(program: Callable[[], object]) -> NoReturn:
    """Run a program with standard streams that do not fail, and leave by its exit code."""
    _open_missing()
    out, err = _Lasting(1), _Lasting(2)
    sys.stdout, sys.stderr = _text(out, sys.stdout), _text(err, sys.stderr)
    code: object
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
    raise SystemExit(code)


class _Lasting(io.FileIO):
    """A standard stream's descriptor; after a write has failed, further output is dropped.

    ``lost`` is the reason of the failure; it stays empty if the reader has closed the stream.
    """

    def __init__(self, fd: int) -> None:
        super().__init__(fd, "w", closefd=False)
        self._dropping = False
        self.lost = ""

    def write(self, data: "ReadableBuffer") -> int:
        """Write the data, or a part of it, as the base class does."""
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
        """Redirect libraries and child processes to the null device, too."""
        self._dropping = True
        nothing = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        os.dup2(nothing, self.fileno())
        os.close(nothing)


def _open_missing() -> None:
    """Open the null device for each closed standard descriptor, so that no other file gets its number."""
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
    """Return a stream of text with the encoding and the buffering of the earlier one, if there was one."""
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
