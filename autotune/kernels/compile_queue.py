"""The batches of builds that are being compiled while others are timed: CompileQueue."""

from collections.abc import Sequence
from dataclasses import dataclass

from autotune.kernels.compile_pool import CompileJob, CompilePool
from autotune.kernels.executor import KernelExecutor
from autotune.kernels.work import TunedWork
from autotune.records.configuration import Configuration
from autotune.records.kernel_problem import GemmProblem


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Builds of one problem that are being compiled; ``requested`` by the schedule."""

    work: TunedWork
    requested: int
    builds: Sequence[Configuration]
    job: CompileJob


class CompileQueue:
    """Compiles at most ``size`` batches at once; a context, at whose end batches that have not begun are dropped.

    ``longest_s`` is the longest time that a batch has taken.
    """

    def __init__(self, executor: KernelExecutor, size: int, pool: CompilePool) -> None:
        self._executor, self._size, self._pool = executor, size, pool
        self._batches: list[Batch] = []
        self.longest_s = 0.0

    def __enter__(self) -> "CompileQueue":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.close()

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
        return any(batch.job.done for batch in self._batches)

    @property
    def problems(self) -> frozenset[GemmProblem]:
        """The problems of the batches."""
        return frozenset(batch.work.problem for batch in self._batches)

    def add(self, work: TunedWork, requested: int, builds: Sequence[Configuration], limit_s: float) -> None:
        """Begin to compile builds of a problem, ``requested`` by the schedule.

        A build serves many problems: while another batch compiles one of these builds, this one waits for it, and finds
        it in the cache.
        """
        same = [batch.job for batch in self._batches if not set(builds).isdisjoint(batch.builds)]
        job = self._pool.submit(lambda: self._executor.compile(work.problem, builds, limit_s), same)
        self._batches.append(Batch(work=work, requested=requested, builds=builds, job=job))

    def take(self) -> Batch:
        """Remove and return the first batch that has been compiled; wait for one if there is none."""
        self._pool.wait([batch.job for batch in self._batches])
        batch = next(batch for batch in self._batches if batch.job.done)
        self._batches.remove(batch)
        self.longest_s = max(self.longest_s, batch.job.seconds)
        return batch
