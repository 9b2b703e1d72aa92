"""The state that the parts of a running study share: StudyContext."""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from autotune import registry
from autotune.database.rows import StudyRow
from autotune.database.store import Store
from autotune.errors import StudyInterruptedError
from autotune.execute.executor import Executor
from autotune.progress import Progress
from autotune.records.configuration import Configuration
from autotune.records.device import Toolchain
from autotune.records.plan import Plan
from autotune.records.search_space import SearchSpace
from autotune.records.trial import Trial
from autotune.records.workload import Workload
from autotune.study.generation import Background, Doorbell, Pending, ThreadDoorbell
from autotune.study.kernel_supply import KernelSupply
from autotune.study.request import StudyRequest

Returned = TypeVar("Returned")


def in_thread(work: Callable[[], Returned]) -> Pending[Returned]:
    """Begin work in a thread."""
    pool = ThreadPoolExecutor(1, thread_name_prefix="autotune-background")
    future = pool.submit(work)
    pool.shutdown(wait=False)
    return future


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyContext:
    """A running study: its request, its rows in the store, and the executor of its steps.

    ``supply`` has the tuned kernels of every build. ``stop`` is set by others to end the study. ``carried`` are plans
    of other device classes that take part in the finals. ``hints`` are configurations to try right after the defaults.
    ``clock`` counts the seconds of the search, ``background`` begins work beside that of the search, and ``doorbell``
    makes what the search waits with; all three are others in a simulation.
    """

    request: StudyRequest
    store: Store
    progress: Progress
    executor: Executor
    supply: KernelSupply
    stop: threading.Event
    toolchain: Toolchain
    row: StudyRow
    workload: Workload
    spaces: Sequence[SearchSpace]
    carried: tuple[Plan, ...] = ()
    hints: tuple[Configuration, ...] = ()
    clock: Callable[[], float] = time.monotonic
    background: Background = in_thread
    doorbell: Callable[[], Doorbell] = ThreadDoorbell

    @property
    def defaults(self) -> frozenset[str]:
        """The digests of the backends' default configurations."""
        return frozenset(configuration.digest for space in self.spaces for configuration in space.defaults)

    def digest(self, backend: str) -> str:
        """Return the digest of the toolchain entries that a backend's artifacts depend on."""
        return self.toolchain.only(registry.backend(backend).toolchain).digest

    def toolchain_of(self, trial: Trial) -> str:
        """Return the digest of the toolchain entries that the artifacts of a trial's backend depend on."""
        return self.digest(trial.configuration.backend)

    def check_stop(self) -> None:
        """Raise StudyInterruptedError if the study was asked to stop."""
        if self.stop.is_set():
            raise StudyInterruptedError(
                f"{self.request.name} was stopped; finished trials are kept", run="the same command, which continues it"
            )
