"""The search over tiles on simulated spaces: that it learns, not that it keeps its promise on a device."""

import math
from statistics import fmean

import pytest

from autotune.kernels.search import KernelSearch
from autotune.programs.kernel_search.replay import ReplaySpace, expected_of_random, half_of, replay
from autotune.programs.kernel_search.space_file import RecordedBuild, RecordedSpace
from autotune.records.kernel_problem import GemmProblem
from tests.kernels.kernel_simulator import RATES, SHAPES, record

SPACES = [record(seed, count=160, shapes=SHAPES[:8]) for seed in (101, 102)]


def test_sixteen_builds_come_near_the_best_of_a_space_that_was_not_seen_before() -> None:
    runs = [replay(space, problem, seed=0) for space in SPACES for problem in half_of(space, "report")]
    ends = [run.regrets[-1] for run in runs]
    assert fmean(ends) < 0.3 * fmean(run.random_regrets[-1] for run in runs)
    assert sum(end <= 0.03 for end in ends) >= 0.75 * len(ends)
    assert fmean(run.score for run in runs if run.score is not None) > 0.6


def test_halves_share_nothing_and_are_all() -> None:
    settle, report = half_of(SPACES[0], "settle"), half_of(SPACES[0], "report")
    assert not set(settle) & set(report)
    assert {*settle, *report} == set(half_of(SPACES[0], "all")) == set(SPACES[0].problems)
    assert len(settle) == len(report) == 4


def test_random_search_is_expected_where_the_methodology_says() -> None:
    worst_first = [float(value) for value in range(100, 0, -1)]
    assert expected_of_random(worst_first, 1) == worst_first[round(101 / 2) - 1]
    assert expected_of_random(worst_first, 4) == worst_first[round(4 * 101 / 5) - 1]
    assert expected_of_random(worst_first, 100) == expected_of_random(worst_first, 1000) == 1.0
    assert expected_of_random([math.inf, 2.0], 1) == 2.0


def test_a_replayed_space_offers_what_was_recorded() -> None:
    space = SPACES[0]
    replayed = ReplaySpace(space, space.problems[0])
    refused = [each.build for each in space.builds if each.refusal is not None]
    assert refused and set(refused) <= set(replayed.builds)
    trial = replayed.trial(replayed.launches(refused[0])[0])
    assert trial.failure is not None and trial.failure.stage == "build"
    assert replayed.best_us(refused[0]) == math.inf
    best = min(replayed.builds, key=replayed.best_us)
    times_us = [replayed.trial(each).median_us for each in replayed.launches(best)]
    assert replayed.best_us(best) == min(time_us for time_us in times_us if time_us is not None)
    assert isinstance(KernelSearch(replayed, space.problems[0], rates=RATES).ask(1)[0].backend, str)


def test_a_space_smaller_than_the_budget_is_found_out_entirely() -> None:
    small = record(103, count=10, shapes=SHAPES[:1])
    run = replay(small, small.problems[0], seed=0)
    assert run.regrets[-1] == pytest.approx(0.0, abs=0.03)
    assert run.random_regrets[-1] == 0.0


def test_a_problem_on_which_nothing_works_cannot_be_replayed() -> None:
    problem = GemmProblem(m=64, n=64, k=64)
    build = SPACES[0].builds[0].build
    broken = RecordedSpace(
        source="synthetic",
        device_class="simulated",
        toolchain="none",
        rates=RATES,
        problems=(problem,),
        builds=(RecordedBuild(build=build, refusal="no"),),
    )
    with pytest.raises(ValueError, match="no build that was recorded works"):
        replay(broken, problem, seed=0)
