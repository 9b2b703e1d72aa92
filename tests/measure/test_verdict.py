import json
import math
from dataclasses import replace
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from autotune.measure.paired import ALPHA, RoundFigures, fewest_rounds
from autotune.measure.statistics import detectable_effect, holm, median, median_interval, paired_test
from autotune.measure.verdict import verdict_from_samples


def simulate(rng, latencies_ms, rounds, noise=0.01, drift=0.0):
    """One block of three samples a round for each finalist, with independent noise and a drift they share."""
    return {
        name: [
            [latency * math.exp(drift * index / rounds + rng.normal(0, noise)) for _ in range(3)]
            for index in range(rounds)
        ]
        for name, latency in latencies_ms.items()
    }


def test_a_clear_winner_is_promoted():
    samples = simulate(np.random.default_rng(0), {"eager": 10.0, "fast": 5.0, "slow": 8.0}, 20)
    verdict = verdict_from_samples(samples, baselines=["eager"])
    assert (verdict.winner, verdict.baseline, verdict.status, verdict.tied_with) == ("fast", "eager", "promoted", ())
    assert [result.name for result in verdict.finalists] == ["fast", "slow", "eager"]
    assert verdict.speedup == pytest.approx(2.0, rel=0.02)
    assert verdict.of("eager").speedup == 1.0
    assert verdict.of("fast").p_value is None and verdict.of("slow").p_value < ALPHA


def test_every_figure_is_recomputed_from_the_samples():
    samples = simulate(np.random.default_rng(1), {"eager": 10.0, "a": 7.0, "b": 6.0}, 24)
    verdict = verdict_from_samples(samples, baselines=["eager"])
    medians = {name: [median(block) for block in blocks] for name, blocks in samples.items()}
    others = ["a", "eager"]
    ratios = {name: [math.log(x / y) for x, y in zip(medians[name], medians["b"], strict=True)] for name in others}
    adjusted = dict(zip(others, holm([paired_test(ratios[name]) for name in others]), strict=True))
    for result in verdict.finalists:
        assert result.figure == median(medians[result.name])
        assert result.interval == median_interval(medians[result.name])
        assert result.speedup == median(medians["eager"]) / result.figure
        assert result.rounds == 24
    for name in others:
        assert verdict.of(name).p_value == pytest.approx(adjusted[name])
        assert verdict.of(name).detectable_effect == pytest.approx(detectable_effect(ratios[name]))
    again = verdict_from_samples(json.loads(json.dumps(samples)), baselines=["eager"])
    assert again == verdict
    assert json.loads(json.dumps(verdict.as_dict()))["winner"] == "b"


def test_one_beside_the_others_has_a_result_and_decides_nothing():
    latencies_ms = {"plain": 10.0, "file": 8.0, "eager": 2.0, "slow": 30.0}
    samples = simulate(np.random.default_rng(2), latencies_ms, 20)
    verdict = verdict_from_samples(samples, baselines=["plain"], beside=["eager"])
    assert (verdict.winner, verdict.baseline, verdict.status) == ("file", "plain", "promoted")
    assert verdict.finalists[0].name == "eager" and verdict.of("eager").speedup == pytest.approx(5.0, rel=0.05)
    assert verdict_from_samples(samples, baselines=["plain"]).winner == "eager"
    figures = RoundFigures(samples)
    assert figures.far_behind(["plain"], ["eager"]) == {"slow"}, "others are compared with the best that can win"
    assert figures.far_behind(["plain"]) == {"file", "slow"}
    only = {name: samples[name] for name in ("plain", "eager")}
    assert verdict_from_samples(only, baselines=["plain"], beside=["eager"]).status == "baseline"


def test_an_injected_2_percent_is_found():
    found = 0
    for seed in range(40):
        samples = simulate(np.random.default_rng(seed), {"eager": 10.0, "fast": 9.8}, 20, noise=0.01, drift=0.1)
        found += verdict_from_samples(samples, baselines=["eager"]).status == "promoted"
    assert found >= 38


def test_less_than_half_a_percent_is_no_win_however_sure():
    samples = simulate(np.random.default_rng(2), {"eager": 10.0, "fast": 9.97}, 60, noise=1e-4)
    verdict = verdict_from_samples(samples, baselines=["eager"])
    assert (verdict.winner, verdict.status, verdict.tied_with) == ("eager", "baseline", ("fast",))
    assert verdict.of("fast").p_value < ALPHA and verdict.settled and verdict.speedup == 1.0


