import math

import numpy as np
import pytest

from autotune.measure.stopping import FirstOf, Hopeless, IntervalReached, NoiseSettled, TimeLimit
from autotune.testing import FakeClock


def run(rule, samples):
    """How many samples the rule took, and its reason."""
    for count, sample in enumerate(samples, start=1):
        rule.observe(sample)
        reason = rule.finished()
        if reason is not None:
            return count, reason
    return len(samples), None


def test_interval_needs_samples_time_and_precision():
    assert run(IntervalReached(), [5.0] * 100) == (30, "interval reached")
    assert run(IntervalReached(), [2.0] * 100) == (50, "interval reached")
    assert run(IntervalReached(calls=2), [2.0] * 100) == (30, "interval reached")
    rng = np.random.default_rng(0)
    assert run(IntervalReached(), list(np.exp(rng.normal(0, 2, 200))))[1] is None


def test_interval_stops_when_the_median_is_known_to_a_percent():
    from autotune.measure.statistics import median_interval

    samples = list(10 * np.exp(np.random.default_rng(2).normal(0, 0.08, 5000)))
    count, reason = run(IntervalReached(), samples)
    low, high = median_interval(samples[:count])
    assert reason == "interval reached" and count > 100
    assert (high - low) / 2 <= 0.01 * 10.2


def test_noise_that_wanders_is_settled_and_independent_noise_is_not():
    rng = np.random.default_rng(4)
    wander = 10 * np.exp(np.cumsum(rng.normal(0, 0.03, 3000)))
    count, reason = run(NoiseSettled(), list(wander))
    assert reason == "noise settled" and count >= 240
    independent = 10 * np.exp(rng.normal(0, 0.05, 1000))
    assert run(NoiseSettled(), list(independent))[1] is None


def test_time_limit_counts_from_when_it_was_made_but_grants_three_samples():
    clock = FakeClock()
    rule = TimeLimit(clock, 2.0)
    for finished in (None, None, "time limit"):
        clock.advance(5000)
        rule.observe(5000)
        assert rule.finished() == finished
    clock = FakeClock()
    rule = TimeLimit(clock, 2.0)
    for _ in range(10):
        rule.observe(1.0)
    clock.advance(1999.999)
    assert rule.finished() is None
    clock.advance(0.001)
    assert rule.finished() == "time limit"


def test_hopeless_needs_five_samples_all_slower():
    assert run(Hopeless(10.0), [11.0] * 9)[0] == 5
    assert run(Hopeless(10.0), [11.0, 9.0, *[11.0] * 9])[1] is None


def test_first_of_gives_the_first_reason():
    clock = FakeClock()
    rule = FirstOf([Hopeless(1.0, min_samples=2), TimeLimit(clock, 1.0, min_samples=1)])
    rule.observe(5.0)
    assert rule.finished() is None
    clock.advance(2000)
    assert rule.finished() == "time limit"
    rule.observe(5.0)
    assert "slower" in rule.finished()


@pytest.mark.parametrize(
    "make",
    [
        lambda: IntervalReached(0.0),
        lambda: IntervalReached(min_samples=1),
        lambda: NoiseSettled(shrink=1.0),
        lambda: TimeLimit(FakeClock(), 0.0),
        lambda: TimeLimit(FakeClock(), math.nan),
        lambda: Hopeless(-1.0),
        lambda: FirstOf([]),
    ],
)
def test_bad_settings_are_refused(make):
    with pytest.raises(ValueError):
        make()


@pytest.mark.parametrize("rule", [IntervalReached(), NoiseSettled()])
@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan])
def test_bad_samples_are_refused(rule, bad):
    with pytest.raises(ValueError):
        rule.observe(bad)
