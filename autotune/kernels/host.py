"""The parts of a tuning that a simulation replaces: TuningHost."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from autotune.kernels.compile_pool import CompilePool, ThreadCompilePool
from autotune.kernels.executor import KernelExecutor


@dataclass(frozen=True, slots=True, kw_only=True)
class TuningHost:
    """The clock of a tuning, the pool in which it compiles, and the executor of its steps.

    By default those of this host. ``executor`` is called with the arguments of
    :class:`~autotune.kernels.executor.KernelExecutor`, ``pool`` with the number of jobs that run at once.
    """

    clock: Callable[[], float] = time.monotonic
    pool: Callable[[int], CompilePool] = ThreadCompilePool
    executor: Callable[..., KernelExecutor] | None = None
