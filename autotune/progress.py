"""The protocol by which long work reports its progress: Progress, Silent, OneAtATime."""

import threading
from collections.abc import Callable
from typing import Protocol


class Progress(Protocol):
    """Receives an event for every step of the work; the library itself prints nothing."""

    def event(self, kind: str, **data: object) -> None:
        """Note a step of one of the kinds below; a receiver leaves out kinds that it does not know.

        A study has ``capture`` (name, batch, request), ``captured`` (workload), ``trial_started`` and ``trial_timing``
        (number, configuration), ``trial_finished`` (trial, best_ms), ``trial_left_out`` (trial, text),
        ``finals_started`` (count), ``finals_round`` (rounds, elapsed_s) and ``finished`` (outcome). The tuning of
        kernels has ``kernels_timed`` (problem, count), ``kernel_tried`` (trial, best_us) and ``kernels_compared``
        (final). ``message`` (text) is a line for the user.
        """
        ...


class Silent:
    """A progress that no program shows."""

    def event(self, kind: str, **data: object) -> None:
        """Ignore the event."""


class OneAtATime:
    """Passes on events of several threads one at a time, so that the receiver needs no lock."""

    def __init__(self, receiver: Progress) -> None:
        self._receiver, self._lock = receiver, threading.RLock()

    def event(self, kind: str, **data: object) -> None:
        """Pass the event on; raises what the receiver raises."""
        with self._lock:
            self._receiver.event(kind, **data)


def message_sender(progress: Progress) -> Callable[[str], None] | None:
    """Return a function that shows the user a line; ``None`` if no program shows the progress: then the log does."""
    return None if isinstance(progress, Silent) else lambda text: progress.event("message", text=text)
