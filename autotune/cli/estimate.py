"""The progress of a study and the time until its end, computed from the events of its search."""

from collections.abc import Callable

UNKNOWN_SHARE = 0.25
"""A phase that has lasted longer than its limit is expected to last for this share of its duration again."""


class Estimate:
    """An estimate for a search until its trials or its budget are used up, followed by finals of limited time.

    ``now`` is a monotonic clock in seconds; ``finals_s`` is the usual limit of the finals. The trials and the time of
    earlier runs count, as they do for the study.
    """

    def __init__(self, *, trials: int, budget_s: float, finals_s: float, now: Callable[[], float]) -> None:
        self._trials, self._budget_s, self._finals_s, self._now = trials, budget_s, finals_s, now
        self._earlier_s = 0.0
        self._done = self._done_here = 0
        self._search_since: float | None = None
        self._last_trial_at = 0.0
        self._finals_since: float | None = None

    def resume(self, *, trials: int, spent_s: float) -> None:
        """Add the trials and the seconds of search that earlier runs of the study have used up."""
        self._done, self._earlier_s = trials, spent_s

    def begin_search(self) -> None:
        """Record that the first trial of this run begins; later calls change nothing."""
        if self._search_since is None:
            self._search_since = self._last_trial_at = self._now()

    def end_trial(self, *, counts: bool) -> None:
        """Record that a trial has ended; a trial that another study had finished does not count."""
        self.begin_search()
        if counts:
            self._done += 1
            self._done_here += 1
        self._last_trial_at = self._now()

    def begin_finals(self) -> None:
        """Record that the search is over and the finals begin."""
        self._finals_since = self._now()

    @property
    def share(self) -> float:
        """The share of the search that is over, from 0 to 1: of its trials or of its budget, whichever is larger."""
        if self._finals_since is not None:
            return 1.0
        return min(1.0, max(self._done / self._trials, self._spent_s() / self._budget_s))

    @property
    def left_s(self) -> float | None:
        """The seconds until the end, the finals with all their time included; None before the search has begun."""
        if self._finals_since is not None:
            return self._left_of(self._finals_s, self._now() - self._finals_since)
        if self._search_since is None:
            return None
        return self._search_left_s() + self._finals_s

    def _search_left_s(self) -> float:
        assert self._search_since is not None
        by_budget = max(0.0, self._budget_s - self._spent_s())
        if not self._done_here:
            return by_budget
        here_s = self._last_trial_at - self._search_since
        waiting_s = self._now() - self._last_trial_at
        left_of_trials = max(0, self._trials - self._done) * here_s / self._done_here
        return min(by_budget, max(0.0, left_of_trials - waiting_s))

    def _spent_s(self) -> float:
        here_s = 0.0 if self._search_since is None else self._now() - self._search_since
        return self._earlier_s + here_s

    @staticmethod
    def _left_of(limit_s: float, elapsed_s: float) -> float:
        # Past the limit the expected rest grows with the time that has passed.
        return max(limit_s - elapsed_s, UNKNOWN_SHARE * elapsed_s)


def in_words(left_s: float) -> str:
    """Return the time until the end for people to read, rounded up: ``about 40 s left``."""
    if left_s < 120:
        return f"about {max(10, 10 * -(-left_s // 10)):.0f} s left"
    minutes = -(-left_s // 60)
    return f"about {minutes:.0f} min left" if minutes < 120 else f"about {minutes / 60:.1f} h left"
