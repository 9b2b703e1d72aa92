import math
import random
from statistics import median

import pytest

from autotune.programs.selftest import coverage
from autotune.programs.selftest.rig import Rig


@pytest.mark.parametrize(("draw", "truth"), [(coverage.skewed, 1.0), (coverage.bimodal, coverage._BIMODAL_MEDIAN)])
def test_the_noise_has_the_median_that_it_is_said_to_have(draw, truth):
    rng = random.Random(0)
    assert median(draw(rng) for _ in range(100_001)) == pytest.approx(truth, rel=2e-3)


def test_intervals_hold_the_truth_of_known_noise_and_of_a_recording(monkeypatch):
    rng = random.Random(1)
    monkeypatch.setattr(coverage, "_recording", lambda rig: [math.exp(rng.gauss(0, 0.1)) for _ in range(800)])
    outcomes = coverage.check(Rig("cpu", quick=True))
    assert [outcome.check for outcome in outcomes] == [
        "coverage/skewed noise",
        "coverage/bimodal noise",
        "coverage/recorded",
    ]
    assert all(outcome.passed for outcome in outcomes), [outcome.figure for outcome in outcomes]


def test_an_interval_that_is_too_narrow_fails(monkeypatch):
    def narrow(samples):
        return coverage.median(samples) * 0.999, coverage.median(samples) * 1.001

    monkeypatch.setattr(coverage, "median_interval", narrow)
    monkeypatch.setattr(coverage, "_recording", lambda rig: [1.0 + 0.01 * i for i in range(800)])
    assert not any(outcome.passed for outcome in coverage.check(Rig("cpu", quick=True)))
