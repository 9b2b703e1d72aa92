"""The batches of builds that are being compiled while others are timed: CompileQueue."""

import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from autotune.kernels.executor import KernelExecutor
from autotune.kernels.work import Batch, Compiled, TunedWork
from autotune.records.configuration import Configuration
from autotune.records.kernel_problem import GemmProblem


class CompileQueue:
    """Compiles at most ``size`` batches at once; a context, at whose end batches that have not begun are dropped.

    ``longest_s`` is the longest time that a batch has taken.
    """

    def __init__(self, executor: KernelExecutor, size: int) -> None:
        self._executor, self._size = executor, size
        self._pool = ThreadPoolExecutor(size, thread_name_prefix="autotune-compile")
        self._batches: list[Batch] = []
        self.longest_s = 0.0

    def __enter__(self) -> "CompileQueue":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    @property
    def has_room(self) -> bool:
        """Whether one more batch compiles at once."""
        return len(self._batches) < self._size

    @property
    def is_empty(self) -> bool:
        """Whether no batch is here."""
        return not self._batches

    @property
    def has_compiled(self) -> bool:
        """Whether :meth:`take` returns at once."""
        return any(batch.result.done() for batch in self._batches)

    @property
    def problems(self) -> frozenset[GemmProblem]:
        """The problems of the batches."""
        return frozenset(batch.work.problem for batch in self._batches)

    def add(self, work: TunedWork, requested: int, builds: Sequence[Configuration], limit_s: float) -> None:
        """Begin to compile builds of a problem, ``requested`` by the schedule.

        A build serves many problems: while another batch compiles one of these builds, this one waits for it, and finds
        it in the cache.
        """
        same = [batch.result for batch in self._batches if not set(builds).isdisjoint(batch.builds)]
        result = self._pool.submit(self._compile, work.problem, builds, limit_s, same)
        self._batches.append(Batch(work=work, requested=requested, builds=builds, result=result))

    def take(self) -> Batch:
        """Remove and return the first batch that has been compiled; wait for one if there is none."""
        wait([batch.result for batch in self._batches], return_when=FIRST_COMPLETED)
        batch = next(batch for batch in self._batches if batch.result.done())
        self._batches.remove(batch)
        return batch

    def _compile(
        self,
        problem: GemmProblem,
        builds: Sequence[Configuration],
        limit_s: float,
        after: "Sequence[Future[Compiled]]",
    ) -> Compiled:
        wait(after)
        begin = time.monotonic()
        results = self._executor.compile(problem, builds, limit_s)
        self.longest_s = max(self.longest_s, time.monotonic() - begin)
        return results
