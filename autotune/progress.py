"""How long work reports what it does: Progress."""

from collections.abc import Callable
from typing import Any, Protocol


class Progress(Protocol):
    """Told of every step; the library itself prints nothing."""

    def event(self, kind: str, **data: Any) -> None:
        """Take note of a step of one of these kinds.

        capture, captured, trial_{started,timing,finished,left_out}, finals_{started,round}, finished, message.
        """
        ...


class Silent:
    """A progress that nobody watches."""

    def event(self, kind: str, **data: Any) -> None:
        """Ignore the event."""


def teller(progress: Progress) -> Callable[[str], None] | None:
    """What shows the user a line; ``None`` if nobody watches the progress, so that the log must."""
    return None if isinstance(progress, Silent) else lambda text: progress.event("message", text=text)
