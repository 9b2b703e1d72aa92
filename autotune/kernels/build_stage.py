"""The stage of a tuning in which builds are compiled, and candidates timed: BuildStage."""

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from autotune.errors import SpaceError
from autotune.kernel import CompileResult
from autotune.kernels.bench import KernelBench
from autotune.kernels.compile_queue import CompileQueue, CompilingBuilds
from autotune.kernels.executor import BuildResult
from autotune.kernels.portfolio import ENOUGH, LEAST_GAIN, BuildPortfolio, binary_of
from autotune.kernels.schedule import Standing, next_session
from autotune.kernels.work import TunedWork
from autotune.records.configuration import Configuration
from autotune.records.device import Device
from autotune.records.trial import Failure

LEAST_KERNELS = 8
"""A kind is left out if its compiler would not make so many of its kernels, one after the other, in the budget.

A CUTLASS kernel takes 40 to 50 s. Four of them in the first batch of a default study on an H200 used up its budget for
kernels, so that 3 of the 44 problems of ResNet-50 had a kernel of ours tried.
"""

TOGETHER = 2
"""The builds of one job: a process that compiles takes a fifth of a second to begin."""

MORE = 4
"""The builds of a session after the first one: the search learns between sessions."""

LAUNCHES = 8
"""The other launches of good builds that a session times."""

HOPE = 0.04
"""The log time that other launches are expected to save, if nothing is known of them, before any was timed."""

RESERVED_CORES = 2
"""Cores of the host that compile nothing: for this process, and for the one that times."""

SLOW_S = 20.0
"""Kernels that take longer to compile take gigabytes of memory, a CUTLASS kernel 5.7 GB: one at a time."""

SHORTEST_COMPILE_S = 60.0
"""The least time limit of a compilation, if less of the budget is left."""

IDLE_GAIN = 0.001
"""The share of the model's time in kernels that a build must be expected to save if the device waits for it alone.

A study of ViT-B/16 on an H200 spent the last 9 of 33 s of its tuning on seven builds, one after the other, of a product
that takes 4 of about 1,500 µs: they saved 0.2 µs.
"""

SESSION_S, CANDIDATE_S = 0.31, 0.05
"""The time of a session on an H200, and of each of its candidates."""


CROWDED_SHARE = 4
"""One of so many cores compiles kernels while whole models are built, each on about two cores."""