@pytest.mark.parametrize("kind", ["normal", "drift", "bimodal", "spikes"])
def test_equals_are_told_apart_no_more_often_than_allowed(kind):
    rng, promoted = np.random.default_rng(23), 0
    for _ in range(100):
        common = np.linspace(0, 0.1, 20) if kind == "drift" else np.zeros(20)
        noise = rng.normal(0, 0.01, (3, 20)) + common
        if kind == "bimodal":
            noise += 0.1 * (rng.random((3, 20)) < 0.4)
        if kind == "spikes":
            noise += rng.exponential(1.0, (3, 20)) * (rng.random((3, 20)) < 0.1)
        values = 10 * np.exp(noise)
        samples = {name: [[float(x)] for x in row] for name, row in zip(("eager", "a", "b"), values, strict=True)}
        promoted += verdict_from_samples(samples, baselines=["eager"]).status != "baseline"
    # One look at 0.0158: 1.6 expected of 100, 6 with a probability below half a percent.
    assert promoted <= 5


@pytest.mark.parametrize("rounds", [1, 2, 6])
def test_too_few_rounds_beat_nothing(rounds):
    samples = {"eager": [[10.0 + 0.01 * index] for index in range(rounds)], "fast": [[1.0]] * rounds}
    verdict = verdict_from_samples(samples, baselines=["eager"])
    assert (verdict.winner, verdict.status, verdict.tied_with) == ("eager", "undecided", ("fast",))
    assert not verdict.settled


def test_seven_rounds_can_be_enough_for_one_candidate():
    samples = {"eager": [[10.0 + 0.01 * index] for index in range(7)], "fast": [[1.0]] * 7}
    assert verdict_from_samples(samples, baselines=["eager"]).status == "promoted"


distinct = st.lists(st.floats(1.0, 1.3), min_size=12, max_size=12, unique=True)
"""How far ahead one is in each of 12 rounds, as log-ratios."""


@settings(max_examples=10, deadline=None)
@given(distinct)
@example([1.0] * 12)  # SciPy ranks log-ratios that are all equal by another way
def test_a_clear_difference_is_significant_from_the_fewest_rounds_on_and_not_before(lead):
    p_values = {rounds: paired_test(lead[:rounds]) for rounds in range(6, 13)}
    for candidates in range(1, 21):
        rounds = fewest_rounds(candidates)
        assert max(holm([p_values[rounds]] * candidates)) < ALPHA <= min(holm([p_values[rounds - 1]] * candidates))


@pytest.mark.parametrize("candidates", [1, 2, 4, 5])
@settings(max_examples=5, deadline=None)
@given(distinct)
@example([1.0] * 12)
def test_a_clear_winner_is_promoted_after_the_fewest_rounds(candidates, lead):
    figures = {f"c{index}": 10.0 + index / 10 for index in range(candidates - 1)} | {"eager": 20.0}
    for missing, promoted in ((0, True), (1, False)):
        rounds = fewest_rounds(candidates) - missing
        samples = {name: [[figure * math.exp(ahead)] for ahead in lead[:rounds]] for name, figure in figures.items()}
        verdict = verdict_from_samples({**samples, "best": [[8.0]] * rounds}, baselines=["eager"])
        assert ((verdict.winner, verdict.status) == ("best", "promoted")) is promoted


def test_the_fewest_rounds_for_nobody_are_those_for_one():
    assert [fewest_rounds(count) for count in (0, 1, 2, 3, 4, 5, 8, 9, 16, 17)] == [7, 7, 8, 9, 9, 10, 10, 11, 11, 12]


def test_a_tie_is_broken_by_its_key_and_names_the_others():
    samples = simulate(np.random.default_rng(3), {"eager": 10.0, "a": 5.0, "b": 5.001, "c": 7.0}, 40)
    keys = {"eager": (9, 0), "a": (5, 1), "b": (5, 0), "c": (1, 0)}
    verdict = verdict_from_samples(samples, baselines=["eager"], tie_keys=keys)
    assert (verdict.winner, verdict.status, verdict.tied_with) == ("b", "tie", ("a",))
    assert verdict.of("a").p_value >= ALPHA or abs(verdict.of("a").figure / verdict.of("b").figure - 1) < 0.005
    fastest = verdict_from_samples(samples, baselines=["eager"])
    assert fastest.status == "tie" and {fastest.winner, *fastest.tied_with} == {"a", "b"}


