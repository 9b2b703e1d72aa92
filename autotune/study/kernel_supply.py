"""The tuned kernels that builds of one captured model are handed: KernelSupply."""

import threading
from collections.abc import Callable, Iterable, Mapping

from autotune import registry
from autotune.database.store import Store
from autotune.environment import cache_folder
from autotune.execute.executor import Executor
from autotune.kernel import NEAR, KnownKernel, KnownKernels, toolchain_of, wants_kernels
from autotune.records.configuration import Configuration
from autotune.records.device import Toolchain
from autotune.records.kernel_problem import GemmProblem
from autotune.records.kernel_trial import KernelTrial

LOG_LINES = 8
"""So many last lines are shown of what a step printed before it failed."""


class KernelSupply:
    """Looks up which kernels a build may choose from: for search, finals, rebuild and reproduction alike.

    Of the database it only reads. ``tell`` gets a message if the problems of a graph cannot be found; its builds then
    leave every place to torch. Safe to use from several threads.
    """

    def __init__(
        self,
        store: Store,
        executor: Executor,
        device_class: str,
        toolchain: Toolchain,
        tell: Callable[[str], None],
        stop: threading.Event,
    ) -> None:
        self._store, self._executor, self._device_class, self._toolchain = store, executor, device_class, toolchain
        self._tell, self._stop = tell, stop
        self._problems: dict[str, Mapping[GemmProblem, float]] = {}

    def of(self, configuration: Configuration) -> KnownKernels | None:
        """Return what the database knows now of the problems of a configuration's graph; ``None`` if it wants none."""
        if not wants_kernels(configuration):
            return None
        toolchain = toolchain_of(registry.kernels(configuration.backend), self._toolchain).digest
        best: dict[str, KnownKernel] = {}
        library: dict[str, KnownKernel] = {}
        near: dict[str, tuple[KnownKernel, ...]] = {}
        library_kinds = registry.library_kinds()
        for problem in self.problems(configuration):
            complete = _by_time(self._store.kernels.of(problem, self._device_class, toolchain))
            calls = [known for known in complete if known.configuration.backend in library_kinds]
            for found, several in ((best, complete), (library, calls)):
                if several:
                    found[problem.digest] = several[0]
            near[problem.digest] = tuple(
                known for known in complete if known not in calls and known.median_us <= NEAR * complete[0].median_us
            )
        folder = cache_folder() / "kernels"
        return KnownKernels(folder=folder, toolchain=toolchain, best=best, library=library, near=near)

    def digest(self, configuration: Configuration) -> str:
        """Return the digest of what a build would be handed now; empty if the configuration wants no kernels."""
        known = self.of(configuration)
        return "" if known is None else known.digest

    def problems(self, configuration: Configuration) -> Mapping[GemmProblem, float]:
        """Return the kernel problems of a configuration's graph, each with how often it comes in a call.

        A graph is looked at once. Nothing is found, nor kept, after the study was asked to stop.
        """
        graph = graph_of(configuration)
        if self._stop.is_set():
            return {}
        if graph not in self._problems:
            looked = self._executor.problems(configuration)
            if self._stop.is_set():
                return {}
            if looked.failure is not None:
                tail = looked.failure.log_tail.strip().splitlines()[-LOG_LINES:]
                self._tell("\n    ".join([f"{configuration}: it gets no tuned kernels: {looked.failure}", *tail]))
            counted = () if looked.value is None else looked.value.problems
            self._problems[graph] = {entry.problem: entry.count for entry in counted}
        return self._problems[graph]


def graph_of(configuration: Configuration) -> str:
    """Return what two configurations share if their graphs have the same kernel problems."""
    invariants = registry.kernel_tuner(configuration.backend).graph_invariants
    values = {name: value for name, value in configuration.values if name not in invariants}
    return Configuration.of(configuration.backend, values).digest


def _by_time(trials: Iterable[KernelTrial]) -> list[KnownKernel]:
    """Return what was timed to the end, the fastest first."""
    complete = [
        KnownKernel(configuration=trial.configuration, median_us=trial.median_us)
        for trial in trials
        if trial.state == "complete" and trial.median_us is not None
    ]
    return sorted(complete, key=lambda known: (known.median_us, known.configuration.digest))
