import math

import pytest

from autotune.records.configuration import Configuration
from autotune.search.history import TrialOutcome

POINT = Configuration.of("eager", {"threads": 2})


def test_a_complete_outcome_needs_a_score() -> None:
    with pytest.raises(ValueError, match="needs a score"):
        TrialOutcome(configuration=POINT, state="complete")


@pytest.mark.parametrize("score", [math.inf, math.nan, 0.0, -1.0])
def test_a_latency_that_is_no_positive_number_is_refused(score: float) -> None:
    with pytest.raises(ValueError, match="positive and finite"):
        TrialOutcome(configuration=POINT, state="complete", score=score)


@pytest.mark.parametrize("build_s", [math.inf, math.nan, -1.0])
def test_a_build_time_that_is_no_duration_is_refused(build_s: float) -> None:
    with pytest.raises(ValueError, match="build time"):
        TrialOutcome(configuration=POINT, state="failed", build_s=build_s)


def test_a_trial_under_way_is_no_outcome() -> None:
    with pytest.raises(ValueError, match="running"):
        TrialOutcome(configuration=POINT, state="running")  # type: ignore[arg-type]
