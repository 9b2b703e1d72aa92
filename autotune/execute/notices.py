"""Lines for the user about other processes on the device: Notices."""

import logging
import threading
from collections.abc import Callable, Hashable

log = logging.getLogger(__name__)

Tell = Callable[[str], None]
"""Shows a line to the user."""


class Notices:
    """Shows each line once, however many steps report it; steps report from several threads."""

    def __init__(self, tell: Tell | None = None) -> None:
        """Without ``tell`` the log gets each line, as a warning."""
        self._tell = tell or log.warning
        self._said: set[Hashable] = set()
        self._lock = threading.Lock()

    def say(self, text: str, *, of: Hashable = None) -> None:
        """Show a line unless one about the same thing was shown; without ``of`` that is a line of the same text."""
        with self._lock:
            key = text if of is None else of
            if key in self._said:
                return
            self._said.add(key)
        self._tell(text)