def test_without_a_key_a_tie_is_led_by_who_beats_the_baseline_by_most_in_pairs():
    """Round by round ``a`` is the faster one; that its rounds' median is the higher one is the host's doing."""
    eager = [10.0, 10.0, 10.0, 20.0, 20.0, 20.0, 20.0]
    a = [5.2, 5.2, 5.2, 9.9, 9.9, 9.9, 9.9]
    b = [5.0, 5.0, 5.0, 9.8, 10.4, 10.4, 10.4]
    samples = {name: [[ms] for ms in times] * 3 for name, times in (("eager", eager), ("a", a), ("b", b))}
    verdict = verdict_from_samples(samples, baselines=["eager"])
    assert (verdict.winner, verdict.status, verdict.tied_with) == ("a", "tie", ("b",))
    assert verdict.of("b").figure < verdict.of("a").figure


def test_a_tie_is_not_won_by_one_that_does_not_beat_the_baseline():
    rng = np.random.default_rng(4)
    samples = simulate(rng, {"eager": 10.0, "a": 9.0}, 20, noise=0.001)
    samples["erratic"] = [[5.0 if index % 2 else 18.0] for index in range(20)]
    keys = {"eager": (9,), "a": (5,), "erratic": (0,)}
    verdict = verdict_from_samples(samples, baselines=["eager"], tie_keys=keys)
    assert (verdict.winner, verdict.status, verdict.tied_with) == ("a", "tie", ("erratic",))


def test_a_tie_is_not_won_by_one_whose_rounds_look_slower_than_its_noise():
    samples = {"eager": [[20.0 + 0.01 * index] for index in range(20)], "a": [[10.0]] * 20}
    samples["b"] = [[10.8 + 0.001 * index] if index % 10 < 7 else [5.0 + 0.001 * index] for index in range(20)]
    verdict = verdict_from_samples(samples, baselines=["eager"], tie_keys={"eager": (9,), "a": (5,), "b": (0,)})
    assert (verdict.winner, verdict.status, verdict.tied_with) == ("a", "tie", ("b",))


def test_a_significant_gain_below_the_detectable_effect_is_no_win():
    ratios = [0.0078 + 0.03 * NormalDist().inv_cdf((index + 0.5) / 100) for index in range(100)]
    assert paired_test(ratios) < ALPHA and detectable_effect(ratios) > 0.0078
    samples = {"eager": [[10.0 * math.exp(ratio)] for ratio in ratios], "fast": [[10.0]] * 100}
    assert verdict_from_samples(samples, baselines=["eager"]).status == "baseline"


def test_one_that_wins_most_rounds_but_has_the_higher_median_is_no_winner():
    samples = {"eager": [[1.0]] * 10 + [[2.0]] * 10, "a": [[0.95]] * 8 + [[3.0]] * 2 + [[1.9]] * 10}
    verdict = verdict_from_samples(samples, baselines=["eager"])
    assert verdict.of("a").p_value < ALPHA and verdict.of("a").figure > verdict.of("eager").figure
    assert (verdict.winner, verdict.status) == ("eager", "baseline")


def led_by(*leads, rounds=7, noise=0.001):
    """Samples in which ``fast`` leads by so many log-ratios, one a process, and the process of each round."""
    rng, processes = np.random.default_rng(9), [process for process in range(len(leads)) for _ in range(rounds)]
    eager = [[10.0 * math.exp(leads[process] + rng.normal(0, noise))] for process in processes]
    return {"eager": eager, "fast": [[10.0]] * len(eager)}, processes


def test_a_lead_that_another_process_may_not_have_is_no_win():
    samples, processes = led_by(0.01, 0.02, 0.06)
    assert verdict_from_samples(samples, baselines=["eager"]).status == "promoted"
    verdict = verdict_from_samples(samples, baselines=["eager"], processes=processes)
    assert (verdict.winner, verdict.status, verdict.settled) == ("eager", "baseline", False)
    assert verdict.of("fast").p_value < ALPHA and verdict.of("fast").detectable_effect > 0.02


def test_a_lead_beyond_what_processes_differ_by_is_a_win():
    samples, processes = led_by(0.05, 0.06, 0.07)
    assert verdict_from_samples(samples, baselines=["eager"], processes=processes).status == "promoted"


