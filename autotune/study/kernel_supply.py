"""The tuned kernels for the builds of one captured model: KernelSupply."""

import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence

from autotune import registry
from autotune.database.store import Store
from autotune.execute.executor import Executor
from autotune.kernel import NEAR, KernelToolchains, KnownKernel, KnownKernels, wants_kernels
from autotune.kernels.compiled import kernels_folder
from autotune.kernels.contenders import deciding_final, ranked
from autotune.records.configuration import Configuration
from autotune.records.device import Toolchain
from autotune.records.kernel_final import KernelFinal
from autotune.records.kernel_problem import GemmProblem
from autotune.records.kernel_trial import KernelTrial

LOG_LINES = 8
"""The number of last lines that are shown of the output of a step that failed."""


class KernelSupply:
    """Looks up the kernels that a build may choose from, in search, finals, rebuild and reproduction.

    It only reads the database. If the best kernels of a problem were timed against each other, the result decides, see
    :func:`~autotune.kernels.contenders.deciding_final`. ``tell`` gets a message if the problems of a graph cannot be
    found; its builds then leave every problem to torch. Safe to use from several threads.
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
        self._lock, self._searching = threading.Lock(), dict[str, threading.Lock]()

    def of(self, configuration: Configuration) -> KnownKernels | None:
        """Return the tuned kernels in the database for a configuration's graph; ``None`` if it wants none."""
        if not wants_kernels(configuration):
            return None
        toolchains = KernelToolchains(registry.kernels(configuration.backend), self._toolchain)
        best: dict[str, KnownKernel] = {}
        library: dict[str, KnownKernel] = {}
        near: dict[str, tuple[KnownKernel, ...]] = {}
        library_kinds = registry.library_kinds()
        problems = self.problems(configuration)
        finals = self._store.kernel_finals.of(problems, self._device_class)
        for problem in problems:
            trials = self._store.kernels.of(problem, self._device_class, *toolchains.digests)
            final = deciding_final(trials, finals.get(problem.digest, ()), toolchains)
            order = ranked(trials, final)
            calls = [trial for trial in order if trial.configuration.backend in library_kinds]
            for fastest, some in ((best, order), (library, calls)):
                if some:
                    fastest[problem.digest] = _known(some[0], final)
            near[problem.digest] = tuple(
                _known(trial, final)
                for trial in _near(order, final)
                if trial.configuration.backend not in library_kinds
            )
        return KnownKernels(folder=kernels_folder(), toolchain=toolchains.digest, best=best, library=library, near=near)

    def digest(self, configuration: Configuration) -> str:
        """Return the digest of the kernels that a build would get now; empty if the configuration wants none."""
        kernels = self.of(configuration)
        return "" if kernels is None else kernels.digest

    def problems(self, configuration: Configuration) -> Mapping[GemmProblem, float]:
        """Return the kernel problems of a configuration's graph, each with its number of occurrences in a call.

        Every graph is searched once. The answer is empty, and is not kept, after the study was asked to stop.
        """
        graph = graph_of(configuration)
        with self._lock:
            searching = self._searching.setdefault(graph, threading.Lock())
        with searching:  # whoever needs the same graph waits for the first
            return self._found(graph, configuration)

    def _found(self, graph: str, configuration: Configuration) -> Mapping[GemmProblem, float]:
        if self._stop.is_set():
            return {}
        if graph not in self._problems:
            result = self._executor.problems(configuration)
            if self._stop.is_set():
                return {}
            if result.failure is not None:
                tail = result.failure.log_tail.strip().splitlines()[-LOG_LINES:]
                self._tell("\n    ".join([f"{configuration}: it gets no tuned kernels: {result.failure}", *tail]))
            counted = () if result.value is None else result.value.problems
            self._problems[graph] = {entry.problem: entry.count for entry in counted}
        return self._problems[graph]


def graph_of(configuration: Configuration) -> str:
    """Return a digest that is the same for configurations whose graphs have the same kernel problems."""
    invariants = registry.kernel_tuner(configuration.backend).graph_invariants
    values = {name: value for name, value in configuration.values if name not in invariants}
    return Configuration.of(configuration.backend, values).digest


def _known(trial: KernelTrial, final: KernelFinal | None) -> KnownKernel:
    """Return a kernel with its median in the final, or in the search if it took no part."""
    finalist = final.of(trial.configuration) if final is not None else None
    median_us = trial.median_us if finalist is None else finalist.median_us
    if median_us is None:
        raise ValueError(f"a kernel trial of {trial.configuration} is {trial.state} and has no samples")
    return KnownKernel(configuration=trial.configuration, median_us=median_us)


def _near(order: Sequence[KernelTrial], final: KernelFinal | None) -> Iterator[KernelTrial]:
    """Yield the trials of kernels that take at most :data:`NEAR` times as long as the best, in their order.

    Finalists are compared by the rounds of the final, all others by the medians of the search.
    """
    lowest_us = min((trial.median_us or math.inf for trial in order), default=math.inf)
    for trial in order:
        ratio = final.ratio(trial.configuration, order[0].configuration) if final is not None else None
        if ratio is None:
            ratio = (trial.median_us or math.inf) / lowest_us
        if ratio <= NEAR:
            yield trial
