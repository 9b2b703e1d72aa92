"""A simulated host and GPU on which kernels are tuned in no time: SimulatedDevice, SimulatedClock, SimulatedPool.

A second of the simulated clock is a second that a step of a tuning is charged with, or one in which the coordinator
itself computes. Times of kernels are the estimates of the cost model with noise: they prove nothing about a device.
"""

import contextlib
import heapq
import logging
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from autotune import registry
from autotune.errors import AutotuneError
from autotune.execute.server import WorkerServer
from autotune.kernel import CompileResult, KernelToolchains
from autotune.kernels.compile_pool import CompileJob
from autotune.kernels.cost import KernelCost
from autotune.kernels.executor import BuildResult, KernelExecutor
from autotune.kernels.rates import DeviceRates
from autotune.kernels.requests import ProblemFinalists
from autotune.kernels.rounds import ComparedProblem
from autotune.kernels.timing import TimingLimits
from autotune.kernels.work import Compiled
from autotune.records.configuration import Configuration
from autotune.records.device import Device
from autotune.records.kernel_problem import GemmProblem
from autotune.records.kernel_trial import KernelTrial

log = logging.getLogger(__name__)

H200_RATES = DeviceRates(
    sm_count=132, clock_hz=1.98e9, flops_per_clock=4096, flops_per_s=790e12, memory_bytes_per_s=4.3e12,
    shared_bytes=233472, cache_bytes=52428800,
)  # fmt: skip

SAMPLES_PER_TRIAL = 20

TILE_NOISE, OWN_NOISE, TIMING_NOISE = 0.08, 0.09, 0.01
"""Standard deviations of log times from the estimate: of a tile on all problems, of a candidate on one, of a timing.

Together 12%: with 90 problems on an H200 the best of about ten builds by the estimate lost 7.9% on average.
"""

LIBRARY_NOISE, LIBRARY_LEAD = 0.15, 0.95
"""The spread of the libraries' calls, and the time of their middle one relative to the best estimate of a build."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedCosts:
    """The seconds that steps take.

    ``compile_s`` by kind, for one kernel on one core; ``job_s`` for a process that compiles; ``session_s`` for one
    problem's operands and reference, ``candidate_s`` for one candidate. builds of the kinds in ``compiled`` are in the
    cache from the beginning.
    """

    compile_s: Mapping[str, float]
    job_s: float = 0.2
    session_s: float = 0.3
    candidate_s: float = 0.05
    compiled: frozenset[str] = frozenset()


class SimulatedClock:
    """The seconds of the simulation; with ``thinking``, the coordinator's own CPU time passes too."""

    def __init__(self, *, thinking: bool = False) -> None:
        self._charged_s, self._thinking, self._from_s = 0.0, thinking, time.thread_time()

    def __call__(self) -> float:
        """Return the seconds."""
        return self._charged_s + (time.thread_time() - self._from_s if self._thinking else 0.0)

    def charge(self, seconds: float) -> None:
        """Let time pass."""
        self._charged_s += seconds

    @contextlib.contextmanager
    def beside_the_device(self) -> Iterator[None]:
        """Let the coordinator compute for nothing: meanwhile the device works on a session."""
        begin_s = time.thread_time()
        yield
        self._from_s += time.thread_time() - begin_s

    def advance_to(self, moment_s: float) -> float:
        """Let time pass until a moment; returns the seconds, 0 if it has passed."""
        seconds = max(0.0, moment_s - self())
        self._charged_s += seconds
        return seconds


@dataclass(slots=True, kw_only=True)
class SimulatedJob:
    """A job with the moments of its begin and its end."""

    clock: SimulatedClock
    begin_s: float
    end_s: float
    results: Compiled

    @property
    def done(self) -> bool:
        """Whether the clock has reached its end."""
        return self.clock() >= self.end_s

    @property
    def seconds(self) -> float:
        """See :class:`~autotune.kernels.compile_pool.CompileJob`."""
        return self.end_s - self.begin_s

    def result(self) -> Compiled:
        """Return its results, after its end."""
        self.clock.advance_to(self.end_s)
        return self.results