def test_three_processes_that_all_say_so_are_too_few_where_they_differ_by_a_third():
    samples, processes = led_by(0.03, 0.05, 0.06)
    verdict = verdict_from_samples(samples, baselines=["eager"], processes=processes)
    assert verdict.of("eager").detectable_effect < 0.03 and verdict.status == "promoted"
    samples, processes = led_by(0.02, 0.045, 0.06)
    verdict = verdict_from_samples(samples, baselines=["eager"], processes=processes)
    assert verdict.of("fast").detectable_effect < 0.04 and verdict.status == "baseline"


def test_equals_are_known_to_be_equal_only_if_their_processes_agree():
    samples, processes = led_by(-0.004, 0.0, 0.004)
    assert verdict_from_samples(samples, baselines=["eager"]).settled
    assert not verdict_from_samples(samples, baselines=["eager"], processes=processes).settled
    samples, _ = led_by(0.0, 0.0, 0.0)
    assert verdict_from_samples(samples, baselines=["eager"], processes=processes).settled


def test_processes_are_those_of_the_rounds_that_a_pair_has_in_common():
    samples, processes = led_by(0.05, 0.06, 0.07)
    samples["gone"] = [[9.0]] * 14 + [None] * 7
    samples["late"] = [None] * 7 + [[12.0]] * 14
    verdict = verdict_from_samples(samples, baselines=["eager"], processes=processes)
    assert (verdict.winner, verdict.status) == ("fast", "promoted") and verdict.of("gone").frozen


@pytest.mark.parametrize("processes", [[], [0] * 20, [0] * 22])
def test_processes_of_other_rounds_are_refused(processes):
    samples, _ = led_by(0.1, 0.1, 0.1)
    with pytest.raises(ValueError, match="process"):
        verdict_from_samples(samples, baselines=["eager"], processes=processes)


