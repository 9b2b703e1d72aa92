import math
import random

import pytest

from autotune.programs.selftest import comparisons
from autotune.programs.selftest.comparisons import (
    check_aa,
    check_power,
    log_ratios,
    most_rejections,
    needed_by_noether,
    to_the_next_look,
    under_drift,
    under_two_speeds,
)
from autotune.programs.selftest.rig import Rig


class RecordedRig(Rig):
    """A bench of its own for each test, so that nothing recorded is shared."""

    def __init__(self):
        super().__init__("cpu", quick=True)


def races(noise, *, count=400, bias=0.0, seed=0):
    rng = random.Random(seed)

    def pair():
        return math.exp(rng.gauss(0, noise)), math.exp(rng.gauss(bias, noise)), rng.random() < 0.5

    return tuple([pair() for _ in range(20)] for _ in range(count))


def found(monkeypatch, check, wall, device=()):
    monkeypatch.setattr(comparisons, "recorded", lambda rig: (wall, tuple(device)))
    return {outcome.check: outcome for outcome in check(RecordedRig())}


def test_31_of_400_rejections_are_allowed():
    assert most_rejections(400) == 31
    assert 0 < most_rejections(12) < 12


def test_a_fair_comparison_passes_under_drift_and_two_speeds_too(monkeypatch):
    rows = found(monkeypatch, check_aa, races(0.01))
    assert list(rows) == ["aa/as recorded", "aa/10% drift", "aa/bimodal clock"]
    assert all(row.passed and row.limit == "at most 31" for row in rows.values())
    recorded = rows["aa/as recorded"].raw
    assert recorded["rejected"] == sum(p <= 0.05 for p in recorded["p_values"])
    assert len(recorded["pairs_ms"]) == 400


def test_a_bias_towards_one_name_fails(monkeypatch):
    rows = found(monkeypatch, check_aa, races(0.01, bias=0.005), device=races(0.01))
    assert not rows["aa/as recorded"].passed
    assert rows["aa/device clock"].passed


def test_an_order_that_is_not_random_fails_under_drift(monkeypatch):
    fixed = tuple([(first, second, True) for first, second, _ in race] for race in races(0.002))
    rows = found(monkeypatch, check_aa, fixed)
    assert rows["aa/as recorded"].passed and not rows["aa/10% drift"].passed


def test_drift_slows_each_block_more_than_the_one_before():
    pairs = [(1.0, 1.0, True), (1.0, 1.0, False)]
    (a, b, _), (c, d, _) = under_drift(pairs, 0.3)
    assert (a, b, d, c) == pytest.approx((1.0, 1.1, 1.2, 1.3))


def test_two_speeds_are_two_speeds_and_both_occur():
    pairs = under_two_speeds([(1.0, 1.0, True)] * 200, random.Random(0))
    assert {value for first, second, _ in pairs for value in (first, second)} == {1.0, 1.08}
    assert any(first != second for first, second, _ in pairs)


def test_predicted_rounds_go_up_to_the_next_look():
    assert [to_the_next_look(rounds) for rounds in (1, 20, 21, 96)] == [20, 20, 40, 100]


@pytest.mark.parametrize("noise", [0.002, 0.02])
def test_one_percent_is_found_at_the_predicted_rounds(monkeypatch, noise):
    (row,) = found(monkeypatch, check_power, races(noise)).values()
    assert row.passed, row.figure
    assert row.raw["found"] >= 0.8 * row.raw["repeats"]
    assert row.raw["noise_share"] == pytest.approx(noise * math.sqrt(2), rel=0.1)


def test_an_effect_in_the_wrong_direction_is_not_found(monkeypatch):
    (row,) = found(monkeypatch, check_power, races(0.002, bias=-0.03)).values()
    assert row.raw["found"] == 0 and not row.passed


def test_too_few_rounds_for_a_single_repeat_fail(monkeypatch):
    (row,) = found(monkeypatch, check_power, races(0.5, count=2)).values()
    assert row.raw["repeats"] == 0 and not row.passed


def test_log_ratios_are_second_over_first():
    assert log_ratios([(1.0, 2.0, True)]) == [math.log(2)]


def test_noether_and_the_formula_agree_in_normal_noise():
    rng = random.Random(0)
    ratios = [rng.gauss(0, 0.03) for _ in range(8_000)]
    by_formula = math.pi / 3 * (comparisons.AIMED_AT * 0.03 / math.log(1.01)) ** 2
    assert needed_by_noether(ratios, math.log(1.01), rng) == pytest.approx(by_formula, rel=0.15)
    assert needed_by_noether(ratios, 0.0, random.Random(1)) not in range(1_000)
