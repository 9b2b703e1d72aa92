"""The user and the program of a process, as far as they can be seen from here."""

import contextlib
import pwd
from pathlib import Path

TEXT_LIMIT = 200


def owner(pid: int) -> tuple[str | None, str | None]:
    """Return the user and the program of a process here; ``None`` for either that cannot be seen."""
    process = Path(f"/proc/{pid}")
    user = program = None
    with contextlib.suppress(OSError):
        user = user_name(process.stat().st_uid)
        program = plain((process / "comm").read_text(errors="replace").strip())
    return user, program


def user_name(uid: int) -> str:
    """Return the name of a user, or the number of a user without a name here."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def plain(text: object) -> str:
    """Shorten a text of others and remove control characters, which a terminal would act on."""
    return "".join(character for character in str(text)[:TEXT_LIMIT] if character.isprintable())
