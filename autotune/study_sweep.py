"""Batches doubled until more of them serve no more items a second."""

import logging
from collections.abc import Callable, Iterable, Iterator

from autotune.errors import OutOfMemoryError
from autotune.study_request import StudyOutcome, StudyRequest

log = logging.getLogger(__name__)

GAIN = 0.05
"""A larger batch has to serve so many more items a second, or the sweep ends."""


def sweep(requests: Iterable[StudyRequest], run: Callable[[StudyRequest], StudyOutcome]) -> Iterator[StudyOutcome]:
    """Run studies of growing batches until throughput is saturated or memory is out.

    Raises what the first study raises; a later one that runs out of memory ends the sweep.
    """
    fastest: float | None = None
    for request in requests:
        try:
            outcome = run(request)
        except OutOfMemoryError as error:
            if fastest is None:
                raise
            log.warning("batch %d does not fit: %s", request.batch, error)
            return
        yield outcome
        reached = items_per_s(outcome)
        if fastest is not None and reached < fastest * (1 + GAIN):
            return
        fastest = reached


def items_per_s(outcome: StudyOutcome) -> float:
    """What a plan serves, from its finals."""
    return float(outcome.plan.evidence["objective"]["items_per_s"])


def saturated(outcomes: Iterable[StudyOutcome]) -> StudyOutcome:
    """The study whose plan serves most; at less than :data:`GAIN` between two, the smaller batch."""
    best: StudyOutcome | None = None
    for outcome in outcomes:
        if best is None or items_per_s(outcome) >= items_per_s(best) * (1 + GAIN):
            best = outcome
    if best is None:
        raise ValueError("a sweep has at least one study")
    return best
