"""The place where builds are compiled beside the timing of others: CompilePool, ThreadCompilePool."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from typing import Protocol

from autotune.kernels.work import Compiled


class CompileJob(Protocol):
    """Builds that are being compiled."""

    @property
    def done(self) -> bool:
        """Whether it has ended."""
        ...

    def result(self) -> Compiled:
        """Return its results; wait for its end."""
        ...

    @property
    def seconds(self) -> float:
        """The seconds that it took since it began; 0 before its end."""
        ...


class CompilePool(Protocol):
    """Runs jobs side by side, as many at once as it has workers."""

    def submit(self, work: Callable[[], Compiled]) -> CompileJob:
        """Begin a job."""
        ...

    def wait(self, jobs: Sequence[CompileJob]) -> None:
        """Wait until one of the jobs has ended."""
        ...

    def close(self) -> None:
        """Drop the jobs that have not begun, and wait for the others."""
        ...


class ThreadCompilePool:
    """Runs each job in a thread; the thread only waits for a worker process."""

    def __init__(self, workers: int) -> None:
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="autotune-compile")

    def submit(self, work: Callable[[], Compiled]) -> "ThreadCompileJob":
        """See :meth:`CompilePool.submit`."""
        return ThreadCompileJob(self._pool, work)

    def wait(self, jobs: Sequence[CompileJob]) -> None:
        """See :meth:`CompilePool.wait`."""
        futures = [job.future for job in jobs if isinstance(job, ThreadCompileJob)]
        wait(futures, return_when=FIRST_COMPLETED)

    def close(self) -> None:
        """See :meth:`CompilePool.close`."""
        self._pool.shutdown(cancel_futures=True)


class ThreadCompileJob:
    """A job in a thread."""

    def __init__(self, pool: ThreadPoolExecutor, work: Callable[[], Compiled]) -> None:
        self.seconds = 0.0
        self.future = pool.submit(self._run, work)

    @property
    def done(self) -> bool:
        """See :class:`CompileJob`."""
        return self.future.done()

    def result(self) -> Compiled:
        """See :class:`CompileJob`."""
        return self.future.result()

    def _run(self, work: Callable[[], Compiled]) -> Compiled:
        begin = time.monotonic()
        try:
            return work()
        finally:
            self.seconds = time.monotonic() - begin
