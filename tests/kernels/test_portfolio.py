"""The builds that are compiled next, for all problems at once."""

import numpy as np

from autotune.backend import KernelKind
from autotune.kernels.model import Prediction
from autotune.kernels.portfolio import ENOUGH, BuildPortfolio, binary_of
from autotune.records.configuration import Configuration
from autotune.records.kernel_problem import GemmProblem

KINDS = {
    "shared": KernelKind(name="shared", fixed_epilogue=False),
    "own": KernelKind(name="own"),
    "slow": KernelKind(name="slow", compile_s=50.0, fixed_epilogue=False),
}
SMALL, MIDDLE, LARGE = (GemmProblem(m=m, n=64, k=64, bias=True, activation="relu") for m in (8, 64, 512))
OTHER = GemmProblem(m=8, n=64, k=64, bias=True, activation="gelu")


def build(number: int, kind: str = "shared") -> Configuration:
    return Configuration.of(kind, {"number": number})


def portfolio(
    problems: dict[GemmProblem, dict[Configuration, float]], most: int = 16, **weights: float
) -> BuildPortfolio:
    """A portfolio of problems whose builds have predicted times in microseconds."""
    chosen = BuildPortfolio(KINDS, most=most)
    for problem, times_us in problems.items():
        mean = np.log(np.array(list(times_us.values())))
        prediction = Prediction(mean, np.full(len(mean), 0.04), lambda place: np.zeros(1))
        nothing = np.zeros(len(mean), dtype=bool)
        weight = weights.get(f"m{problem.m}", 1.0)
        chosen.put(problem, weight, list(times_us), prediction, best=None, there=nothing, tried=nothing.copy())
    return chosen


def everything(chosen: BuildPortfolio) -> list[Configuration]:
    builds: list[Configuration] = []
    while (choice := chosen.choose(1)) is not None:
        builds += choice[1]
    return builds


def first(chosen: BuildPortfolio, count: int = 1) -> tuple[GemmProblem, tuple[Configuration, ...]]:
    choice = chosen.choose(count)
    assert choice is not None
    return choice


def test_a_build_that_many_problems_want_is_compiled_before_the_best_of_one() -> None:
    common, best = build(0), {problem: build(problem.m) for problem in (SMALL, MIDDLE, LARGE)}
    problems = {problem: {common: 10.5, best[problem]: 10.0} for problem in best}
    assert first(portfolio(problems))[1] == (common,)


def test_every_problem_has_a_build_before_one_has_its_second() -> None:
    problems = {
        problem: {build(10 * number + other): 10.0 + other for other in range(3)}
        for number, problem in enumerate((SMALL, MIDDLE, LARGE))
    }
    begun = everything(portfolio(problems, m512=2.0))[:3]
    assert {int(each["number"]) // 10 for each in begun} == {0, 1, 2}


def test_then_the_problem_with_the_largest_share_has_most() -> None:
    problems = {
        problem: {build(100 * number + other): 10.0 + other / 100 for other in range(30)}
        for number, problem in enumerate((SMALL, LARGE))
    }
    numbers = [int(each["number"]) // 100 for each in everything(portfolio(problems, m512=50.0))]
    assert min(numbers.count(0), numbers.count(1)) >= ENOUGH and numbers.count(1) > numbers.count(0)
    assert numbers.count(1) <= 16


def test_every_problem_gets_enough_builds_however_poor_they_are() -> None:
    times_us = {build(number): 10.0 * 2.0**number for number in range(12)}
    assert len(everything(portfolio({SMALL: times_us}))) >= ENOUGH
    assert everything(portfolio({SMALL: times_us}, most=2)) == [build(0), build(1)]


def test_once_all_have_enough_a_build_must_promise_what_is_asked_for() -> None:
    times_us = {build(number): 10.0 + 0.001 * number for number in range(ENOUGH + 4)}
    chosen = portfolio({LARGE: times_us})
    assert all(chosen.choose(1, least_gain=1.0) is not None for _ in range(ENOUGH)), "every problem has enough first"
    assert chosen.choose(1, least_gain=1.0) is None
    assert chosen.choose(1, least_gain=0.0) is not None


def test_a_slow_kind_must_promise_more_and_is_compiled_alone() -> None:
    near = {build(0): 10.0, build(1, "slow"): 9.5}
    assert first(portfolio({SMALL: near}))[1] == (build(0),)
    only = {build(number, "slow"): 10.0 for number in range(3)}
    assert len(first(portfolio({SMALL: only}), 2)[1]) == 1
    assert portfolio({SMALL: only}).choose(2, frozenset({"slow"})) is None


def test_builds_of_one_job_are_of_one_kind_for_one_problem() -> None:
    mixed = {SMALL: {build(0): 10.0, build(0, "own"): 10.1, build(1): 11.0}, OTHER: {build(2): 5.0}}
    problem, builds = first(portfolio(mixed), 2)
    assert (problem, builds) in [(SMALL, (build(0), build(1))), (OTHER, (build(2),))]


def test_an_epilogue_is_shared_or_not_as_the_kind_says() -> None:
    assert binary_of(KINDS["shared"], SMALL, build(0)) == binary_of(KINDS["shared"], OTHER, build(0))
    assert binary_of(KINDS["own"], SMALL, build(0, "own")) != binary_of(KINDS["own"], OTHER, build(0, "own"))
    both = portfolio({SMALL: {build(0): 1.0}, MIDDLE: {build(0): 1.0}, OTHER: {build(0, "own"): 1.0}})
    assert both.served(SMALL, build(0)) == [SMALL, MIDDLE]
    assert both.served(OTHER, build(0, "own")) == [OTHER]


def test_a_build_that_fails_is_not_chosen_again_for_any_problem() -> None:
    chosen = portfolio({SMALL: {build(0): 1.0, build(1): 1.1}, MIDDLE: {build(0): 1.0, build(2): 1.1}})
    assert first(chosen)[1] == (build(0),)
    chosen.drop(SMALL, build(0))
    assert build(0) not in everything(chosen)


def test_what_is_compiled_is_ready_and_what_is_being_compiled_is_outstanding() -> None:
    chosen = portfolio({SMALL: {build(number): 10.0 + number for number in range(3)}})
    everything(chosen)
    state = chosen.state(SMALL, np.array([True, False, False]))
    assert (state.ready, state.outstanding) == (1, True) and state.gain > 0
    assert chosen.within_reach(SMALL, [build(0), build(9)]) == [build(0)]
    assert 0.5 * 10.0 < chosen.reached_us(SMALL) < 10.0, "three builds may be better than predicted"
    chosen.bar(SMALL, build(0))
    assert chosen.state(SMALL, np.array([True, False, False])).ready == 0
