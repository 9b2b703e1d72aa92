"""Studies of doubled batches, until a larger batch serves no more items a second."""

import logging
from collections.abc import Callable, Iterable, Iterator

from autotune.errors import OutOfMemoryError
from autotune.study.request import StudyOutcome, StudyRequest

log = logging.getLogger(__name__)

GAIN = 0.05
"""The least gain in items a second of a larger batch, as a share; with less, the sweep ends."""


def sweep(requests: Iterable[StudyRequest], run: Callable[[StudyRequest], StudyOutcome]) -> Iterator[StudyOutcome]:
    """Run studies of growing batches until throughput is saturated or memory is used up.

    An OutOfMemoryError of the first study is raised; a later one ends the sweep. Any other error is raised. After an
    undecided study, which has no throughput to compare, the next batch follows.
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
        if (reached := items_per_s(outcome)) is None:
            continue
        if fastest is not None and reached < fastest * (1 + GAIN):
            return
        fastest = reached


def items_per_s(outcome: StudyOutcome) -> float | None:
    """Return the items a second that a study's plan serves, from its finals; ``None`` if they could not decide."""
    if outcome.plan is None or outcome.undecided or outcome.plan.evidence.objective is None:
        return None
    return outcome.plan.evidence.objective.items_per_s


def saturated(outcomes: Iterable[StudyOutcome]) -> StudyOutcome | None:
    """Return the study whose plan serves most; if two differ by less than :data:`GAIN`, that of the smaller batch.

    ``None`` if no study of the sweep was decided.
    """
    best: tuple[float, StudyOutcome] | None = None
    for outcome in outcomes:
        served = items_per_s(outcome)
        if served is not None and (best is None or served >= best[0] * (1 + GAIN)):
            best = served, outcome
    return None if best is None else best[1]
