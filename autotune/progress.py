"""The protocol by which long work reports its progress: Progress."""

from collections.abc import Callable
from typing import Protocol


class Progress(Protocol):
    """Receives an event for every step of the work; the library itself prints nothing."""

    def event(self, kind: str, **data: object) -> None:
        """Note a step of one of these kinds.

        capture, captured, trial_{started,timing,finished,left_out}, finals_{started,round}, finished, message.
        """
        ...


class Silent:
    """A progress that nobody watches."""

    def event(self, kind: str, **data: object) -> None:
        """Ignore the event."""


def message_reporter(progress: Progress) -> Callable[[str], None] | None:
    """Return a function that shows the user a line; ``None`` if nobody watches the progress, so that the log must."""
    return None if isinstance(progress, Silent) else lambda text: progress.event("message", text=text)
