import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from autotune.measure.percentiles import (
    Percentiles,
    interval,
    percentile,
    samples_a_round,
    samples_needed,
    summary,
    tail_statistic,
)
from autotune.measure.statistics import median, median_interval

positive = st.floats(min_value=1e-6, max_value=1e6)
quantile = st.floats(min_value=0.01, max_value=0.99)


@pytest.mark.parametrize(("q", "needed"), [(0.5, 11), (0.9, 64), (0.99, 662), (0.999, 6636)])
def test_a_percentile_is_backed_from_exactly_so_many_samples(q, needed):
    samples = list(np.random.default_rng(0).uniform(1, 2, needed))
    assert samples_needed(q) == needed
    assert percentile(samples[:-1], q) is None
    assert percentile(samples, q) == pytest.approx(float(np.quantile(samples, q)))


@given(quantile, st.sampled_from([0.8, 0.95, 0.99]))
def test_the_count_is_the_smallest_with_two_samples_beyond_the_quantile(q, confidence):
    needed = samples_needed(q, confidence)
    tail = min(q, 1 - q)
    assert binom.cdf(1, needed, tail) <= (1 - confidence) * (1 + 1e-9)
    assert needed == 2 or binom.cdf(1, needed - 1, tail) > (1 - confidence) * (1 - 1e-9)
    assert samples_needed(1 - q, confidence) == pytest.approx(needed, rel=1e-9, abs=1)


def test_summary_leaves_out_what_is_not_backed():
    rng = np.random.default_rng(1)
    few, some, many = (list(rng.uniform(1, 2, size)) for size in (10, 661, 7000))
    assert summary(few) == Percentiles(n=10, p50=None, p90=None, p99=None, p999=None)
    assert summary(some).p50 == median(some) and summary(some).p90 is not None and summary(some).p99 is None
    whole = summary(many)
    assert whole.p50 < whole.p90 < whole.p99 < whole.p999 < max(many)
    assert json.loads(json.dumps(summary(some).as_dict())) == {
        "n": 661,
        "p50": summary(some).p50,
        "p90": summary(some).p90,
        "p99": None,
        "p999": None,
    }


@pytest.mark.parametrize("size", [*range(1, 60), 500])
def test_the_interval_of_the_median_is_the_one_of_the_statistics(size):
    samples = list(np.random.default_rng(size).uniform(1, 2, size))
    assert interval(samples, 0.5) == (median_interval(samples) if size >= 6 else None)


@given(st.lists(positive, min_size=1, max_size=120), quantile, st.sampled_from([0.8, 0.95, 0.99]))
def test_the_ranks_of_an_interval_hold_the_confidence(samples, q, confidence):
    samples = [value + index for index, value in enumerate(sorted(samples))]
    found, size, tail = interval(samples, q, confidence), len(samples), (1 - confidence) / 2
    if found is None:
        assert binom.cdf(0, size, q) > tail * (1 - 1e-9) or binom.sf(size - 1, size, q) > tail * (1 - 1e-9)
    else:
        low, high = (samples.index(value) + 1 for value in found)
        assert binom.cdf(low - 1, size, q) <= tail * (1 + 1e-9) and binom.sf(high - 1, size, q) <= tail * (1 + 1e-9)
        assert binom.cdf(low, size, q) > tail * (1 - 1e-9) and binom.sf(high - 2, size, q) > tail * (1 - 1e-9)


def test_the_interval_of_p99_begins_at_368_samples():
    samples = [1.0 + index for index in range(368)]
    assert interval(samples[:-1], 0.99) is None
    assert interval(samples, 0.99)[1] == 368.0


def test_the_interval_covers_the_true_percentile():
    rng, truth, covered = np.random.default_rng(3), math.exp(0.3 * 1.2815515655446004), 0
    for _ in range(200):
        low, high = interval(list(np.exp(rng.normal(0, 0.3, 100))), 0.9)
        covered += low <= truth <= high
    assert covered >= 0.93 * 200


@given(st.lists(positive, min_size=1, max_size=200), quantile)
def test_the_tail_statistic_is_the_next_sample_from_above(block, q):
    value = tail_statistic(block, q)
    below = sum(sample < value for sample in block)
    at_or_below = sum(sample <= value for sample in block)
    assert value in block
    assert at_or_below >= q * len(block) - 1e-6 and (below < q * len(block) or value == min(block))
    if len(block) * (1 - q) < 1 - 1e-6:
        assert value == max(block)


@pytest.mark.parametrize(("size", "q", "rank"), [(100, 0.07, 7), (100, 0.99, 99), (101, 0.99, 100), (1000, 0.999, 999)])
def test_the_tail_statistic_counts_exactly(size, q, rank):
    assert tail_statistic([float(value) for value in range(size, 0, -1)], q) == float(rank)


@pytest.mark.parametrize("size", [3, 10, 30])
def test_the_maximum_of_a_small_block_lies_where_it_is_said_to(size):
    rng = np.random.default_rng(size)
    maxima = [tail_statistic(list(rng.uniform(1, 2, size)), 0.99) - 1 for _ in range(400)]
    assert median(maxima) == pytest.approx(0.5 ** (1 / size), abs=0.02)


def test_samples_of_a_round_add_up_to_what_is_needed():
    assert samples_a_round(0.99, 20) == 34 and samples_a_round(0.99, 100) == 7 and samples_a_round(0.9, 64) == 1
    for rounds in (1, 3, 20, 60, 1000):
        each = samples_a_round(0.999, rounds)
        assert each * rounds >= samples_needed(0.999) > (each - 1) * rounds


@pytest.mark.parametrize("bad", [[], [math.nan], [1.0, math.inf], [0.0], [2.0, -1.0]])
@pytest.mark.parametrize(
    "function", [summary, lambda x: percentile(x, 0.9), lambda x: interval(x, 0.9), lambda x: tail_statistic(x, 0.9)]
)
def test_bad_samples_are_refused(function, bad):
    with pytest.raises(ValueError, match="sample"):
        function(bad)


@pytest.mark.parametrize("bad", [0.0, 1.0, -0.1, 99, math.nan])
@pytest.mark.parametrize(
    "function",
    [
        samples_needed,
        lambda q: samples_needed(0.9, q),
        lambda q: percentile([1.0] * 100, q),
        lambda q: interval([1.0] * 100, q),
        lambda q: interval([1.0] * 100, 0.5, q),
        lambda q: tail_statistic([1.0], q),
        lambda q: samples_a_round(q, 20),
    ],
)
def test_what_lies_outside_0_and_1_is_refused(function, bad):
    with pytest.raises(ValueError, match="between 0 and 1"):
        function(bad)


def test_no_rounds_take_no_samples():
    with pytest.raises(ValueError, match="round"):
        samples_a_round(0.9, 0)