class SimulatedPool:
    """Workers that compile in simulated time: see :class:`~autotune.kernels.compile_pool.CompilePool`.

    ``waited_s`` are the seconds in which the coordinator, and so the device, waited for them.
    """

    def __init__(self, workers: int, clock: SimulatedClock, executor: "Callable[[], SimulatedKernels]") -> None:
        self._free_s = [0.0] * workers
        self._clock, self._executor = clock, executor
        self.waited_s = 0.0

    def submit(self, work: Callable[[], Compiled]) -> SimulatedJob:
        """Begin a job on the worker that is free first."""
        begin_s = max(self._clock(), heapq.heappop(self._free_s))
        results = work()
        end_s = begin_s + self._executor().last_job_s
        heapq.heappush(self._free_s, end_s)
        return SimulatedJob(clock=self._clock, begin_s=begin_s, end_s=end_s, results=results)

    def wait(self, jobs: Sequence[CompileJob]) -> None:
        """Let time pass until one of the jobs has ended."""
        ends = [job.end_s for job in jobs if isinstance(job, SimulatedJob)]
        self.waited_s += self._clock.advance_to(min(ends))

    def close(self) -> None:
        """Nothing runs."""


class SimulatedTimes:
    """The true time of every candidate, a function of the seed."""

    def __init__(self, seed: int, rates: DeviceRates = H200_RATES) -> None:
        self._seed, self._rates = seed, rates
        self._costs: dict[GemmProblem, KernelCost] = {}
        self._middle_us: dict[GemmProblem, float] = {}
        self._estimates_us: dict[tuple[GemmProblem, Configuration], float] = {}

    def us(self, problem: GemmProblem, candidate: Configuration) -> float:
        """Return the time of a candidate."""
        if candidate.backend in registry.library_kinds():
            spread = self._normal(problem.digest, candidate.digest) * LIBRARY_NOISE
            return self._middle_us[problem] * LIBRARY_LEAD * math.exp(abs(spread))
        estimate = self._estimate_us(problem, candidate)
        build = {name: value for name, value in candidate.values if name != "splits"}
        tile = self._normal(candidate.backend, *map(str, build.items())) * TILE_NOISE
        return estimate * math.exp(tile + self._normal(problem.digest, candidate.digest) * OWN_NOISE)

    def best_us(self, problem: GemmProblem, candidates: Sequence[Configuration]) -> float:
        """Return the time of the best candidate, and take the best estimate as the scale of the libraries' calls."""
        cost = self._cost(problem)
        estimates_us = cost.table(cost.tiles(candidates)).us
        self._middle_us[problem] = float(np.nanmin(estimates_us))
        self._estimates_us.update(
            ((problem, one), us) for one, us in zip(candidates, estimates_us.tolist(), strict=True)
        )
        return min(self.us(problem, candidate) for candidate in candidates)

    def scale_library(self, problem: GemmProblem, middle_us: float) -> None:
        """Take a time as the scale of the libraries' calls of a problem that kernels of ours cannot compute."""
        self._middle_us[problem] = middle_us

    def _estimate_us(self, problem: GemmProblem, candidate: Configuration) -> float:
        if (problem, candidate) not in self._estimates_us:
            estimate = self._cost(problem).estimate(candidate)
            assert estimate is not None  # every compiled kind has a tile
            self._estimates_us[problem, candidate] = estimate.us
        return self._estimates_us[problem, candidate]

    def _cost(self, problem: GemmProblem) -> KernelCost:
        if problem not in self._costs:
            self._costs[problem] = KernelCost(self._rates, problem)
        return self._costs[problem]

    def _normal(self, *names: str) -> float:
        return random.Random("/".join((str(self._seed), *names))).gauss(0, 1)


