"""The time that a step has worked on an order: StepClock."""


class StepClock:
    """The time that a step has spent on an order; it stands still while the step waits for the device.

    An order is a step, or one request to a running step. No message of a step begins another order. Waiting counts as
    work once it has added up to ``wait_limit_s``, so that a step that only reports waiting ends too. Moments are
    monotonic seconds; a moment that the step states is never earlier than the one before, and never in the future.
    """

    def __init__(self, now_s: float, wait_limit_s: float) -> None:
        self._wait_limit_s = wait_limit_s
        self._waits_from: float | None = None
        self.begin_order(now_s)

    def begin_order(self, now_s: float) -> None:
        """Start at zero: the step gets an order."""
        self._began = self._known_to = now_s
        self._waited_s, self._part_from_s = 0.0, 0.0
        if self._waits_from is not None:
            self._waits_from = now_s

    def begin_part(self, now_s: float) -> None:
        """Start a part of the order; the coordinator expected it."""
        self._part_from_s = self.order_s(now_s)

    def wait(self, at_s: float, now_s: float) -> None:
        """Note that the step reports waiting since a moment; a step that waits already continues to wait."""
        if self._waits_from is None:
            self._waits_from = self._known_to = self._clamped(at_s, now_s)

    def work(self, at_s: float, now_s: float) -> None:
        """Note that the step reports work since a moment."""
        if self._waits_from is not None:
            self._known_to = self._clamped(at_s, now_s)
            self._waited_s += self._known_to - self._waits_from
            self._waits_from = None

    def waited_s(self, now_s: float) -> float:
        """Return the seconds of waiting in this order that count for no limit."""
        waits_s = 0.0 if self._waits_from is None else now_s - self._waits_from
        return min(self._waited_s + waits_s, self._wait_limit_s)

    def order_s(self, now_s: float) -> float:
        """Return the seconds of work since the order."""
        return now_s - self._began - self.waited_s(now_s)

    def part_s(self, now_s: float) -> float:
        """Return the seconds of work since the last part of the order began, or since the order."""
        return self.order_s(now_s) - self._part_from_s

    def _clamped(self, at_s: float, now_s: float) -> float:
        return min(max(at_s, self._known_to), now_s)
