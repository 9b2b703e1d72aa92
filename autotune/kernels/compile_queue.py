"""The builds that are being compiled while others are timed: CompileQueue."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from autotune.kernels.compile_pool import CompileJob, CompilePool
from autotune.kernels.executor import KernelExecutor
from autotune.kernels.work import TunedWork
from autotune.records.configuration import Configuration


@dataclass(frozen=True, slots=True, kw_only=True)
class CompilingBuilds:
    """Builds of one kind that are being compiled for a problem, together."""

    work: TunedWork
    builds: Sequence[Configuration]
    job: CompileJob


class CompileQueue:
    """Compiles at most ``size()`` jobs at once; a context, at whose end jobs that have not begun are dropped.

    ``longest_s`` is the longest time that a job has taken, by its kind.
    """

    def __init__(self, executor: KernelExecutor, size: Callable[[], int], pool: CompilePool) -> None:
        self._executor, self._size, self._pool = executor, size, pool
        self._jobs: list[CompilingBuilds] = []
        self.longest_s: dict[str, float] = {}

    def __enter__(self) -> "CompileQueue":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.close()

    @property
    def has_room(self) -> bool:
        """Whether one more job compiles at once."""
        return len(self._jobs) < self._size()

    @property
    def is_empty(self) -> bool:
        """Whether no job is here."""
        return not self._jobs

    @property
    def has_compiled(self) -> bool:
        """Whether :meth:`take` returns at once."""
        return any(ended.job.done for ended in self._jobs)

    @property
    def kinds(self) -> frozenset[str]:
        """The kinds of the builds that are here."""
        return frozenset(jobs.builds[0].backend for jobs in self._jobs)

    def add(self, work: TunedWork, builds: Sequence[Configuration], limit_s: float) -> None:
        """Begin to compile builds of one kind for a problem."""
        job = self._pool.submit(lambda: self._executor.compile(work.problem, builds, limit_s))
        self._jobs.append(CompilingBuilds(work=work, builds=builds, job=job))

    def take(self) -> CompilingBuilds:
        """Remove and return the first job that has ended; wait for one if there is none."""
        self._pool.wait([here.job for here in self._jobs])
        ended = next(here for here in self._jobs if here.job.done)
        self._jobs.remove(ended)
        kind = ended.builds[0].backend
        self.longest_s[kind] = max(self.longest_s.get(kind, 0.0), ended.job.seconds)
        return ended
