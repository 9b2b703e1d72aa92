"""Turns on a device that need no lock: they record what happens in them."""

import contextlib
import time


class RecordedTurns:
    """Makes the contexts of turns; ``events`` has the begin and the end of each turn, and what a test adds.

    ``depth`` is the number of contexts that are open, ``held_s`` the seconds of all turns that have ended.
    """

    def __init__(self):
        self.events, self.depth, self.held_s = [], 0, 0.0
        self._since_s = 0.0

    @contextlib.contextmanager
    def __call__(self):
        if not self.depth:
            self.events.append("begin")
            self._since_s = time.monotonic()
        self.depth += 1
        try:
            yield
        finally:
            self.depth -= 1
            if not self.depth:
                self.events.append("end")
                self.held_s += time.monotonic() - self._since_s
