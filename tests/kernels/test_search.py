"""What the search proposes, and what it makes of what it is told."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

import pytest

from autotune import registry
from autotune.kernels.cost import KernelCost
from autotune.kernels.prior import KernelPrior
from autotune.kernels.rates import DeviceRates
from autotune.kernels.search import FINALISTS, HINTS, SUGGESTED, KernelSearch
from autotune.records.configuration import Configuration
from autotune.records.kernel_problem import GemmProblem
from autotune.records.kernel_trial import KernelTrial
from autotune.records.trial import Failure
from autotune.search_spaces import cutlass_gemm
from tests.kernels.kernel_simulator import DEVICE, RATES, Simulator, launches

PROBLEM = GemmProblem(m=197, n=3072, k=768, bias=True, activation="gelu")
OTHER = GemmProblem(m=256, n=3072, k=768, bias=True, activation="gelu")
SIMULATOR = Simulator(7)


class Space:
    """A part of the real space of tiles, every eleventh build."""

    def __init__(self, problem: GemmProblem = PROBLEM, step: int = 11) -> None:
        self.problem = problem
        self.builds = tuple(cutlass_gemm.space(DEVICE, problem))[::step]
        self.ready: tuple[Configuration, ...] = ()
        self.advice: tuple[Configuration, ...] = ()

    def suggested(self, count: int) -> Sequence[Configuration]:
        return self.advice[:count]

    def first(self, count: int) -> Sequence[Configuration]:
        return self.builds[-count:]

    def launches(self, build: Configuration) -> Sequence[Configuration]:
        return tuple(launches(self.problem, build))


SPACE = Space()


def searching(rates: DeviceRates | None = RATES, seed: int = 0, **what: Iterable[object]) -> KernelSearch:
    return KernelSearch(SPACE, PROBLEM, rates=rates, seed=seed, **what)  # type: ignore[arg-type]


def timed(candidate: Configuration, us: float | None = None, problem: GemmProblem = PROBLEM) -> KernelTrial:
    time_us = SIMULATOR.time_us(problem, candidate) if us is None else us
    return KernelTrial(
        problem=problem,
        device_class="simulated",
        toolchain="none",
        configuration=candidate,
        state="complete",
        samples_us=(time_us,),
    )


def failed(candidate: Configuration) -> KernelTrial:
    return KernelTrial(
        problem=PROBLEM,
        device_class="simulated",
        toolchain="none",
        configuration=candidate,
        state="failed",
        failure=Failure(stage="build", kind="error", detail="refused"),
    )


def run(search: KernelSearch, builds: int) -> list[Configuration]:
    asked: list[Configuration] = []
    while len(asked) < builds:
        batch = search.ask(4)
        search.tell(timed(search.plainest(build)) for build in batch)
        asked += batch
    return asked


def test_no_build_is_proposed_twice_and_all_of_them_in_the_end() -> None:
    space = Space(step=200)
    search = KernelSearch(space, PROBLEM, rates=RATES)
    asked: list[Configuration] = []
    while batch := search.ask(5):
        asked += batch
        search.tell(timed(search.plainest(build)) for build in batch)
    assert sorted(asked, key=str) == sorted(space.builds, key=str)
    assert search.spent == len(space.builds)


def test_proposals_follow_from_the_seed_and_from_what_was_told() -> None:
    assert run(searching(), 12) == run(searching(), 12)


def test_builds_under_way_are_not_proposed_again_nor_their_like_alone() -> None:
    search = searching()
    first, second = search.ask(4), search.ask(4)
    assert not set(first) & set(second)
    assert len({(b["tile_m"], b["tile_n"], b["tile_k"]) for b in (*first, *second)}) > 2


def test_nothing_is_estimated_before_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    def estimated(*_: object) -> None:
        raise AssertionError("an estimate was asked for")

    monkeypatch.setattr(KernelCost, "table", estimated)
    search = searching(earlier=[timed(SPACE.launches(SPACE.builds[3])[0])], hints=[SPACE.builds[5]])
    assert search.spent == 1 and search.best is not None and search.ask(1) == (SPACE.builds[5],)
    with pytest.raises(AssertionError, match="an estimate"):
        search.ask(1)


def test_what_advisers_suggest_comes_after_hints_and_is_asked_once() -> None:
    space = Space()
    strange = Configuration.of("cutlass", {"tile_m": 1})
    space.advice = (space.builds[7], strange, *space.builds[8:40])
    hints = [space.builds[5], space.builds[7]]
    asked = KernelSearch(space, PROBLEM, rates=RATES, hints=hints).ask(8)
    assert asked[:2] == tuple(hints) and len(set(asked)) == 8
    space.advice = space.builds[7:40]
    asked = KernelSearch(space, PROBLEM, rates=RATES, hints=hints[:1]).ask(8)
    assert asked[:3] == (space.builds[5], *space.builds[7 : 7 + SUGGESTED]) and asked[3] not in space.builds[9:40]


def test_it_begins_with_hints_that_are_in_the_space() -> None:
    candidate = SPACE.launches(SPACE.builds[5])[-1]
    strange = Configuration.of("cutlass", {"tile_m": 1})
    hints = [strange, candidate, SPACE.builds[5], *SPACE.builds[20:40]]
    asked = searching(hints=hints).ask(8)
    assert asked[:HINTS] == (SPACE.builds[5], *SPACE.builds[20 : 20 + HINTS - 1])
    assert not set(asked[HINTS:]) & set(SPACE.builds[20:40][HINTS:])


def test_without_rates_it_begins_with_the_rule_of_the_space() -> None:
    asked = searching(rates=None).ask(6)
    assert asked[:HINTS] == tuple(SPACE.first(HINTS))
    assert len(set(asked)) == 6


def test_without_rates_it_still_learns() -> None:
    search = searching(rates=None)
    asked = run(search, 40)
    times_us = [SIMULATOR.time_us(PROBLEM, search.plainest(build)) for build in asked]
    assert sum(times_us[-20:]) < 0.8 * sum(times_us[:20])


def test_earlier_trials_of_the_problem_count_as_told() -> None:
    before = searching()
    known = [timed(before.plainest(build)) for build in run(before, 8)]
    search = searching(earlier=known)
    assert search.spent == 8
    assert search.best == before.best
    assert search.ask(4) == before.ask(4)


def test_trials_of_other_problems_correct_the_estimates_and_are_not_the_best() -> None:
    alike = [build for build in SPACE.builds if build["schedule"] == "pingpong"]
    slow = [timed(next(launches(OTHER, build)), 500.0, OTHER) for build in alike[::2]]
    search = searching(earlier=slow)
    assert search.best is None
    assert search.spent == 0
    assert all(build["schedule"] == "cooperative" for build in search.ask(4))
    assert any(build["schedule"] == "pingpong" for build in searching().ask(4))


def test_a_refused_build_is_not_proposed_again_and_its_neighbours_are_not_punished() -> None:
    space = Space(step=150)
    whole = KernelSearch(space, PROBLEM, rates=RATES)
    first, *others = whole.ask(len(space.builds))
    for name in (first, whole.plainest(first)):
        search = KernelSearch(space, PROBLEM, rates=RATES, earlier=[failed(name)])
        assert set(search.ask(len(space.builds))) == set(others)
        assert (search.best, search.spent) == (None, 1)
    refused = searching().ask(1)[0]
    after = searching(earlier=[failed(refused)])
    near = max(set(SPACE.builds) - {refused}, key=lambda build: len(set(build.values) & set(refused.values)))
    number = after._prior.number(near)
    assert after.gains()[number] == before_gain(near)


def before_gain(build: Configuration) -> float:
    """What a build promises where nothing is known yet."""
    search = searching()
    return float(search.gains()[search._prior.number(build)])


def test_a_kind_that_fails_throughout_costs_few_builds() -> None:
    few_rows = replace(PROBLEM, m=16, n=4096, k=11008)
    promising = [
        Configuration.of("triton_gemm", {"block_n": n, "block_k": 128, "split_k": 1, "stages": stages, "warps": warps})
        for n in (16, 32, 64)
        for stages in (4, 5, 6)
        for warps in (2, 4, 8)
    ]

    class Both(Space):
        def launches(self, build: Configuration) -> Sequence[Configuration]:
            return (build,) if build in promising else super().launches(build)

    space = Both(few_rows)
    space.builds = (*promising, *space.builds)
    search = KernelSearch(space, few_rows, rates=RATES)
    asked: list[Configuration] = []
    while len(asked) < 16:
        batch = search.ask(4)
        plainest = {build: search.plainest(build) for build in batch}
        search.tell(
            replace(failed(each), problem=few_rows) if build in promising else timed(each, problem=few_rows)
            for build, each in plainest.items()
        )
        asked += batch
    assert sum(build in promising for build in asked) <= 6


def test_launches_are_those_of_the_best_builds_each_once_until_none_is_left() -> None:
    search = searching()
    run(search, 16)
    before = search.best
    swept: list[Configuration] = []
    while batch := search.ask_launches(6):
        assert len(batch) <= 6
        swept += batch
        search.tell(timed(candidate) for candidate in batch)
    assert len(set(swept)) == len(swept)
    assert not any(search.plainest(search.build_of(each)) == each for each in swept)  # type: ignore[arg-type]
    assert before is not None and search.best is not None
    assert search.best.samples_us <= before.samples_us
    assert search.spent == 16
    best_builds = sorted({search.build_of(each) for each in swept}, key=str)
    assert 1 <= len(best_builds) <= 2 * FINALISTS  # who is among the best changes as launches are told


def test_no_launches_of_builds_that_failed() -> None:
    search = searching()
    search.tell(failed(search.plainest(build)) for build in search.ask(4))
    assert search.ask_launches(10) == ()


def test_a_candidate_that_needs_no_build_may_be_the_best() -> None:
    search = searching()
    library = Configuration.of("cublaslt", {"rank": 0})
    run(search, 4)
    search.tell([timed(library, 0.1)])
    assert search.best is not None and search.best.configuration == library
    assert search.spent == 4
    assert search.build_of(library) is None


def test_a_space_without_builds_has_nothing_to_propose() -> None:
    space = Space()
    space.builds = ()
    for rates in (RATES, None):
        search = KernelSearch(space, PROBLEM, rates=rates)
        assert search.ask(4) == () and search.ask_launches(4) == ()


@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (8, 9)])
def test_tiles_of_older_parts_are_searched_too(capability: tuple[int, int]) -> None:
    space = Space()
    space.builds = tuple(cutlass_gemm.space(replace(DEVICE, capability=capability), PROBLEM))
    search = KernelSearch(space, PROBLEM, rates=RATES)
    asked = search.ask(8)
    search.tell(timed(build, 10.0 + number) for number, build in enumerate(asked))
    assert len({*asked, *search.ask(8)}) == 16


def test_builds_may_be_asked_for_among_those_that_can_be_timed() -> None:
    among = {*SPACE.builds[10:14], *SPACE.builds[-2:]}
    search = searching()
    asked = search.ask(4, among)
    assert set(asked) <= among and len(set(asked)) == 4
    assert set(search.ask(4, among)) == among - set(asked)
    assert search.ask(1, among) == () and len(search.ask(1)) == 1


def test_what_a_launch_saves_is_estimated_for_launches_that_there_are() -> None:
    problem = GemmProblem(m=128, n=768, k=3072, bias=True)
    space = registry.kernels("native").space(DEVICE, problem)
    prior = KernelPrior(space, problem, RATES, 0)
    builds = [build for build in space.builds if build.backend == "hopper_gemm"]
    single = [build for build in builds if len(space.launches(build)) == 1]
    assert single and all(prior.saved_of(build) == 0.0 for build in single)
    many = next(build for build in builds if len(space.launches(build)) == 6)
    best_us = min(prior.us(launch) or 0.0 for launch in space.launches(many))
    plain_us = prior.us(space.launches(many)[0]) or 0.0
    assert prior.saved_of(many) == pytest.approx(min(math.log(best_us / plain_us), 0.0))