def test_two_processes_tell_less_than_three():
    lead, spread = 0.02, 0.004
    by_process = {2: (lead - spread, lead + spread), 3: (lead - spread, lead, lead + spread)}
    told = {}
    for count, leads in by_process.items():
        samples = {"a": [], "b": []}
        for own in leads:
            for step in range(12 // count):
                samples["a"].append([1.0])
                samples["b"].append([math.exp(own + 1e-4 * step)])
        medians = RoundFigures(samples, processes=[p for p in range(count) for _ in range(12 // count)])
        told[count] = medians.differ("a", "b")
    assert told == {2: False, 3: True}


def test_the_baseline_is_the_fastest_of_several():
    samples = simulate(np.random.default_rng(5), {"eager-1": 10.0, "eager-2": 6.0, "other": 8.0}, 20)
    verdict = verdict_from_samples(samples, baselines=["eager-1", "eager-2"])
    assert (verdict.winner, verdict.baseline, verdict.status) == ("eager-2", "eager-2", "baseline")
    assert verdict.speedup == 1.0 and verdict.settled


def test_one_that_left_cannot_win():
    samples = simulate(np.random.default_rng(6), {"eager": 10.0, "a": 8.0, "gone": 4.0}, 20)
    samples["gone"][10:] = [None] * 10
    verdict = verdict_from_samples(samples, baselines=["eager"])
    assert (verdict.winner, verdict.status) == ("a", "promoted")
    assert verdict.of("gone").frozen and verdict.of("gone").rounds == 10 and verdict.of("gone").p_value is None


@pytest.mark.parametrize(
    ("samples", "baselines"),
    [
        ({}, []),
        ({"eager": []}, ["eager"]),
        ({"eager": [[1.0]], "a": [[1.0], [1.0]]}, ["eager"]),
        ({"eager": [[1.0]], "a": [[0.0]]}, ["eager"]),
        ({"eager": [[1.0]], "a": [[math.nan]]}, ["eager"]),
        ({"eager": [[1.0]], "a": [[]]}, ["eager"]),
        ({"eager": [[1.0]], "a": [None]}, ["eager"]),
        ({"eager": [[1.0], None], "a": [[1.0], [1.0]]}, ["eager"]),
        ({"eager": [[1.0]]}, []),
        ({"eager": [[1.0]]}, ["eager", "absent"]),
    ],
)
def test_samples_that_decide_nothing_are_refused(samples, baselines):
    with pytest.raises(ValueError):
        verdict_from_samples(samples, baselines=baselines)


@st.composite
def races(draw):
    """Finals of two to five finalists, one or two of them baselines, some nearly equal, in up to five processes."""
    names = [f"f{index}" for index in range(draw(st.integers(2, 5)))]
    rounds = draw(st.integers(1, 24))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    latencies = {name: draw(st.sampled_from([4.0, 5.0, 5.01, 5.1, 8.0])) for name in names}
    samples = simulate(rng, latencies, rounds, noise=draw(st.sampled_from([1e-4, 0.002, 0.02, 0.3])))
    processes = draw(st.lists(st.integers(0, 4), min_size=rounds, max_size=rounds))
    return samples, names[: draw(st.integers(1, min(2, len(names) - 1)))], processes


@settings(max_examples=25, deadline=None)
@given(races(), st.randoms())
def test_the_order_of_finalists_does_not_matter(race, random):
    samples, baselines, processes = race
    keys = {name: (int(name[1:]) % 2,) for name in samples}
    names, reversed_baselines = list(samples), baselines[::-1]
    random.shuffle(names)
    shuffled = {name: samples[name] for name in names}
    expected = verdict_from_samples(samples, baselines=baselines, tie_keys=keys, processes=processes)
    found = verdict_from_samples(shuffled, baselines=reversed_baselines, tie_keys=keys, processes=processes)
    assert found == expected


@settings(max_examples=25, deadline=None)
@given(races(), st.permutations(range(5)), st.integers(-3, 1000))
def test_what_processes_are_called_does_not_matter(race, names, first):
    samples, baselines, processes = race
    renamed = [first + names[process] for process in processes]
    expected = verdict_from_samples(samples, baselines=baselines, processes=processes)
    found = verdict_from_samples(samples, baselines=baselines, processes=renamed)
    disturbed = tuple(sorted(first + names[process] for process in expected.disturbed))
    assert found == replace(expected, disturbed=disturbed)


@settings(max_examples=25, deadline=None)
@given(races(), st.integers(0, 9))
def test_one_process_and_one_process_a_round_are_as_if_nothing_were_known_of_processes(race, process):
    samples, baselines, processes = race
    expected = verdict_from_samples(samples, baselines=baselines)
    rounds = len(processes)
    assert verdict_from_samples(samples, baselines=baselines, processes=[process] * rounds) == expected
    assert verdict_from_samples(samples, baselines=baselines, processes=range(rounds)) == expected


@settings(max_examples=25, deadline=None)
@given(races())
def test_processes_never_make_a_winner(race):
    samples, baselines, processes = race
    alone = verdict_from_samples(samples, baselines=baselines)
    verdict = verdict_from_samples(samples, baselines=baselines, processes=processes)
    figures, candidates = RoundFigures(samples, processes=processes), set(samples) - set(baselines)
    if any(found.apart for found in figures.against(verdict.baseline, candidates - {verdict.baseline}).values()):
        return  # without a process that lies apart there may be a winner
    assert verdict.status in ("baseline", "undecided") or alone.status not in ("baseline", "undecided")
    for name in alone.finalists:
        assert verdict.of(name.name).figure == name.figure


@settings(max_examples=25, deadline=None)
@given(races(), st.integers(-8, 8))
def test_scaling_all_samples_scales_latencies_only(race, power):
    samples, baselines, processes = race
    factor = 2.0**power
    scaled = {name: [[factor * x for x in block] for block in blocks] for name, blocks in samples.items()}
    before = verdict_from_samples(samples, baselines=baselines, processes=processes).as_dict()
    after = verdict_from_samples(scaled, baselines=baselines, processes=processes).as_dict()
    for result in before["finalists"]:
        result["figure"] *= factor
        result["interval"] = [factor * end for end in result["interval"]]
    assert after == before


@settings(max_examples=40, deadline=None)
@given(races())
def test_a_plan_is_never_slower_than_the_baseline(race):
    samples, baselines, processes = race
    verdict = verdict_from_samples(samples, baselines=baselines, processes=processes)
    winner, baseline = verdict.of(verdict.winner), verdict.of(verdict.baseline)
    assert verdict.baseline in baselines
    assert all(baseline.figure <= verdict.of(name).figure for name in baselines)
    if verdict.status in ("baseline", "undecided"):
        assert winner == baseline and verdict.speedup == 1.0
    else:
        assert winner.name not in baselines
        assert winner.figure < baseline.figure and verdict.speedup > 1.0
        assert verdict.of(verdict.baseline).p_value is not None
    assert (verdict.status in ("tie", "undecided")) <= bool(verdict.tied_with)
    assert verdict.winner not in verdict.tied_with
