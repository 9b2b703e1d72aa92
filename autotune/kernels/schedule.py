"""The order in which the device times the problems of a tuning: Standing, next_session.

A session times one problem: it draws operands and computes a reference, then checks and times candidates, one after the
other. A problem's libraries' calls and its first builds are timed in one session, so a session begins as soon as enough
of its builds are compiled. While none is, the device times what there is: it never waits for a compiler as long as
anything can be timed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from autotune.kernels.portfolio import ENOUGH, FIRST_GAIN


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """A problem's state.

    ``share`` of the model's time in kernels; ``timed`` builds of ours; ``ready`` builds that are compiled and not
    timed; ``calls`` of libraries that are not timed. ``outstanding`` means that builds for it may still be compiled.
    ``gain`` is the expected improvement of its log time by the best build that is ready, or by other launches.
    """

    share: float
    timed: int
    ready: int
    calls: int
    outstanding: bool
    gain: float

    @property
    def is_complete(self) -> bool:
        """Whether one session can time enough builds, or all that there will be."""
        return self.timed + self.ready >= ENOUGH or not self.outstanding


LEAST_GAIN = 0.0001
"""The share of the model's time in kernels that one more session must be expected to save."""


def next_session(standings: Sequence[Standing]) -> int | None:
    """Return the number of the problem that is timed next; ``None`` if there is nothing to time that promises enough.

    First a problem that gets all its first builds, the one with the largest share, unless another that has had them
    promises more: its kernels may need to be launched in another way, such as with k split. Then the one that promises
    most; then one that gets some of its first builds, or its libraries' calls, because nothing else is ready: the
    problem with the smallest share, whose builds come last.
    """
    numbers = range(len(standings))
    first = [
        number for number in numbers
        if standings[number].timed < ENOUGH and (standings[number].ready or standings[number].calls)
    ]  # fmt: skip
    later = [number for number in numbers if number not in first and not standings[number].calls]
    best = max(later, key=lambda number: _promise(standings[number]), default=None)
    promise = 0.0 if best is None else _promise(standings[best])
    complete = [number for number in first if standings[number].is_complete]
    if complete:
        next_one = max(complete, key=lambda number: standings[number].share)
        if promise <= FIRST_GAIN * standings[next_one].share:
            return next_one
    if promise > LEAST_GAIN:
        return best
    called = [number for number in numbers if standings[number].calls]
    if called:
        return min(called, key=lambda number: (standings[number].ready > 0, standings[number].share))
    return max(first, key=lambda number: (standings[number].ready, standings[number].share), default=None)


def _promise(standing: Standing) -> float:
    return standing.share * standing.gain
