"""Whose a process is, and which program it runs, as far as that can be seen from here."""

import contextlib
import pwd
from pathlib import Path

TEXT_LIMIT = 200


def owner(pid: int) -> tuple[str | None, str | None]:
    """Name the user and the program of a process here; ``None`` for what cannot be seen."""
    process = Path(f"/proc/{pid}")
    user = program = None
    with contextlib.suppress(OSError):
        user = user_name(process.stat().st_uid)
        program = plain((process / "comm").read_text(errors="replace").strip())
    return user, program


def user_name(uid: int) -> str:
    """The name of a user, or the number of one that has none here."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def plain(text: object) -> str:
    """A text of others, short and without anything that a terminal would act on."""
    return "".join(each for each in str(text)[:TEXT_LIMIT] if each.isprintable())
