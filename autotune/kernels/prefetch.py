"""Kernels that are compiled before anything is tuned, on cores that are idle: KernelPrefetch."""

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from autotune import registry
from autotune.errors import AutotuneError
from autotune.kernel import CompileResult
from autotune.kernels.build_stage import SHORTEST_COMPILE_S, TOGETHER, compilers
from autotune.kernels.compile_queue import CompileQueue
from autotune.kernels.executor import KernelExecutor
from autotune.kernels.host import TuningHost
from autotune.kernels.portfolio import MOST_BUILDS, SLOW_S, BuildPortfolio
from autotune.kernels.search import KernelSearch
from autotune.kernels.work import TunedWork, WithoutKinds
from autotune.records.kernel_problem import GemmProblem

log = logging.getLogger(__name__)

ENDS_S = 30.0
"""The longest wait for the jobs that run when a prefetch is to end."""


@dataclass(slots=True)
class KernelPrefetch:
    """Compiles the first builds of problems into the cache, in a thread: those that the first sessions would time.

    ``problems`` finds the problems with their weights, in the thread. Compiling needs no device. A build that fails, or
    a missing compiler, is left to the tuning, which says so. :meth:`close` ends it; jobs that run are waited for.
    """

    executor: KernelExecutor
    problems: Callable[[], Mapping[GemmProblem, float]]
    seed: int
    host: TuningHost = field(default_factory=TuningHost)
    compiled: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def begin(self) -> None:
        """Begin."""
        self._thread = threading.Thread(target=self._run, name="autotune-prefetch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Begin no more builds, and wait for those that run."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(ENDS_S)

    def join(self) -> None:
        """Wait until every problem has its first builds."""
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        try:
            works = {problem: TunedWork(problem=problem, weight=count) for problem, count in self.problems().items()}
            self._compile(works)
        except AutotuneError as error:
            log.info("no kernels are compiled before the tuning: %s", error)

    def _compile(self, works: Mapping[GemmProblem, TunedWork]) -> None:
        kinds = {kind.name: kind for kind in registry.kernel_tuner(self.executor.backend).kernel_kinds}
        portfolio = BuildPortfolio(kinds, most=MOST_BUILDS)
        waiting = sorted(works.values(), key=lambda work: -work.weight * work.problem.flops)
        missing = frozenset(name for name, kind in kinds.items() if kind.compile_s > SLOW_S)
        workers = compilers(self.executor.device, crowded=True)
        with CompileQueue(self.executor, lambda: workers, self.host.pool(workers)) as queue:
            while not self._stop.is_set() and not self.executor.server.closed:
                if waiting:
                    self._plan(waiting.pop(0), portfolio, missing)
                while queue.has_room and portfolio.is_wanting:
                    chosen = portfolio.choose(TOGETHER, missing)
                    if chosen is None:
                        break
                    queue.add(works[chosen[0]], chosen[1], SHORTEST_COMPILE_S)
                if queue.is_empty and not waiting:
                    return
                if queue.has_compiled or not (waiting or queue.is_empty):
                    missing |= self._collect(queue, portfolio)

    def _plan(self, work: TunedWork, portfolio: BuildPortfolio, left_out: frozenset[str]) -> None:
        """Predict the times of a problem's builds, unless it has none."""
        try:
            space = registry.kernels(self.executor.backend).space(self.executor.device, work.problem)
        except AutotuneError as error:
            log.debug("no kernels for %s: %s", work.problem.canonical, error)
            return
        left = WithoutKinds(space, left_out, frozenset())
        if not left.builds:
            return
        search = KernelSearch(left, work.problem, rates=self.executor.rates(), seed=self.seed)
        there = self.executor.compiled(work.problem, search.builds)
        portfolio.put(
            work.problem, work.weight, search.builds, search.predicted(), best=None, there=search.numbers(there),
            tried=search.tried,
        )  # fmt: skip

    def _collect(self, queue: CompileQueue, portfolio: BuildPortfolio) -> frozenset[str]:
        """Take the results of a job; returns the kinds that cannot be compiled here."""
        ended = queue.take()
        results, missing = ended.job.result()
        for build in ended.builds:
            result = results.get(build)
            if isinstance(result, CompileResult) and result.refusal is None:
                self.compiled += 1
            else:
                portfolio.drop(ended.work.problem, build)
        return frozenset(missing)
