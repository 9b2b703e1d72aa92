"""The curve of a search: what more seconds bring."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.records.search_curve import CurvePoint, SearchCurve


def at(seconds: float, best: float, backend: str = "inductor") -> CurvePoint:
    return CurvePoint(seconds=seconds, best=best, backend=backend)


ENDED = (at(5, 4.0, "eager"), at(20, 1.25), at(30, 3.0), at(70, 1.01, "native"), at(150, 1.0, "native"))


def curve_of(*ended: CurvePoint, baseline: float = 4.0, searched_s: float = 180.0) -> SearchCurve:
    return SearchCurve.of(ended, baseline=baseline, searched_s=searched_s, unit="ms")


def test_a_curve_has_the_improvements_alone() -> None:
    curve = curve_of(*ENDED[::-1])
    assert [(point.seconds, point.best) for point in curve.points] == [(5, 4.0), (20, 1.25), (70, 1.01), (150, 1.0)]
    assert curve.best == 1.0 and curve.points[-1].backend == "native"
    assert (curve.best_at(4.9), curve.best_at(69.9), curve.best_at(70)) == (None, 1.25, 1.01)


def test_the_gain_is_that_from_the_baseline_to_the_best() -> None:
    curve = curve_of(*ENDED)
    assert (curve.gain_at(0), curve.gain_at(5), curve.gain_at(150)) == (0.0, 0.0, 1.0)
    assert curve.gain_at(20) == pytest.approx(2.75 / 3)
    assert (curve.reached_s(0.9), curve.reached_s(0.95), curve.reached_s(1.0)) == (20, 70, 150)
    assert curve.lowered_in_last(60) == pytest.approx(1 - 1.0 / 1.01)
    assert curve.lowered_in_last(20) == 0.0 and curve.lowered_in_last(179) is None


def test_a_search_that_finds_nothing_faster_has_no_gain() -> None:
    curve = curve_of(at(5, 4.0), at(9, 4.5))
    assert curve.reached_s(0.9) is None and curve.gain_at(0) == curve.gain_at(200) == 1.0


def test_a_candidate_that_is_slower_than_the_baseline_brings_nothing_yet() -> None:
    curve = curve_of(at(2, 9.0), at(5, 4.0), at(8, 2.0))
    assert [curve.gain_at(seconds) for seconds in (2, 5, 8)] == [0.0, 0.0, 1.0]


def test_of_trials_that_end_at_one_moment_the_best_is_shown() -> None:
    assert curve_of(at(0, 4.0), at(0, 2.0), at(0, 3.0)).points == (at(0, 2.0),)


def test_a_trial_after_the_last_second_of_the_budget_is_in_the_search() -> None:
    assert curve_of(*ENDED, searched_s=100.0).searched_s == 150


@given(
    ended=st.lists(
        st.tuples(st.floats(0, 1e4), st.floats(1e-3, 1e3), st.sampled_from(("eager", "native"))),
        min_size=1,
        max_size=40,
    ),
    baseline=st.integers(0, 39),
    seconds=st.lists(st.floats(-10, 2e4), min_size=2, max_size=10).map(sorted),
    searched_s=st.floats(0, 2e4),
)
def test_every_curve_falls_and_ends_at_the_best(
    ended: list[tuple[float, float, str]], baseline: int, seconds: list[float], searched_s: float
) -> None:
    curve = curve_of(
        *(at(*values) for values in ended), baseline=ended[baseline % len(ended)][1], searched_s=searched_s
    )
    assert curve.best == min(best for _, best, _ in ended) and curve.best_at(curve.searched_s) == curve.best
    assert set(curve.points) <= {at(*values) for values in ended}
    gains = [curve.gain_at(value) for value in seconds]
    assert gains == sorted(gains) and all(0 <= gain <= 1 for gain in gains)
    assert curve.gain_at(curve.searched_s) == 1.0
    for share in (0.0, 0.5, 0.9, 1.0):
        reached_s = curve.reached_s(share)
        assert reached_s is None or (curve.gain_at(reached_s) >= share and 0 <= reached_s <= curve.searched_s)
    for last_s in seconds:
        lowered = curve.lowered_in_last(max(0.0, last_s))
        assert lowered is None or 0 <= lowered < 1
    assert SearchCurve.from_dict(json.loads(json.dumps(curve.as_dict()))) == curve


@pytest.mark.parametrize(
    ("points", "searched_s", "baseline", "says"),
    [
        ((), 9.0, 4.0, "at least one point"),
        ((at(1, 3.0), at(2, 3.0)), 9.0, 4.0, "falls with time"),
        ((at(2, 3.0), at(2, 2.0)), 9.0, 4.0, "falls with time"),
        ((at(1, 3.0),), 0.5, 4.0, "ends within its search"),
        ((at(1, 3.0),), 9.0, 2.0, "a baseline or better"),
    ],
)
def test_what_is_no_curve_is_refused(
    points: tuple[CurvePoint, ...], searched_s: float, baseline: float, says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        SearchCurve(unit="ms", searched_s=searched_s, baseline=baseline, points=points)


@pytest.mark.parametrize(("seconds", "best"), [(-1.0, 1.0), (float("nan"), 1.0), (1.0, 0.0), (1.0, float("inf"))])
def test_a_point_has_a_moment_and_a_figure(seconds: float, best: float) -> None:
    with pytest.raises(ValueError, match="found"):
        at(seconds, best)