def compilers(device: Device, *, crowded: bool = False) -> int:
    """Return the number of jobs that compile at once; on a CPU nothing is timed meanwhile."""
    if device.kind != "cuda":
        return 1
    return max(1, device.cores // CROWDED_SHARE if crowded else device.cores - RESERVED_CORES)


class BuildStage:
    """Compiles the builds that promise most for all problems, and times the problems in sessions.

    It ends when nothing promises enough, or ``budget_s`` is used up, or after ``limit_s``, in which turns of other
    steps of the same study count too. The libraries' calls are timed with any budget. On a GPU builds are compiled
    beside timings, on a CPU never. ``most_builds`` is the limit of each problem. The last ``reserved_s`` of the budget
    are left to the finals.
    """

    def __init__(
        self, bench: KernelBench, works: Sequence[TunedWork], queue: CompileQueue, *, budget_s: float, most_builds: int,
        reserved_s: float = 0.0, limit_s: float = math.inf,
    ) -> None:  # fmt: skip
        self._bench, self._queue, self._budget_s, self._most_builds = bench, queue, budget_s, most_builds
        self._reserved_s, self._limit_s = reserved_s, limit_s
        self._portfolio = BuildPortfolio(bench.kinds, most=most_builds)
        self._works = {work.problem: work for work in works}
        self._planned: list[TunedWork] = []
        self._compiled: dict[tuple[object, ...], bool] = {}
        self._begin_s, self._lasts_from_s = bench.worked_s, bench.lasted_s

    def run(self) -> None:
        """Compile and time."""
        unplanned = sorted(self._works.values(), key=lambda work: -work.weight * work.problem.flops)
        with ThreadPoolExecutor(1, thread_name_prefix="autotune-list") as pool:
            # Listing a problem's thousands of builds takes a tenth of a second, beside the timing of another problem.
            listed = [pool.submit(_builds, work) for work in unplanned if self._overlaps]
            try:
                self._run(unplanned)
            finally:
                for future in listed:
                    future.cancel()
        for work in self._works.values():
            if work.trouble is None and not self._bench.stopped:
                self._bench.time(work, _calls(work))

    def _run(self, unplanned: list[TunedWork]) -> None:
        while not self._bench.stopped:
            if unplanned and self._left_s > 0:
                self._plan(unplanned.pop(0))
            while self._queue.has_compiled:
                self._collect(self._queue.take())
            self._fill()
            if not self._overlaps and not self._queue.is_empty:
                self._collect(self._queue.take())
            work = self._next()
            if work is not None:
                self._time(work)
            elif self._left_s <= 0:
                break
            elif unplanned:
                continue
            elif self._queue.is_empty:
                break
            else:
                self._collect(self._queue.take())

    @property
    def _left_s(self) -> float:
        work_s = self._budget_s - (self._bench.worked_s - self._begin_s)
        last_s = self._limit_s - (self._bench.lasted_s - self._lasts_from_s)
        return min(work_s, last_s) - self._reserved_s

    @property
    def _overlaps(self) -> bool:
        return self._bench.device.kind == "cuda"

    # Builds

    def _plan(self, work: TunedWork) -> None:
        """Look for a problem's builds in the cache, and predict their times."""
        assert work.space is not None
        work.ready |= self._in_cache(work, work.space.builds)
        self._leave_out_slow_kinds(work)
        if work not in self._planned:
            self._planned.append(work)
        search = self._bench.search(work)
        if search.builds:
            self._portfolio.put(
                work.problem, work.weight, search.builds, search.predicted(), best=search.reached,
                there=search.numbers(work.ready), tried=search.tried, hinted=search.first,
            )  # fmt: skip

    def _in_cache(self, work: TunedWork, builds: Sequence[Configuration]) -> set[Configuration]:
        """Return the builds whose binaries are in the cache; each binary is looked for once."""
        binaries = {build: self._binary(work, build) for build in builds}
        unknown = [build for build in builds if binaries[build] not in self._compiled]
        there = set(self._bench.executor.compiled(work.problem, unknown)) if unknown else set()
        self._compiled.update((binaries[build], build in there) for build in unknown)
        return {build for build in builds if self._compiled[binaries[build]]}

    def _binary(self, work: TunedWork, build: Configuration) -> tuple[object, ...]:
        return binary_of(self._bench.kind(build.backend), work.problem, build)

    def _leave_out_slow_kinds(self, work: TunedWork) -> None:
        """Continue without the kinds whose kernels take too long to compile for the budget, and say so."""
        assert work.space is not None
        for name in {build.backend for build in work.space.builds}:
            kind = self._bench.kind(name)
            needed_s = LEAST_KERNELS * kind.compile_s
            if needed_s > self._budget_s:
                error = SpaceError(
                    f"compiling one takes about {kind.compile_s:.0f} s",
                    found=f"a budget of {self._budget_s:.0f} s for kernels", expected=f"at least {needed_s:.0f} s",
                    run="autotune kernels tune with such a --budget: later studies use its kernels",
                )  # fmt: skip
                self._bench.leave_out(name, error)

    def _fill(self) -> None:
        """Begin to compile the next builds, as many jobs as compile at once; none that could not end in time."""
        while self._planned and self._queue.has_room and not self._bench.stopped and self._left_s > 0:
            least_gain = IDLE_GAIN if self._will_be_idle else LEAST_GAIN
            chosen = self._portfolio.choose(TOGETHER, self._too_slow(), least_gain=least_gain)
            if chosen is None:
                return
            problem, builds = chosen
            self._queue.add(self._works[problem], builds, max(SHORTEST_COMPILE_S, self._left_s))

    @property
    def _will_be_idle(self) -> bool:
        """Whether the device will have to wait for the next build: no other is being compiled, and little is ready."""
        return self._queue.is_empty and self._overlaps and sum(self._has_ready(work) for work in self._planned) <= 1

    def _has_ready(self, work: TunedWork) -> bool:
        search = self._bench.search(work)
        return bool(search.builds) and self._portfolio.state(work.problem, search.numbers(work.ready)).ready > 0

    def _too_slow(self) -> frozenset[str]:
        """Return the kinds of which no job can end in time, and the slow ones while one of their jobs runs."""
        longest_s = self._queue.longest_s
        kinds = self._bench.kinds.values()
        late = {kind.name for kind in kinds if max(kind.compile_s, longest_s.get(kind.name, 0.0)) > self._left_s}
        slow = {kind.name for kind in kinds if kind.compile_s > SLOW_S}
        return frozenset(late | (slow if slow & self._queue.kinds else set()) | self._bench.missing.keys())

    def _collect(self, ended: CompilingBuilds) -> None:
        """Take the results of a job; continue without kinds that cannot be compiled here."""
        results, missing = ended.job.result()
        for build in ended.builds:
            if not self._note(ended.work, build, results):
                self._portfolio.drop(ended.work.problem, build)
        for kind, error in missing.items():
            self._bench.leave_out(kind, error)
        if missing:
            for work in self._planned:
                self._plan(work)

    def _note(self, work: TunedWork, build: Configuration, results: Mapping[Configuration, BuildResult]) -> bool:
        """Note the result of a build, with a trial if it failed; returns true if it can be timed."""
        result = results.get(build)
        if isinstance(result, CompileResult) and result.refusal is None:
            work.compile_s[build] = result.compile_s
            work.compiled += 1
            self._compiled[self._binary(work, build)] = True
            for problem in self._portfolio.served(work.problem, build):
                self._works[problem].ready.add(build)
            return True
        if result is not None:
            failure = result
            if isinstance(result, CompileResult):
                failure = Failure(stage="build", kind="error", detail=result.refusal or "")
            assert isinstance(failure, Failure)
            candidate = self._bench.search(work).plainest(build)
            self._bench.record(work, self._bench.executor.failed(work.problem, candidate, failure))
            self._learn(work)
        return False

    # Timing

    def _next(self) -> TunedWork | None:
        """Return the problem that is timed next, if there is time."""
        if self._left_s <= SESSION_S:
            return None
        works = [work for work in self._planned if work.trouble is None]
        times_us = np.array([work.weight * self._portfolio.reached_us(work.problem) for work in works])
        shares = (times_us / max(times_us.sum(), 1e-9)).tolist()
        number = next_session([self._standing(work, share) for work, share in zip(works, shares, strict=True)])
        return None if number is None else works[number]

    def _standing(self, work: TunedWork, share: float) -> Standing:
        search = self._bench.search(work)
        room = self._most_builds - search.spent
        state = self._portfolio.state(work.problem, search.numbers(work.ready) if search.builds else None)
        hope = work.hope if (search.spent and not state.outstanding) or search.spent >= ENOUGH else 0.0
        return Standing(
            share=share, timed=search.spent, ready=max(0, min(room, state.ready)), calls=len(_calls(work)),
            outstanding=state.outstanding and room > 0, gain=max(hope, state.gain if room > 0 else 0.0),
        )  # fmt: skip

    def _time(self, work: TunedWork) -> None:
        """Time one session of a problem: its libraries' calls, compiled builds, and other launches of good ones."""
        search = self._bench.search(work)
        count = ENOUGH - search.spent if search.spent < ENOUGH else MORE
        count = max(0, min(count, self._most_builds - search.spent))
        builds = self._loadable(work, search.ask(count, self._portfolio.within_reach(work.problem, work.ready)))
        launches: Sequence[Configuration] = ()
        if search.spent >= ENOUGH or len(builds) < count:
            launches = search.ask_launches(LAUNCHES)
        before_us = work.best_us
        candidates = [*_calls(work), *map(search.plainest, builds), *launches]
        if not self._bench.time(work, candidates):
            self._portfolio.finish(work.problem)
            return
        gained = 0.0 if before_us is None or work.best_us is None else math.log(before_us / work.best_us)
        estimated = 0.0 if work.best_us is None or search.reached is None else math.log(work.best_us) - search.reached
        work.hope = max(gained if launches else (HOPE if builds else 0.0), estimated)
        self._learn(work)

    def _loadable(self, work: TunedWork, builds: Sequence[Configuration]) -> list[Configuration]:
        """Return the builds that are in the cache for this problem too; the others are not tried."""
        there = set(self._bench.executor.compiled(work.problem, builds)) | work.compile_s.keys()
        for build in set(builds) - there:
            work.ready.discard(build)
            self._portfolio.bar(work.problem, build)
        return [build for build in builds if build in there]

    def _learn(self, work: TunedWork) -> None:
        search = self._bench.search(work)
        if search.builds:
            self._portfolio.learn(
                work.problem, search.predicted(), best=search.reached, tried=search.tried, odds=search.odds()
            )


def _builds(work: TunedWork) -> Sequence[Configuration]:
    assert work.space is not None
    return work.space.builds


def _calls(work: TunedWork) -> list[Configuration]:
    """Return the libraries' calls without a trial."""
    assert work.space is not None
    return [call for call in work.space.ready if call not in work.trials]
