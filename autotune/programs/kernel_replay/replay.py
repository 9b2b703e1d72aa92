"""One replay of the tuning of a model's kernels, and its figures at some moments: replay, ReplayedTuning."""

import math
import os
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

from autotune import registry
from autotune.database.store import Store
from autotune.errors import SpaceError
from autotune.execute.server import WorkerServer
from autotune.kernel import KernelSpace
from autotune.kernels.host import TuningHost
from autotune.kernels.tuning import tune_kernels
from autotune.programs.kernel_replay.problems import BACKEND, H200, ModelProblems
from autotune.programs.kernel_replay.simulated import (
    SimulatedClock,
    SimulatedCosts,
    SimulatedKernels,
    SimulatedPool,
    SimulatedTimes,
)
from autotune.records.configuration import Configuration
from autotune.records.kernel_problem import GemmProblem

MOMENTS_S = (15.0, 30.0, 60.0, 90.0, 150.0)
"""The moments at which a replay is looked at, in seconds after its begin."""

ENOUGH = 8
"""The builds of ours that every problem is to have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayMoment:
    """The state after some seconds.

    ``begun`` and ``enough`` are the numbers of problems with one and with :data:`ENOUGH` builds of ours timed, or all
    if there are fewer. ``loss``
    is the model's time in kernels relative to the best known times, minus 1; infinite while a problem has no time.
    """

    seconds: float
    begun: int
    enough: int
    loss: float

    def as_dict(self) -> dict[str, object]:
        """Return plain data for JSON."""
        return {**asdict(self), "loss": self.loss if math.isfinite(self.loss) else None}


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayedTuning:
    """The figures of a replay.

    ``problems`` counts the problems that kernels of ours can compute, ``all_enough_s`` is the moment at which all of
    them have enough builds (``None`` if they never have), ``end_s`` the end. ``waiting`` is the share of the time in
    which the device waits for a compiler; ``thinking`` the share in which it waits for the coordinator.
    """

    name: str
    batch: int
    seed: int
    problems: int
    moments: tuple[ReplayMoment, ...]
    all_enough_s: float | None
    end_s: float
    final_loss: float
    waiting: float
    thinking: float
    compiled: int
    timed: int

    def as_dict(self) -> dict[str, object]:
        """Return plain data for JSON."""
        return {**asdict(self), "moments": [moment.as_dict() for moment in self.moments]}


def replay(
    model: ModelProblems, costs: SimulatedCosts, *, seed: int, budget_s: float, cores: int, thinking: bool
) -> ReplayedTuning:
    """Tune the kernels of a model's problems in simulated time, by the search, schedule and queue of every tuning."""
    device = replace(H200, cores=cores)
    times = SimulatedTimes(seed)
    spaces = _spaces(model)
    best_us = {problem: best_known_us(times, problem, space, costs) for problem, space in spaces.items()}
    clock = SimulatedClock(thinking=thinking)
    begun: list[SimulatedKernels] = []
    pools: list[SimulatedPool] = []

    def executor(*given: Any, **named: Any) -> SimulatedKernels:
        begun.append(SimulatedKernels(*given, **named, clock=clock, costs=costs, times=times))
        return begun[0]

    def pool(workers: int) -> SimulatedPool:
        pools.append(SimulatedPool(workers, clock, lambda: begun[0]))
        return pools[-1]

    begin_s = clock()
    with (
        tempfile.TemporaryDirectory(prefix="replay-") as folder,
        mock.patch.dict(os.environ, {"XDG_CACHE_HOME": folder}),
        Store.open(str(Path(folder) / "kernels.db")) as store,
        WorkerServer(Path(folder)) as server,
    ):
        host = TuningHost(clock=clock, pool=pool, executor=executor)
        tune_kernels(
            {problem: model.weights[problem] for problem in spaces}, device, store, server, backend=BACKEND,
            budget_s=budget_s, seed=seed, host=host,
        )  # fmt: skip
    timed = [(moment_s - begin_s, problem, candidate, us) for moment_s, problem, candidate, us in begun[0].timed]
    offered = {problem: min(ENOUGH, len(_quick(space, costs))) for problem, space in spaces.items()}
    return _figures(model, seed, timed, best_us, offered, begun[0], pools, clock() - begin_s)


