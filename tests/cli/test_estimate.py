"""The arithmetic of how long a study still takes, with a clock that stands until it is moved."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autotune.cli.estimate import Estimate, in_words

FINALS_S = 75.0


class Clock:
    def __init__(self):
        self.now_s = 1000.0

    def __call__(self):
        return self.now_s


def estimate(clock, *, trials=10, budget_s=100.0):
    return Estimate(trials=trials, budget_s=budget_s, finals_s=FINALS_S, now=clock)


steps = st.lists(
    st.one_of(
        st.tuples(st.just("wait"), st.floats(0.0, 400.0)),
        st.tuples(st.just("trial"), st.booleans()),
        st.tuples(st.just("begin"), st.none()),
    ),
    max_size=40,
)


@given(
    *(steps, st.integers(1, 60), st.floats(1.0, 3600.0), st.integers(0, 80), st.floats(0.0, 5000.0)),
    st.floats(0, 2000),
)
@settings(max_examples=300, deadline=None)
def test_it_is_never_negative_never_near_nothing_before_the_finals_and_falls_no_faster_than_time(
    happened, trials, budget_s, earlier, spent_s, finals_s
):
    clock = Clock()
    told = estimate(clock, trials=trials, budget_s=budget_s)
    assert told.left_s is None and told.share == 0.0
    told.resume(trials=earlier, spent_s=spent_s)
    told.begin_search()
    share = 0.0
    for kind, value in happened:
        before = told.left_s
        if kind == "wait":
            clock.now_s += value
            assert told.left_s >= before - value - 1e-6
            assert told.left_s <= before + 1e-6  # nothing has happened that makes it longer
        elif kind == "trial":
            told.end_trial(counts=value)
        else:
            told.begin_search()
        assert FINALS_S <= told.left_s <= budget_s + FINALS_S and math.isfinite(told.left_s)
        assert share <= told.share <= 1.0
        share = told.share
    told.begin_finals()
    assert told.left_s == FINALS_S and told.share == 1.0
    for _ in range(10):
        before = told.left_s
        clock.now_s += finals_s / 10
        assert told.left_s >= before - finals_s / 10 - 1e-6
    assert told.left_s >= 0.25 * finals_s - 1e-6  # finals of minutes are not said to end in a moment


def test_whatever_ends_first_counts():
    clock = Clock()
    told = estimate(clock, trials=10, budget_s=100.0)
    told.begin_search()
    assert told.left_s == 100 + FINALS_S
    clock.now_s += 2
    told.end_trial(counts=True)  # ten of them take 20 s, and the budget is 100 s
    assert told.share == pytest.approx(0.1) and told.left_s == pytest.approx(18 + FINALS_S)
    clock.now_s += 58
    told.end_trial(counts=True)  # 30 s each now: the budget ends first
    assert told.share == pytest.approx(0.6) and told.left_s == pytest.approx(40 + FINALS_S)


def test_earlier_runs_count_and_known_trials_do_not():
    clock = Clock()
    told = estimate(clock, trials=10, budget_s=100.0)
    told.resume(trials=8, spent_s=10.0)
    told.begin_search()
    assert told.share == pytest.approx(0.8)
    clock.now_s += 5
    told.end_trial(counts=False)
    assert told.share == pytest.approx(0.8)
    told.end_trial(counts=True)
    assert told.left_s == pytest.approx(5 + FINALS_S)


WORDS = {0.0: "10 s", 3.0: "10 s", 71.0: "80 s", 119.0: "120 s", 121.0: "3 min", 3600.0: "60 min", 9000.0: "2.5 h"}


@pytest.mark.parametrize(("left_s", "says"), WORDS.items())
def test_in_words(left_s, says):
    assert in_words(left_s) == f"about {says} left"
