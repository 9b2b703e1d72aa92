"""One replay of a recorded study, and its figures: replay, StudyTimeline."""

import math
import os
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from unittest import mock

from autotune import registry
from autotune.database.rows import StudyLimits
from autotune.database.store import Store
from autotune.errors import SpaceError
from autotune.kernel import wants_kernels
from autotune.programs.frame import say
from autotune.programs.kernel_replay.replay import best_known_us
from autotune.programs.kernel_replay.simulated import SimulatedCosts, SimulatedTimes
from autotune.programs.study_replay.charges import StudyCharges
from autotune.programs.study_replay.executor import ReplayExecutor
from autotune.programs.study_replay.kernels import KernelHost, ReplayKernels
from autotune.programs.study_replay.machine import Machine, MachineDoorbell, MachineStage
from autotune.programs.study_replay.recording import RecordedStudy
from autotune.progress import Silent
from autotune.records.canonical import digest
from autotune.records.device import Device
from autotune.records.kernel_problem import GemmProblem
from autotune.records.search_curve import SearchCurve
from autotune.records.search_space import SearchSpace
from autotune.records.trial import Trial
from autotune.runtime import toolchain as versions
from autotune.study.context import StudyContext
from autotune.study.kernel_supply import KernelSupply
from autotune.study.request import StudyRequest
from autotune.study.search import StudySearch

BACKEND = "native"
IN_REACH = 1.03
"""A candidate is in reach of the best if its latency is at most this multiple of it."""

GAIN = 0.9

LIBRARY_US = 10.0
"""The time of a library's call for a problem that kernels of ours cannot compute; it decides nothing in a replay."""

BEFORE_S = 10.0
"""The seconds of a capture that are no build: those in which torch is imported; not recorded, so assumed."""

