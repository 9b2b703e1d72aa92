import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autotune.measure.paired import ALPHA, APART, HIDDEN_MARGIN, LOAD_MARGIN, MATERIAL, RoundFigures
from autotune.measure.statistics import processes_apart
from autotune.measure.verdict import verdict_from_samples

FIVE = [process for process in range(5) for _ in range(4)]


def race(lead, processes, seed=0, offsets=None, noise=0.01):
    """A baseline of 10 ms and a candidate, one sample a block; ``offsets`` are log-ratios of each process."""
    rng = np.random.default_rng(seed)
    ahead = [(offsets or {}).get(process, 0.0) for process in processes]
    return {
        "eager": [[10 * math.exp(rng.normal(0, noise))] for _ in processes],
        "fast": [[10 * math.exp(-lead + extra + rng.normal(0, noise))] for extra in ahead],
    }


@pytest.mark.parametrize("whom", ["eager", "fast", "both"])
@pytest.mark.parametrize("bad", range(5))
def test_a_lead_is_found_whichever_of_five_processes_is_ten_times_slower(whom, bad):
    samples = race(math.log(1.5), FIVE)
    for name in samples if whom == "both" else [whom]:
        samples[name] = [
            [10 * block[0]] if process == bad else block for block, process in zip(samples[name], FIVE, strict=True)
        ]
    verdict = verdict_from_samples(samples, baselines=["eager"], processes=FIVE)
    assert (verdict.winner, verdict.status) == ("fast", "promoted")
    assert verdict.disturbed == (() if whom == "both" else (bad,))
    assert verdict.speedup == pytest.approx(1.5, rel=0.02)


def test_the_seen_cases_1_11_against_0_024_and_44_against_0_03():
    for slow_ms, fast_ms in ((1.11, 0.024), (44.0, 0.03)):
        samples = {"eager": [[slow_ms]] * 20, "fast": [[fast_ms]] * 20}
        samples["fast"][8:12] = [[slow_ms * 3]] * 4
        verdict = verdict_from_samples(samples, baselines=["eager"], processes=FIVE)
        assert (verdict.status, verdict.disturbed) == ("promoted", (2,))


def test_two_processes_that_agree_by_chance_set_none_aside():
    processes = [0] * 7 + [1] * 7 + [2] * 6
    samples = race(0.0, processes, offsets={0: -0.4, 1: -0.4})
    verdict = verdict_from_samples(samples, baselines=["eager"], processes=processes)
    assert verdict.status == "undecided" and verdict.disturbed == ()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=1, max_size=9), st.floats(-5, 5))
def test_processes_apart_are_a_minority_whatever_is_added_to_all(medians, shift):
    twice = [value for value in medians for _ in range(2)]
    processes = [process for process in range(len(medians)) for _ in range(2)]
    found = processes_apart(twice, processes, least=APART, fewest=3)
    assert processes_apart(medians, range(len(medians)), least=APART, fewest=3) == frozenset()
    assert 2 * len(found) < len(medians) or not found
    assert len(medians) - len(found) >= 3 or not found
    centre = sorted(medians)[len(medians) // 2]
    assert all(abs(medians[process] - centre) > 0 for process in found)
    again = processes_apart([value + shift for value in twice], processes, least=APART + 1e-9, fewest=3)
    assert again <= processes_apart(twice, processes, least=APART - 1e-6, fewest=3)


def test_disturbed_rounds_do_not_count_where_enough_are_left():
    """The candidate is 30% faster; in half of the rounds somebody makes it three times slower."""
    samples = race(math.log(1.3), FIVE)
    struck = [index % 2 == 1 for index in range(20)]
    samples["fast"] = [[3 * block[0]] if bad else block for block, bad in zip(samples["fast"], struck, strict=True)]
    told = verdict_from_samples(samples, baselines=["eager"], processes=FIVE, disturbed={"fast": struck})
    assert (told.winner, told.status) == ("fast", "promoted") and told.of("fast").rounds == 10
    assert told.speedup == pytest.approx(1.3, rel=0.02)
    assert verdict_from_samples(samples, baselines=["eager"], processes=FIVE).status == "undecided"


@pytest.mark.parametrize(("clean", "margin"), [(0, HIDDEN_MARGIN), (2, HIDDEN_MARGIN), (3, LOAD_MARGIN)])
@pytest.mark.parametrize(("factor", "status"), [(1.1, "promoted"), (0.9, "undecided")])
def test_who_was_disturbed_nearly_all_the_time_is_beaten_only_by_more_than_load_explains(clean, margin, factor, status):
    quickest = 10 * math.exp(margin) * factor
    samples = {"eager": [[90.0]] * 20, "a": [[10.0]] * 20, "b": [[quickest]] * 3 + [[80.0]] * 17}
    disturbed = {"b": [index >= clean for index in range(20)]}
    verdict = verdict_from_samples(samples, baselines=["eager"], processes=FIVE, disturbed=disturbed)
    assert verdict.status == status
    assert verdict.winner == ("a" if status == "promoted" else "eager")
    assert verdict.tied_with == (() if status == "promoted" else ("a", "b"))


def test_a_baseline_that_was_disturbed_all_the_time_may_be_the_faster_one():
    samples = {"one": [[20.0]] * 20, "two": [[40.0]] * 19 + [[12.0]], "fast": [[10.0]] * 20}
    verdict = verdict_from_samples(samples, baselines=["one", "two"], processes=FIVE, disturbed={"two": [True] * 20})
    assert (verdict.status, verdict.winner, verdict.tied_with) == ("undecided", "one", ("fast", "two"))


def test_who_wins_though_it_was_disturbed_wins():
    samples = {"eager": [[10.0 + index / 100] for index in range(20)], "fast": [[4.0]] * 20}
    verdict = verdict_from_samples(samples, baselines=["eager"], processes=FIVE, disturbed={"fast": [True] * 20})
    assert (verdict.winner, verdict.status, verdict.disturbed) == ("fast", "promoted", (0, 1, 2, 3, 4))


def test_a_candidate_that_cannot_lead_by_what_matters_leaves_the_baseline():
    samples = race(0.0, FIVE)
    assert verdict_from_samples(samples, baselines=["eager"], processes=FIVE).status == "baseline"
    wide = race(0.02, FIVE, offsets={0: -0.2, 1: 0.2, 2: -0.2, 3: 0.2})
    found = verdict_from_samples(wide, baselines=["eager"], processes=FIVE)
    comparison = RoundFigures(wide, processes=FIVE).against("eager", ["fast"])["fast"]
    assert comparison.p_value >= ALPHA or comparison.margin > abs(comparison.log_ratio)
    assert (found.status == "undecided") is (comparison.margin - comparison.log_ratio > MATERIAL)


def test_nobody_is_frozen_for_having_been_disturbed():
    blocks = {"eager": [[10.0]] * 10, "slow": [[14.0]] * 10}
    assert RoundFigures(blocks).far_behind(["eager"]) == {"slow"}
    assert RoundFigures(blocks, disturbed={"slow": [True] * 10}).far_behind(["eager"]) == frozenset()


def test_marks_of_another_length_are_refused():
    with pytest.raises(ValueError, match="rounds"):
        RoundFigures({"a": [[1.0], [1.0]]}, disturbed={"a": [True]})
