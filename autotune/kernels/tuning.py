"""The tuning of kernels, problem by problem; builds are compiled while other kernels are timed: tune_kernels."""

import contextlib
import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from autotune import environment, registry
from autotune.database.store import Store
from autotune.errors import (
    AutotuneError,
    RequestError,
    SpaceError,
    StudyInterruptedError,
    StudyTakenOverError,
    WorkError,
)
from autotune.execute.server import WorkerServer
from autotune.kernel import CompileResult, KernelSpace, toolchain_of
from autotune.kernels.compile_queue import Batch, CompileQueue
from autotune.kernels.executor import BuildResult, KernelExecutor
from autotune.kernels.host import TuningHost
from autotune.kernels.rates import DeviceRates
from autotune.kernels.report import KernelReport, TunedProblem
from autotune.kernels.schedule import MOST_BUILDS, KernelSchedule
from autotune.kernels.search import KernelSearch
from autotune.kernels.timing import needed_bytes
from autotune.kernels.work import TunedWork, WithoutKinds
from autotune.progress import Progress, Silent
from autotune.records.configuration import Configuration
from autotune.records.device import Device
from autotune.records.kernel_problem import GemmProblem
from autotune.records.kernel_trial import KernelTrial
from autotune.records.trial import Failure
from autotune.runtime import toolchain as versions

log = logging.getLogger(__name__)

BUILD_SHARE = 0.8
"""The share of the budget for builds; the rest is for other launches of the best builds, which need no compiler."""

LEAST_KERNELS = 8
"""A kind is left out if its compiler would not make so many of its kernels, one after the other, in the budget.

A CUTLASS kernel takes 40 to 50 s. Four of them in the first batch of a default study on an H200 used up its budget for
kernels, so that 3 of the 44 problems of ResNet-50 had a kernel of ours tried.
"""

BATCH = 4
"""The most builds of a batch: the search learns between batches, and each problem has its first batch early."""

SLOW_S = 20.0
"""Kernels that take longer to compile take gigabytes of memory: a CUTLASS kernel 5.7 GB."""

SHORTEST_COMPILE_S = 60.0
"""The least time limit of a compilation, if less of the budget is left."""

LAUNCHES = 32
"""The launches that one request times."""

PASSING = ("out_of_memory",)
"""Kinds of failure that may not be the kernel's: they are not stored, so the kernel is tried again."""


def kernels_folder() -> Path:
    """Return the cache of compiled kernels, which every process of this user shares."""
    return environment.cache_folder() / "kernels"


def tune_kernels(
    problems: Mapping[GemmProblem, float],
    device: Device,
    store: Store,
    server: WorkerServer,
    *,
    backend: str,
    budget_s: float,
    builds: int = MOST_BUILDS,
    progress: Progress | None = None,
    stop: threading.Event | None = None,
    seed: int = 0,
    host: TuningHost | None = None,
) -> KernelReport:
    """Find fast kernels for problems, each with its number of computations in a call of its model; store every trial.

    A candidate with a trial of the same toolchain and device class is not tried again, whether it was timed, failed,
    crashed or hung. ``builds`` is the limit of a problem over all runs. The libraries' own calls are timed with any
    budget. ``host`` is another one than this in a simulation. If ``stop`` is set, the server ends, or single problems
    fail, it returns the results so far. Raises SpaceError if no problem has a candidate, RequestError if ``backend``
    has no kernels to tune, WorkError if the cache of compiled kernels cannot be written.
    """
    tuner = _Tuner(
        problems, device, store, server, backend, budget_s, builds, progress or Silent(), seed, host or TuningHost()
    )
    return tuner.run(stop or threading.Event())


