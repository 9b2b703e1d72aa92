"""What a user is told of other processes on the device: Notices."""

import logging
import threading
from collections.abc import Callable, Hashable

log = logging.getLogger(__name__)

Tell = Callable[[str], None]
"""Shows a line to the user."""


class Notices:
    """Passes each thing on once, however many steps report it; steps report from several threads."""

    def __init__(self, tell: Tell | None = None) -> None:
        """Without ``tell`` the log gets what is to be said, as a warning."""
        self._tell = tell or log.warning
        self._said: set[Hashable] = set()
        self._lock = threading.Lock()

    def say(self, text: str, *, of: Hashable = None) -> None:
        """Say it unless it was said of the same thing before; without ``of`` it is about itself."""
        with self._lock:
            key = text if of is None else of
            if key in self._said:
                return
            self._said.add(key)
        self._tell(text)