def _spaces(model: ModelProblems) -> dict[GemmProblem, KernelSpace]:
    """Return the spaces of the problems that kernels of ours can compute."""
    spaces: dict[GemmProblem, KernelSpace] = {}
    for problem in model.weights:
        try:
            space = registry.kernels(BACKEND).space(H200, problem)
        except SpaceError:
            continue
        if space.builds:
            spaces[problem] = space
    return spaces


def best_known_us(times: SimulatedTimes, problem: GemmProblem, space: KernelSpace, costs: SimulatedCosts) -> float:
    """Return the best time of all candidates of the kinds that compile quickly; note the scale of the libraries."""
    launches = [launch for build in _quick(space, costs) for launch in space.launches(build)]
    own_us = times.best_us(problem, launches)
    return min(own_us, *(times.us(problem, call) for call in space.ready))


def _quick(space: KernelSpace, costs: SimulatedCosts) -> list[Configuration]:
    return [build for build in space.builds if costs.compile_s[build.backend] <= SLOW_S]


SLOW_S = 20.0
"""Kernels that take longer to compile are in no best known time: no tuning of minutes can try them."""


def _figures(
    model: ModelProblems,
    seed: int,
    timed: Sequence[tuple[float, GemmProblem, Configuration, float]],
    best_us: Mapping[GemmProblem, float],
    offered: Mapping[GemmProblem, int],
    executor: SimulatedKernels,
    pools: Sequence[SimulatedPool],
    end_s: float,
) -> ReplayedTuning:
    libraries = registry.library_kinds()
    own: Counter[GemmProblem] = Counter()
    builds: set[tuple[GemmProblem, Configuration]] = set()
    all_enough_s: float | None = None
    reached_us: dict[GemmProblem, float] = {}
    moments: list[ReplayMoment] = []

    def loss() -> float:
        if len(reached_us) < len(best_us):
            return math.inf
        total = math.fsum(model.weights[problem] * best_us[problem] for problem in best_us)
        return math.fsum(model.weights[problem] * reached_us[problem] for problem in best_us) / total - 1

    def look(seconds: float) -> None:
        enough = sum(own[problem] >= offered[problem] for problem in best_us)
        moments.append(ReplayMoment(seconds=seconds, begun=len(own), enough=enough, loss=loss()))

    waiting = list(MOMENTS_S)
    for moment_s, problem, candidate, us in timed:
        while waiting and moment_s > waiting[0]:
            look(waiting.pop(0))
        reached_us[problem] = min(us, reached_us.get(problem, math.inf))
        build = Configuration.of(candidate.backend, {n: v for n, v in candidate.values if n not in LAUNCH})
        if candidate.backend not in libraries and (problem, build) not in builds:
            builds.add((problem, build))
            own[problem] += 1
            if all_enough_s is None and all(own[problem] >= offered[problem] for problem in best_us):
                all_enough_s = moment_s
    for seconds in waiting:
        look(seconds)
    waited_s = math.fsum(pool.waited_s for pool in pools)
    return ReplayedTuning(
        name=model.name, batch=model.batch, seed=seed, problems=len(best_us), moments=tuple(moments),
        all_enough_s=all_enough_s, end_s=end_s, final_loss=loss(), waiting=waited_s / end_s,
        thinking=max(0.0, end_s - executor.busy_s - waited_s) / end_s, compiled=executor.compile_count,
        timed=len(timed),
    )  # fmt: skip


LAUNCH = ("splits", "swizzle", "raster", "decomposition", "reduction")
"""The parameters of a launch, which need no build of their own."""
