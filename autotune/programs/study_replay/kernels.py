"""The kernels of a study on a simulated host: ReplayKernels, ReplayKernelExecutor, ReplayPool."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autotune.errors import AutotuneError
from autotune.execute.server import WorkerServer
from autotune.execute.session import QUEUED
from autotune.execute.timing import TimeSplit
from autotune.kernel import KernelToolchains, wants_kernels
from autotune.kernels.compile_pool import CompileJob
from autotune.kernels.executor import BuildResult, KernelExecutor
from autotune.kernels.host import TuningHost
from autotune.kernels.prefetch import KernelPrefetch
from autotune.kernels.rates import DeviceRates
from autotune.kernels.requests import ProblemFinalists
from autotune.kernels.rounds import ComparedProblem
from autotune.kernels.steps import NEXT_S, TURN_S
from autotune.kernels.timing import TimingLimits
from autotune.kernels.work import Compiled
from autotune.programs.kernel_replay.simulated import SimulatedClock, SimulatedCosts, SimulatedKernels, SimulatedTimes
from autotune.programs.study_replay.charges import StudyCharges
from autotune.programs.study_replay.machine import Machine, MachineStage, MachineStep, Strand
from autotune.records.configuration import Configuration
from autotune.records.device import Device
from autotune.records.kernel_problem import GemmProblem
from autotune.records.kernel_trial import KernelTrial
from autotune.study.context import StudyContext
from autotune.study.kernel_supply import graph_of
from autotune.study.kernel_tuning import StudyKernels

RATES_S = 1.2
"""The seconds of the step that reads the device's rates, once a study."""


@dataclass(slots=True, kw_only=True)
class KernelHost:
    """The state that the kernel executors of one study share: machine, costs, cache, and the length of the last job.

    ``reached_us`` is the time of the fastest kernel that was timed for each problem, ``timed`` the number of timings.
    """

    machine: Machine
    costs: SimulatedCosts
    times: SimulatedTimes
    cache: set[tuple[str, Configuration]] = field(default_factory=set)
    job_s: float = 0.0
    rates_known: bool = False
    reached_us: dict[GemmProblem, float] = field(default_factory=dict)
    timed: int = 0


class ReplayKernelExecutor(SimulatedKernels):
    """Compiles and times kernels on the simulated host."""

    def __init__(
        self, host: KernelHost, server: WorkerServer, device: Device, backend: str, folder: Path, *,
        toolchains: KernelToolchains, seed: int,
    ) -> None:  # fmt: skip
        super().__init__(
            server, device, backend, folder, toolchains=toolchains, seed=seed, clock=SimulatedClock(), costs=host.costs,
            times=host.times,
        )  # fmt: skip
        self._host, self._cache = host, host.cache
        self._turn: MachineStep | None = None

    def rates(self, tell: Callable[[str], None] = lambda _: None) -> DeviceRates:
        """Return the rates of an H200; the first call takes time."""
        if not self._host.rates_known:
            self._host.rates_known = True
            self._spans += self._host.machine.run([MachineStage(name="load", seconds=RATES_S)]).spans
        return super().rates(tell)

    def compile(
        self, problem: GemmProblem, builds: Sequence[Configuration], limit_s: float
    ) -> tuple[dict[Configuration, BuildResult], dict[str, AutotuneError]]:
        """Compile builds, and report the seconds of the job to the pool."""
        results = super().compile(problem, builds, limit_s)
        self._host.job_s = self.last_job_s
        return results

    def _charge(self, seconds: float) -> None:
        """Let a session, or a candidate in it, have the device alone, in a turn that the next session may share."""
        begins = seconds == self._costs.session_s
        stage = MachineStage(name="load" if begins else "measure", seconds=seconds, hold="exclusive")
        if self._turn is None or self._turn.done:
            self._end_turn()
            kept = MachineStage(name="idle", seconds=NEXT_S, cores=0.0, hold="exclusive")
            self._turn = self._host.machine.add([stage, kept])
        else:
            self._turn.insert(stage)
        turn = self._turn
        self._host.machine.wait(lambda: turn.stage.name == "idle")

    def _end_turn(self) -> None:
        if self._turn is not None:
            self._turn.end()
            self._spans += self._turn.spans
            self._queued_s += sum(end - begin for name, begin, end in self._turn.spans if name == QUEUED)
            self._turn = None

    def close(self) -> None:
        """Let the device go."""
        self._end_turn()
        super().close()

    def compare(
        self, work: Sequence[ProblemFinalists], tell: Callable[[ComparedProblem], None], **limits: Any
    ) -> None:  # fmt: skip
        """Compare finalists, in a turn of their own."""
        self._end_turn()
        super().compare(work, tell, **limits)
        self._end_turn()

    def time(
        self,
        problem: GemmProblem,
        candidates: Sequence[Configuration],
        best_us: float | None,
        tell: Callable[[KernelTrial], None],
        *,
        limits: TimingLimits | None = None,
    ) -> None:
        """Time candidates in one session, and note the fastest."""
        super().time(problem, candidates, best_us, tell, limits=limits)
        if self._turn is not None and self._host.machine() - self._turn.begun_s >= TURN_S:
            self._end_turn()
        times_us = [self._times.us(problem, candidate) for candidate in candidates]
        self._host.reached_us[problem] = min([self._host.reached_us.get(problem, math.inf), *times_us])
        self._host.timed += len(candidates)


