"""How far a study is, and when it will end: arithmetic on what ``autotune tune`` is told."""

from collections.abc import Callable

UNKNOWN_SHARE = 0.25
"""What has lasted longer than its limit is taken to last for so much of that time again."""


class Estimate:
    """Search until trials or budget are used up, whichever comes first, then finals of limited time.

    ``now`` is a monotonic clock in seconds; ``finals_s`` the usual limit of the finals. ``trials`` and ``spent_s`` of
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
        """Note what earlier runs of the study have used up."""
        self._done, self._earlier_s = trials, spent_s

    def begin_search(self) -> None:
        """Note that the first trial of this run begins; later calls change nothing."""
        if self._search_since is None:
            self._search_since = self._last_trial_at = self._now()

    def end_trial(self, *, counts: bool) -> None:
        """Note that a trial has ended; one that was known already does not count."""
        self.begin_search()
        if counts:
            self._done += 1
            self._done_here += 1
        self._last_trial_at = self._now()

    def begin_finals(self) -> None:
        """Note that the search is over."""
        self._finals_since = self._now()

    @property
    def share(self) -> float:
        """How much of the search is over, by what will end it first: from 0 to 1."""
        if self._finals_since is not None:
            return 1.0
        return min(1.0, max(self._done / self._trials, self._spent_s() / self._budget_s))

    @property
    def left_s(self) -> float | None:
        """Seconds until the end, at most; None before the search has begun. Never below what the finals may take."""
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
    def _left_of(limit_s: float, gone_s: float) -> float:
        """What is left of a limit; what goes beyond it goes on for a while, and the longer it has, the longer."""
        return max(limit_s - gone_s, UNKNOWN_SHARE * gone_s)


def in_words(left_s: float) -> str:
    """Seconds until the end as people say them, rounded up."""
    if left_s < 120:
        return f"about {max(10, 10 * -(-left_s // 10)):.0f} s left"
    minutes = -(-left_s // 60)
    return f"about {minutes:.0f} min left" if minutes < 120 else f"about {minutes / 60:.1f} h left"