class _Tuner:
    def __init__(
        self, problems: Mapping[GemmProblem, float], device: Device, store: Store, server: WorkerServer, backend: str,
        budget_s: float, builds: int, progress: Progress, seed: int, host: TuningHost,
    ) -> None:  # fmt: skip
        self.provider = registry.kernels(backend)
        self.kinds = {kind.name: kind for kind in registry.kernel_tuner(backend).kernel_kinds}
        self.device, self.store, self.server, self.progress, self.seed = device, store, server, progress, seed
        self.toolchain = toolchain_of(self.provider, versions.current(device)).digest
        folder = kernels_folder()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise WorkError(
                f"compiled kernels are kept in {folder}",
                found=str(error),
                expected="a folder that this user can write",
                run="the same command with XDG_CACHE_HOME set to such a folder",
            ) from error
        self.host = host
        begin = KernelExecutor if host.executor is None else host.executor
        self.executor = begin(server, device, backend, folder, toolchain=self.toolchain, seed=seed)
        self.works = [TunedWork(problem=problem, weight=weight) for problem, weight in problems.items()]
        self.budget_s, self.builds = budget_s, builds
        self.missing: dict[str, AutotuneError] = {}
        self.rates: DeviceRates | None = None
        self.stop = threading.Event()

    def run(self, stop: threading.Event) -> KernelReport:
        self.stop = stop
        with contextlib.closing(self.executor):
            return self._run()

    def _run(self) -> KernelReport:
        begin, worked_from_s = self.host.clock(), self._worked_s()
        for work in self.works:
            self._know(work)
        able = [work for work in self.works if work.space is not None]
        if not able and self.works:
            raise self.works[0].trouble or SpaceError("no kernel problem has a candidate")
        self._leave_out_slow_kinds(able)
        if any(work.space is not None and work.space.builds for work in able):
            self.rates = self.executor.rates(lambda text: self.progress.event("message", text=text))
        schedule = KernelSchedule(
            {work.problem: work.weight for work in able},
            budget_s=BUILD_SHARE * self.budget_s,
            earlier={work.problem: (self._search(work).spent, work.best_us) for work in able if work.trials},
            most_builds=self.builds,
            clock=self._worked_s,
        )
        with CompileQueue(self.executor, self._compilers, self.host.pool(self._compilers)) as queue:
            self._build(able, schedule, queue)
        for work in sorted(able, key=lambda one: one.weight * (one.best_us or 0.0), reverse=True):
            while self._worked_s() - worked_from_s < self.budget_s and not self._stopped:
                launches = self._search(work).ask_launches(LAUNCHES)
                if not launches or not self._time(work, launches):
                    break
        self.executor.close()  # the spans of its process are known after its end
        return KernelReport(
            problems=tuple(self._tuned(work) for work in self.works), toolchain=self.toolchain, rates=self.rates,
            seconds=self.host.clock() - begin, spans=tuple(self.executor.spans), stopped=self._stopped,
            notes=tuple(_no_more(kind, error) for kind, error in self.missing.items()),
        )  # fmt: skip

    def _leave_out_slow_kinds(self, able: Sequence[TunedWork]) -> None:
        """Continue without the kinds whose kernels take too long to compile for the budget, and say so."""
        offered = {build.backend for work in able if work.space is not None for build in work.space.builds}
        for kind in self.kinds.values():
            needed_s = LEAST_KERNELS * kind.compile_s
            if kind.name in offered and needed_s > self.budget_s:
                error = SpaceError(
                    f"compiling one takes about {kind.compile_s:.0f} s",
                    found=f"a budget of {self.budget_s:.0f} s for kernels", expected=f"at least {needed_s:.0f} s",
                    run="autotune kernels tune with such a --budget: later studies use its kernels",
                )  # fmt: skip
                self.missing[kind.name] = error
                self.progress.event("message", text=_no_more(kind.name, error))

    def _worked_s(self) -> float:
        """Return the seconds without those in which timing waits for another process to leave the device."""
        return self.host.clock() - self.executor.waited_s

    @property
    def _stopped(self) -> bool:
        return self.stop.is_set() or self.server.closed

    def _know(self, work: TunedWork) -> None:
        """List a problem's candidates and read their trials from the database."""
        needed = needed_bytes(work.problem)
        try:
            if self.device.memory_bytes and needed > self.device.memory_bytes:
                raise RequestError(
                    f"kernels for {work.problem.canonical} on {self.device.name}",
                    found=f"{needed / 2**30:,.1f} GiB to check them with",
                    expected=f"a problem that fits {self.device.memory_bytes / 2**30:,.1f} GiB of memory",
                )
            work.space = self.provider.space(self.device, work.problem)
        except RequestError as error:
            self._fail(work, error)
            return
        for trial in self.store.kernels.of(work.problem, self.device.device_class, self.toolchain):
            work.trials.setdefault(trial.configuration, trial)

    def _search(self, work: TunedWork) -> KernelSearch:
        """Return a problem's search, created on first use, and again if a kind's compiler turns out to be missing."""
        assert work.space is not None  # a problem without candidates is not tuned
        if work.search is None or work.without != self.missing.keys():
            work.without = frozenset(self.missing)
            work.search = KernelSearch(
                self._without_missing(work) if self.missing else work.space,
                work.problem,
                earlier=[trial for one in self.works for trial in one.trials.values()],
                hints=self.store.kernels.hints(work.problem, self.device.device_class, self.toolchain),
                rates=self.rates,
                seed=self.seed,
            )
        return work.search

    def _without_missing(self, work: TunedWork) -> KernelSpace:
        """Return the space without builds that need a missing compiler and are not in the cache."""
        assert work.space is not None
        for kind in self.missing.keys() - work.cached.keys():
            of_kind = [build for build in work.space.builds if build.backend == kind]
            cached = self.executor.compiled(work.problem, of_kind)
            work.cached[kind] = frozenset(cached)
        available = frozenset[Configuration]().union(*(work.cached[kind] for kind in self.missing))
        return WithoutKinds(work.space, frozenset(self.missing), available)

    def _build(self, able: Sequence[TunedWork], schedule: KernelSchedule, queue: CompileQueue) -> None:
        """Time builds in the schedule's order, each problem's libraries' calls before or with its first builds.

        On a GPU the next builds compile meanwhile; while none is compiled, libraries' calls are timed.
        """
        works = {work.problem: work for work in able}
        libraries = dict(works) if self._overlaps else {}
        for work in () if self._overlaps else able:
            self._time_libraries(work, schedule)
        while not self._stopped:
            self._fill(queue, works, schedule)
            if libraries and not queue.has_compiled:
                self._time_libraries(libraries.pop(self._library_turn(libraries, queue)), schedule)
                continue
            if queue.is_empty:
                break
            batch = queue.take()
            results, missing = batch.job.result()
            if missing:
                self._without(missing, batch, queue, schedule)
                continue
            if self._overlaps:
                self._fill(queue, works, schedule)
            timed = self._record_batch(batch, results)
            libraries.pop(batch.work.problem, None)
            schedule.tell(
                batch.work.problem, requested=batch.requested, built=len(batch.builds), best_us=batch.work.best_us
            )
            if not timed:
                schedule.finish(batch.work.problem)

    def _library_turn(self, libraries: Mapping[GemmProblem, TunedWork], queue: CompileQueue) -> GemmProblem:
        """Return the problem whose libraries' calls are timed next: the most work first, those in batches last."""
        soon = queue.problems
        return max(libraries, key=lambda problem: (problem not in soon, libraries[problem].weight * problem.flops))

    def _time_libraries(self, work: TunedWork, schedule: KernelSchedule) -> None:
        assert work.space is not None
        if not self._time(work, work.space.ready):
            schedule.finish(work.problem)

    @property
    def _overlaps(self) -> bool:
        """Whether kernels compile while others are timed; on a CPU that would disturb the timing."""
        return self.device.kind == "cuda"

    def _fill(self, queue: CompileQueue, works: Mapping[GemmProblem, TunedWork], schedule: KernelSchedule) -> None:
        """Begin to compile the schedule's next batches, as many as compile at once."""
        while queue.has_room and not self._stopped and (turn := self._turn(schedule, queue)) is not None:
            self._begin(works[turn[0]], turn[1], schedule, queue)

    def _turn(self, schedule: KernelSchedule, queue: CompileQueue) -> tuple[GemmProblem, int] | None:
        """Return the next problem and its builds; ``None`` if the longest time so far does not fit into the budget."""
        if schedule.elapsed_s + queue.longest_s > self.budget_s:
            return None
        return schedule.next(self._at_once)

    def _begin(self, work: TunedWork, requested: int, schedule: KernelSchedule, queue: CompileQueue) -> None:
        """Begin to compile the next builds of a problem; if it has no more, inform the schedule."""
        builds = self._search(work).ask(requested)
        if builds:
            queue.add(work, requested, builds, max(SHORTEST_COMPILE_S, self.budget_s - schedule.elapsed_s))
        else:
            schedule.tell(work.problem, requested=requested, built=0, best_us=work.best_us)

    @property
    def _at_once(self) -> int:
        """The builds of a batch: a compiler uses one core, and the search learns between batches."""
        return min(BATCH, max(2, self.device.cores // 2))

    @property
    def _compilers(self) -> int:
        """The batches that compile at once: a core for each of their builds, and as many for the timing beside them.

        Kernels that take long to compile need gigabytes of memory, so their batches come one after the other.
        """
        slow = any(kind.compile_s > SLOW_S for name, kind in self.kinds.items() if name not in self.missing)
        return 1 if slow or not self._overlaps else max(1, self.device.cores // self._at_once - 1)

    def _without(
        self, missing: Mapping[str, AutotuneError], batch: Batch, queue: CompileQueue, schedule: KernelSchedule
    ) -> None:
        """Continue without kinds that cannot be compiled here, with other builds instead."""
        for kind, error in missing.items():
            if kind not in self.missing:  # another batch may have said it
                self.missing[kind] = error
                self.progress.event("message", text=_no_more(kind, error))
        self._begin(batch.work, batch.requested, schedule, queue)

    def _record_batch(self, batch: Batch, results: Mapping[Configuration, BuildResult]) -> bool:
        """Record the builds that the compiler refused and time the rest; false if that fails for this problem.

        Libraries' calls without a trial are timed in the same session.
        """
        work, launched = batch.work, []
        for build in batch.builds:
            result, candidate = results[build], self._search(work).plainest(build)
            if isinstance(result, CompileResult) and result.refusal is None:
                work.compile_s[build] = result.compile_s
                work.compiled += 1
                launched.append(candidate)
            elif isinstance(result, CompileResult):
                failure = Failure(stage="build", kind="error", detail=result.refusal or "")
                self._record(work, self.executor.failed(work.problem, candidate, failure))
            elif result is not None:
                self._record(work, self.executor.failed(work.problem, candidate, result))
        assert work.space is not None
        return self._time(work, [*work.space.ready, *launched])

    def _time(self, work: TunedWork, candidates: Sequence[Configuration]) -> bool:
        """Check and time candidates without a trial; false if that fails for this problem."""
        untried = [candidate for candidate in candidates if candidate not in work.trials]
        if not untried or self._stopped:
            return True
        self.progress.event("kernels_timed", problem=work.problem, count=len(untried))
        try:
            self.executor.time(work.problem, untried, work.best_us, lambda trial: self._record(work, trial))
        except (StudyInterruptedError, StudyTakenOverError):
            raise  # it ends the whole tuning, not one problem
        except WorkError as error:
            self._fail(work, error)
            return False
        return True

    def _record(self, work: TunedWork, trial: KernelTrial) -> None:
        """Record one trial, and store it unless its failure may not be the kernel's."""
        build = self._search(work).build_of(trial.configuration)
        if build in work.compile_s:
            trial = replace(trial, made={**trial.made, "compile_s": work.compile_s[build]})
        work.trials[trial.configuration] = trial
        work.measured += 1
        if trial.failure is None or trial.failure.kind not in PASSING:
            self.store.kernels.add([trial])
        for other in self.works:
            if other.search is not None:
                other.search.tell([trial])
        self.progress.event("kernel_tried", trial=trial, best_us=work.best_us)

    def _fail(self, work: TunedWork, error: AutotuneError) -> None:
        work.trouble = error
        self.progress.event("message", text=f"{work.problem.canonical}: {error}")

    def _tuned(self, work: TunedWork) -> TunedProblem:
        def rank(trial: KernelTrial) -> tuple[bool, float, str]:
            return trial.state != "complete", trial.median_us or 0.0, trial.configuration.digest

        return TunedProblem(
            problem=work.problem, weight=work.weight, trials=tuple(sorted(work.trials.values(), key=rank)),
            measured=work.measured, compiled=work.compiled, trouble=work.trouble,
        )  # fmt: skip


def _no_more(kind: str, error: AutotuneError) -> str:
    return f"no kernels of kind {kind} but those that are compiled already: {error}"