class ReplayJob:
    """A job of a pool on the simulated host."""

    def __init__(self, machine: Machine, results: Compiled) -> None:
        self._machine, self._results = machine, results
        self.step: MachineStep | None = None

    @property
    def done(self) -> bool:
        """See :class:`~autotune.kernels.compile_pool.CompileJob`."""
        return self.step is not None and self.step.done

    @property
    def seconds(self) -> float:
        """See :class:`~autotune.kernels.compile_pool.CompileJob`."""
        return 0.0 if self.step is None or self.step.end_s is None else self.step.end_s - self.step.begin_s

    def result(self) -> Compiled:
        """Return its results, after its end."""
        self._machine.wait(lambda: self.done)
        return self._results


class ReplayPool:
    """Runs jobs on the simulated host, each on a core, as many at once as it has workers."""

    def __init__(self, workers: int, host: KernelHost, split: TimeSplit) -> None:
        self._workers = self._free = workers
        self._host, self._split = host, split
        self._waiting: list[tuple[ReplayJob, float]] = []

    def submit(self, work: Callable[[], Compiled]) -> ReplayJob:
        """Begin a job when a worker is free."""
        job = ReplayJob(self._host.machine, work())
        self._waiting.append((job, self._host.job_s))
        self._begin()
        return job

    def wait(self, jobs: Sequence[CompileJob]) -> None:
        """Let time pass until one of the jobs has ended."""
        self._host.machine.wait(lambda: any(job.done for job in jobs))

    def close(self) -> None:
        """Begin no more jobs, and wait for those that run."""
        self._waiting.clear()
        self._host.machine.wait(lambda: self._free == self._workers)

    def _begin(self) -> None:
        while self._free and self._waiting:
            job, seconds = self._waiting.pop(0)
            self._free -= 1
            job.step = self._host.machine.add(
                [MachineStage(name="build", seconds=seconds)], functools.partial(self._end, job)
            )

    def _end(self, job: ReplayJob) -> None:
        assert job.step is not None  # it has begun
        self._split.add(job.step.spans)
        self._free += 1
        self._begin()


class ReplayPrefetch(KernelPrefetch):
    """A prefetch whose thread runs in simulated time."""

    machine: Machine
    strand: Strand[None] | None = None

    def begin(self) -> None:
        """See :meth:`~autotune.kernels.prefetch.KernelPrefetch.begin`."""
        self.strand = self.machine.spawn(self._run)

    def close(self) -> None:
        """See :meth:`~autotune.kernels.prefetch.KernelPrefetch.close`."""
        self._stop.set()
        self.join()

    def join(self) -> None:
        """See :meth:`~autotune.kernels.prefetch.KernelPrefetch.join`."""
        strand = self.strand
        if strand is not None:
            self.machine.wait(lambda: strand.ended)


class ReplayKernels(StudyKernels):
    """The kernels of a study on the simulated host; the search for a graph's problems takes its recorded seconds."""

    def __init__(self, context: StudyContext, host: KernelHost, charges: StudyCharges) -> None:
        split = context.executor.split
        super().__init__(
            context,
            TuningHost(
                clock=host.machine, pool=lambda workers: ReplayPool(workers, host, split),
                executor=lambda *given, **named: ReplayKernelExecutor(host, *given, **named),
            ),
        )  # fmt: skip
        self._machine, self._charges = host.machine, charges
        self._searched: set[str] = set()

    def find_problems(self, configurations: Sequence[Configuration]) -> None:
        """Search the graphs that were not searched before, all at once."""
        graphs = {graph_of(configuration) for configuration in filter(wants_kernels, configurations)}
        steps = [self._machine.add(self._charges.problems()) for _ in graphs - self._searched]
        self._searched |= graphs
        self._machine.wait(lambda: all(step.done for step in steps))
        for step in steps:
            self.context.executor.split.add(step.spans)
        super().find_problems(configurations)

    def _prefetch(self, executor: KernelExecutor, find: Callable[[], Mapping[GemmProblem, float]]) -> KernelPrefetch:
        prefetch = ReplayPrefetch(executor, find, self.context.request.seed, self.host)
        prefetch.machine = self._machine
        return prefetch