FINALS_SAMPLING = 0.35
"""The share of the finals, and of the timing after them, that is charged as sampling; not recorded, so assumed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EndedTrial:
    """A trial, and the seconds of search at which it ended; ``assumed`` if its charges are not recorded."""

    ended_s: float
    trial: Trial
    assumed: bool = False

    def as_dict(self) -> dict[str, object]:
        """Return plain data for JSON."""
        return {
            "ended_s": self.ended_s, "configuration": self.trial.configuration.as_dict(), "state": self.trial.state,
            "latency_ms": self.trial.latency_ms, "build_s": self.trial.build_s, "assumed": self.assumed,
        }  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyTimeline:
    """A study, replayed or recorded: the moments of its trials in seconds of search, and the split of its whole time.

    ``searched_s`` is the time of the search, ``total_s`` that from the command to the plan. ``idle_s`` are the seconds
    in which the device waits although something is being built, ``crowded_s`` those in which steps could use more cores
    than there are. ``kernel_loss`` is the time of the tuned kernels in a call relative to the best known kernels,
    minus 1; it is simulated, as are all times of kernels. A recording has none of these.
    """

    name: str
    batch: int
    trials: tuple[EndedTrial, ...]
    defaults: frozenset[str]
    curve: SearchCurve | None
    searched_s: float
    total_s: float
    split: Mapping[str, float]
    idle_s: float | None = None
    crowded_s: float | None = None
    kernel_trials: int = 0
    kernel_loss: float | None = None

    @property
    def defaults_s(self) -> float:
        """The moment at which the last default has ended."""
        return max(end.ended_s for end in self.trials if end.trial.configuration.digest in self.defaults)

    @property
    def own_kernels_s(self) -> float | None:
        """The moment at which the first candidate with tuned kernels has ended."""
        return min((end.ended_s for end in self.trials if wants_kernels(end.trial.configuration)), default=None)

    @property
    def gain_s(self) -> float | None:
        """The moment at which 90% of the gain over the baseline was reached."""
        return None if self.curve is None else self.curve.reached_s(GAIN)

    @property
    def best_ms(self) -> float:
        """The best latency."""
        return min(self._latencies_ms.values())

    @property
    def in_reach_s(self) -> float:
        """The moment at which the first candidate in reach of the best has ended."""
        return min(seconds for seconds, ms in self._latencies_ms.items() if ms <= IN_REACH * self.best_ms)

    @property
    def assumed(self) -> int:
        """The number of trials whose charges are not recorded."""
        return sum(end.assumed for end in self.trials)

    @property
    def _latencies_ms(self) -> Mapping[float, float]:
        return {end.ended_s: end.trial.latency_ms for end in self.trials if end.trial.latency_ms is not None}

    def as_dict(self) -> dict[str, object]:
        """Return plain data for JSON."""
        return {
            "name": self.name, "batch": self.batch, "defaults_s": self.defaults_s, "own_kernels_s": self.own_kernels_s,
            "gain_s": self.gain_s, "in_reach_s": self.in_reach_s, "searched_s": self.searched_s,
            "total_s": self.total_s, "best_ms": self.best_ms, "split": dict(self.split), "idle_s": self.idle_s,
            "crowded_s": self.crowded_s, "kernel_trials": self.kernel_trials, "kernel_loss": self.kernel_loss,
            "assumed": self.assumed, "trials": [end.as_dict() for end in self.trials],
        }  # fmt: skip


def recorded(recording: RecordedStudy) -> StudyTimeline:
    """Return the timeline of the recording itself."""
    row = recording.row
    defaults = frozenset(default.digest for space in spaces_of(recording) for default in space.defaults)
    return StudyTimeline(
        name=row.name, batch=row.batch, defaults=defaults, curve=row.curve, searched_s=row.active_s,
        trials=tuple(EndedTrial(ended_s=item.ended_s, trial=item.trial) for item in recording.trials),
        total_s=recording.seconds, split=recording.split,
    )  # fmt: skip


def replay(
    charges: StudyCharges, costs: SimulatedCosts, *, cores: int, weights: Mapping[GemmProblem, float],
    search: type[StudySearch] = StudySearch, seed: int = 0,
) -> StudyTimeline:  # fmt: skip
    """Run the search of a recorded study in simulated time, on a host of some cores."""
    recording = charges.recording
    row, device = recording.row, replace(recording.device, cores=cores)
    request, spaces = _request(recording, device), spaces_of(recording)
    machine, stop = Machine(cores), threading.Event()
    times = SimulatedTimes(seed)
    best_us = _best_us(times, recording, costs)
    host = KernelHost(machine=machine, costs=costs, times=times)
    with (
        tempfile.TemporaryDirectory(prefix="study-replay-") as folder,
        mock.patch.dict(os.environ, {"XDG_CACHE_HOME": folder}),
        Store.open(str(Path(folder) / "replay.db")) as store,
    ):
        executor = ReplayExecutor(machine, charges, Path(folder), device, weights)
        executor.split.add(machine.run(_capture(recording.before_s)).spans)
        stored = store.studies.begin(
            row.name, recording.workload, device, row.objective, row.serve_as,
            digest([space.digest for space in spaces]), row.seed, {}, row.conditions,
            StudyLimits(trials=request.trials, budget_s=request.budget_s),
        )  # fmt: skip
        toolchain = versions.current(device)
        context = StudyContext(
            request=request, store=store, progress=Silent(), executor=executor,
            supply=KernelSupply(store, executor, device.device_class, toolchain, say, stop), stop=stop,
            toolchain=toolchain, row=stored, workload=recording.workload, spaces=spaces, clock=machine,
            background=machine.spawn, doorbell=lambda: MachineDoorbell(machine),
        )  # fmt: skip
        idle_s, crowded_s = machine.idle_s, machine.crowded_s
        search(context, ReplayKernels(context, host, charges)).run()
        idle_s, crowded_s = machine.idle_s - idle_s, machine.crowded_s - crowded_s
        executor.split.add(machine.run(_finals(recording.after_s)).spans)
        after = store.studies.get(stored.uid)
        trials = [trial for trial in store.trials.of_study(stored.uid) if trial.uid in after.ended_s]
    return StudyTimeline(
        name=row.name, batch=row.batch, defaults=context.defaults, curve=after.curve, searched_s=after.active_s,
        trials=tuple(
            EndedTrial(ended_s=after.ended_s[trial.uid], trial=trial, assumed=charges.of(trial.configuration).assumed)
            for trial in trials
        ),
        total_s=machine(), split=executor.split.seconds(0.0, machine()), idle_s=idle_s, crowded_s=crowded_s,
        kernel_trials=host.timed, kernel_loss=_loss(host, best_us, weights),
    )  # fmt: skip


def spaces_of(recording: RecordedStudy) -> Sequence[SearchSpace]:
    """Return the spaces of the backends that took part in a recording, as this version of autotune has them."""
    took_part = {item.trial.configuration.backend for item in recording.trials}
    return [
        registry.backend(name).space(recording.device, recording.workload, has_factory=True)
        for name in registry.names() if name in took_part
    ]  # fmt: skip


def _request(recording: RecordedStudy, device: Device) -> StudyRequest:
    row, limits = recording.row, recording.row.timings["asked"]
    return StudyRequest(
        name=row.name, batch=row.batch, device=device, objective=row.objective, factory=row.settings["factory"],
        backends=tuple(dict.fromkeys(item.trial.configuration.backend for item in recording.trials)),
        trials=limits["trials"], budget_s=limits["budget_s"], seed=row.seed,
    )  # fmt: skip


def _best_us(times: SimulatedTimes, recording: RecordedStudy, costs: SimulatedCosts) -> Mapping[GemmProblem, float]:
    """Return the best known times of the problems that kernels of ours compute; note the scale of libraries' calls."""
    best_us = {}
    for problem in recording.problems:
        try:
            space = registry.kernels(BACKEND).space(recording.device, problem)
        except SpaceError:
            continue
        if space.builds:
            best_us[problem] = best_known_us(times, problem, space, costs)
        else:
            times.scale_library(problem, LIBRARY_US)
    return best_us


def _loss(host: KernelHost, best_us: Mapping[GemmProblem, float], weights: Mapping[GemmProblem, float]) -> float | None:
    """Return the loss of the kernels of the problems in fp16 that have a weight; ``None`` if one was not timed."""
    counted = [problem for problem in best_us if problem in weights and problem.dtype == "fp16"]
    if not counted or not all(problem in host.reached_us for problem in counted):
        return None
    reached = math.fsum(weights[problem] * host.reached_us[problem] for problem in counted)
    return reached / math.fsum(weights[problem] * best_us[problem] for problem in counted) - 1


def _capture(seconds: float) -> list[MachineStage]:
    start_s = min(BEFORE_S, seconds)
    return [MachineStage(name="starting", seconds=start_s), MachineStage(name="build", seconds=seconds - start_s)]


def _finals(seconds: float) -> list[MachineStage]:
    sampling_s = FINALS_SAMPLING * seconds
    return [MachineStage(name="load", seconds=seconds - sampling_s), MachineStage(name="measure", seconds=sampling_s)]