class SimulatedKernels(KernelExecutor):
    """Compiles and times in simulated time.

    ``timed`` has the moment, problem, candidate and true time of every trial; ``busy_s`` is the device's.
    """

    def __init__(
        self, server: WorkerServer, device: Device, backend: str, folder: Path, *, toolchains: KernelToolchains,
        seed: int, clock: SimulatedClock, costs: SimulatedCosts, times: SimulatedTimes,
    ) -> None:  # fmt: skip
        super().__init__(server, device, backend, folder, toolchains=toolchains, seed=seed)
        self._clock, self._costs, self._times = clock, costs, times
        self.busy_s = self.last_job_s = 0.0
        self.compile_count = 0
        self.timed: list[tuple[float, GemmProblem, Configuration, float]] = []
        self._cache: set[tuple[str, Configuration]] = set()

    def rates(self, tell: Callable[[str], None] = log.warning) -> DeviceRates:
        """Return the rates of an H200."""
        return H200_RATES

    def compile(
        self, problem: GemmProblem, builds: Sequence[Configuration], limit_s: float
    ) -> tuple[dict[Configuration, BuildResult], dict[str, AutotuneError]]:
        """Compile the builds that are not in the cache, one after the other on one core."""
        self.last_job_s = self._costs.job_s
        results: dict[Configuration, BuildResult] = {}
        for build in builds:
            key = binary(problem, build)
            seconds = 0.0 if self._is_compiled(key) else self._costs.compile_s[build.backend]
            self.compile_count += seconds > 0
            self.last_job_s += seconds
            self._cache.add(key)
            results[build] = CompileResult(compile_s=seconds)
        return results, {}

    def compiled(self, problem: GemmProblem, builds: Sequence[Configuration]) -> Sequence[Configuration]:
        """Return the builds that are in the cache."""
        return [build for build in builds if self._is_compiled(binary(problem, build))]

    def time(
        self,
        problem: GemmProblem,
        candidates: Sequence[Configuration],
        best_us: float | None,
        tell: Callable[[KernelTrial], None],
        *,
        limits: TimingLimits | None = None,
    ) -> None:
        """Time candidates in one session."""
        self._charge(self._costs.session_s)
        for candidate in candidates:
            self._charge(self._costs.candidate_s)
            noise = random.Random(f"{problem.digest}/{candidate.digest}")
            true_us = self._times.us(problem, candidate)
            samples = [true_us * math.exp(noise.gauss(0, TIMING_NOISE)) for _ in range(SAMPLES_PER_TRIAL)]
            trial = self._trial(problem, candidate, {"samples_us": samples})
            self.timed.append((self._clock(), problem, candidate, true_us))
            with self._clock.beside_the_device():
                tell(trial)

    def compare(
        self,
        work: Sequence[ProblemFinalists],
        tell: Callable[[ComparedProblem], None],
        *,
        rounds: int,
        samples: int,
        limit_s: float,
        seed: int | None = None,
    ) -> None:
        """Time finalists against each other, each as long as a candidate of a session."""
        begin_s = self._clock()
        for entry in work:
            self._charge(self._costs.session_s + len(entry.finalists) * self._costs.candidate_s)
            if self._clock() - begin_s > limit_s:
                return
            noise = random.Random(f"{entry.problem.digest}/final")
            blocks_us = {
                finalist: tuple(
                    tuple(
                        self._times.us(entry.problem, finalist) * math.exp(noise.gauss(0, TIMING_NOISE))
                        for _ in range(samples)
                    )
                    for _ in range(rounds)
                )
                for finalist in entry.finalists
            }
            with self._clock.beside_the_device():
                tell(ComparedProblem(problem=entry.problem, blocks_us=blocks_us))

    def _is_compiled(self, key: tuple[str, Configuration]) -> bool:
        return key[1].backend in self._costs.compiled or key in self._cache

    def _charge(self, seconds: float) -> None:
        self._clock.charge(seconds)
        self.busy_s += seconds


def binary(problem: GemmProblem, build: Configuration) -> tuple[str, Configuration]:
    """Return all that decides the binary of a build, besides the architecture."""
    fixed = f"{problem.dtype} {problem.output} {problem.window is not None}"
    if build.backend == "cutlass":  # the epilogue is a part of its binary
        fixed += f" {problem.activation} {problem.residual} {problem.bias}"
    return fixed, build
