import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from autotune.measure.statistics import (
    detectable_effect,
    holm,
    interval_rank,
    median,
    median_interval,
    paired_test,
    process_variance,
    relative_half_width,
)

positive = st.floats(min_value=1e-6, max_value=1e6)


@given(st.lists(positive, min_size=1, max_size=200))
def test_median_and_its_interval_agree_with_numpy(samples):
    low, high = median_interval(samples)
    assert median(samples) == pytest.approx(float(np.median(samples)))
    assert low in samples and high in samples and low <= median(samples) <= high


@pytest.mark.parametrize("size", [*range(6, 80), 1000, 6636, 20001])
@pytest.mark.parametrize("confidence", [0.95, 0.99])
def test_interval_rank_is_the_exact_binomial_one(size, confidence):
    tail, rank = (1 - confidence) / 2, interval_rank(size, confidence)
    if rank > 1:
        assert binom.cdf(rank - 1, size, 0.5) <= tail
    assert binom.cdf(rank, size, 0.5) > tail


def test_interval_of_few_samples_is_their_range():
    assert median_interval([3.0, 1.0, 2.0]) == (1.0, 3.0)
    assert median_interval([5.0]) == (5.0, 5.0)


def test_interval_covers_the_true_median():
    rng = np.random.default_rng(3)
    true_median, repeats, covered = 2.0, 200, 0
    for _ in range(repeats):
        low, high = median_interval(list(true_median * np.exp(rng.normal(0, 0.3, 40))))
        covered += low <= true_median <= high
    assert covered >= 0.93 * repeats


def test_relative_half_width():
    ordered = [float(value) for value in range(1, 101)]
    low, high = median_interval(ordered)
    assert relative_half_width(ordered) == pytest.approx((high - low) / 2 / 50.5)


@pytest.mark.parametrize("bad", [[], [math.nan], [1.0, math.inf], [0.0], [2.0, -1.0]])
@pytest.mark.parametrize("function", [median, median_interval])
def test_bad_samples_are_refused(function, bad):
    with pytest.raises(ValueError):
        function(bad)


@pytest.mark.parametrize(
    "call",
    [
        lambda: median_interval([1.0], confidence=1.0),
        lambda: paired_test([math.nan]),
    ],
)
def test_bad_arguments_are_refused(call):
    with pytest.raises(ValueError):
        call()


@pytest.mark.parametrize("size", [5, 6, 7, 10])
def test_paired_test_is_exact_where_all_pairs_point_one_way(size):
    assert paired_test([0.01 * (index + 1) for index in range(size)]) == pytest.approx(2 / 2**size)
    assert paired_test([0.01] * size) == pytest.approx(2 / 2**size)


def test_paired_test_ignores_equal_pairs():
    told = [0.1, -0.2, 0.3, 0.4, 0.5, 0.6, 0.7]
    assert paired_test([0.0, 0.0, *told]) == paired_test(told)
    assert paired_test([0.0] * 9) == 1.0


def test_five_looks_at_pocock_s_bound_hold_the_false_positive_rate():
    rng = np.random.default_rng(11)
    rejected = 0
    for _ in range(400):
        ratios = rng.standard_t(3, 100) * 0.01
        rejected += any(paired_test(ratios[:look].tolist()) < 0.0158 for look in (20, 40, 60, 80, 100))
    assert rejected <= 31


def test_holm_against_a_worked_example():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


@given(st.lists(st.floats(min_value=0, max_value=1), min_size=1, max_size=12))
def test_holm_keeps_order_and_never_lowers(p_values):
    adjusted = holm(p_values)
    assert all(p <= a <= 1 for p, a in zip(p_values, adjusted, strict=True))
    pairs = sorted(zip(p_values, adjusted, strict=True))
    assert [a for _, a in pairs] == sorted(adjusted)


def test_detectable_effect_of_normal_noise_and_of_outliers():
    ratios = np.random.default_rng(5).normal(0, 0.01, 4000)
    expected = 2.8 * 0.01 / math.sqrt(4000)
    assert detectable_effect(list(ratios)) == pytest.approx(expected, rel=0.05)
    ratios[:200] += 3.0
    assert detectable_effect(list(ratios)) == pytest.approx(expected, rel=0.15)
    assert detectable_effect([0.1]) == math.inf


def test_what_processes_differ_by_is_told_from_what_their_rounds_differ_by():
    rng, processes = np.random.default_rng(6), np.repeat(range(200), 20)
    for between, within in ((0.01, 0.01), (0.02, 0.005), (0.003, 0.02)):
        ratios = rng.normal(0, between, 200)[processes] + rng.normal(0, within, 4000)
        found = process_variance(list(ratios), list(processes), within**2)
        assert math.sqrt(200 * found) == pytest.approx(between, rel=0.25)
        expected = 2.8 * math.sqrt(between**2 / 200 + within**2 / 4000)
        assert detectable_effect(list(ratios), list(processes)) == pytest.approx(expected, rel=0.2)


def test_processes_that_do_not_differ_change_nothing():
    ratios, processes = [0.01, 0.02, 0.03] * 4, [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    assert process_variance(ratios, processes) == 0.0
    assert detectable_effect(ratios, processes) == detectable_effect(ratios)
    noise = list(np.random.default_rng(7).normal(0, 0.01, 12))
    assert process_variance(noise, processes, 1.0) == 0.0 < process_variance(noise, processes)


@pytest.mark.parametrize("processes", [None, [4] * 6, [3, 1, 2, 0, 5, 4]])
def test_one_process_and_one_pair_a_process_say_nothing_of_processes(processes):
    ratios = [0.01, 0.05, -0.02, 0.04, 0.0, 0.9]
    assert process_variance(ratios, processes) == 0.0
    assert detectable_effect(ratios, processes) == detectable_effect(ratios)


def test_a_process_with_most_of_the_pairs_counts_for_most_of_them():
    even = process_variance([0.0, 0.0, 0.03, 0.03], [0, 0, 1, 1])
    assert even == pytest.approx(0.03**2 / 2 / 2)
    assert process_variance([0.0] + [0.03] * 9, [0] + [1] * 9) == pytest.approx(0.03**2 / 2 * 0.82)


def test_each_pair_has_a_process():
    with pytest.raises(ValueError):
        process_variance([0.1, 0.2, 0.3], [0, 1])


def test_an_effect_is_found_in_four_of_five_repeats_at_the_predicted_size():
    rng, sd, effect = np.random.default_rng(17), 0.03, 0.01
    size = math.ceil((2.8 * sd / effect) ** 2)
    found = sum(paired_test(list(rng.normal(effect, sd, size))) < 0.05 for _ in range(200))
    # Wilcoxon's test is 95% as efficient as the t test from which 2.8 comes: 78% expected, less three deviations.
    assert found >= 0.69 * 200
