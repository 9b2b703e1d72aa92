"""The second level of a study: kernels are tuned before the configurations that use them are built: StudyKernels."""

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from autotune import registry
from autotune.errors import AutotuneError, StudyInterruptedError, StudyTakenOverError
from autotune.kernel import KernelToolchains, KnownKernels, wants_kernels
from autotune.kernels.compiled import writable_kernels_folder
from autotune.kernels.executor import KernelExecutor
from autotune.kernels.host import TuningHost
from autotune.kernels.prefetch import KernelPrefetch
from autotune.kernels.tuning import tune_kernels
from autotune.records.configuration import Configuration
from autotune.records.kernel_problem import GemmProblem
from autotune.study.context import StudyContext
from autotune.study.kernel_supply import graph_of

log = logging.getLogger(__name__)

SHARE = 0.5
"""The largest share for kernels of the budget that is left when a configuration first wants tuned kernels.

The rest is for building and timing whole models, which decides the plan. A kernel that was tuned before costs nothing.
"""

LASTS = 0.75
"""The share of that in which a tuning ends, with the turns that candidates take on the device meanwhile.

A study of ResNet-50 on an H200 counted these turns as work on kernels. They were half of 74 s, and no kernel that
splits k was timed for the two products that need it: the plan took 0.266 ms instead of 0.222.
"""

LEAST_TUNING_S = 5.0
"""A tuning with less time is not begun: it would time libraries' calls only, on a GPU about 20 in a second.

A default study on an H200 began one with 1 s that timed 100 calls in 6 s, for candidates that were 2 to 15 times slower
than the best.
"""


class StudyKernels:
    """Tunes the kernels of the configurations that want tuned kernels, within a share of the budget.

    ``host`` is another one than this in a simulation.
    """

    def __init__(self, context: StudyContext, host: TuningHost | None = None) -> None:
        self.context = context
        self.host = host or TuningHost(clock=context.clock)
        self._tuned: set[tuple[str, GemmProblem]] = set()
        self._spent_s = 0.0
        self._prefetches: list[KernelPrefetch] = []

    def begin_compiling(self) -> None:
        """Begin to compile the first builds of the kernels that the study will tune, beside its first candidates.

        The problems are known when the model is captured, and compiling needs no device. On a CPU it would disturb
        every timing, so nothing is begun.
        """
        request, spaces = self.context.request, self.context.spaces
        if request.device.kind == "cpu" or not request.tune_kernels:
            return
        offered = [configuration for space in spaces for configuration in (*space.defaults, *space.hints)]
        by_backend: dict[str, list[Configuration]] = {}
        for configuration in filter(wants_kernels, offered):
            by_backend.setdefault(configuration.backend, []).append(configuration)
        for backend, configurations in by_backend.items():
            try:
                executor = self._kernel_executor(backend)
            except AutotuneError as error:
                log.info("%s: no kernels are compiled before the tuning: %s", backend, error)  # the tuning will say so
                continue
            find = functools.partial(self._counts, configurations)
            self._prefetches.append(self._prefetch(executor, find))
            self._prefetches[-1].begin()

    def _prefetch(self, executor: KernelExecutor, find: Callable[[], Mapping[GemmProblem, float]]) -> KernelPrefetch:
        return KernelPrefetch(executor, find, self.context.request.seed, self.host)

    def close(self) -> None:
        """End the compiling that :meth:`begin_compiling` began."""
        for prefetch in self._prefetches:
            prefetch.close()
        self._prefetches.clear()

    def _kernel_executor(self, backend: str) -> KernelExecutor:
        toolchains = KernelToolchains(registry.kernels(backend), self.context.toolchain)
        begin = self.host.executor or KernelExecutor
        return begin(
            self.context.executor.server, self.context.request.device, backend, writable_kernels_folder(),
            toolchains=toolchains, seed=self.context.request.seed,
        )  # fmt: skip

    def _counts(self, configurations: Sequence[Configuration]) -> Mapping[GemmProblem, float]:
        """Return the problems of some configurations, each with its largest number of occurrences in a call."""
        self.find_problems(configurations)
        counts: dict[GemmProblem, float] = {}
        for configuration in configurations:
            for problem, count in self.context.supply.problems(configuration).items():
                counts[problem] = max(count, counts.get(problem, 0.0))
        return counts

    def find_problems(self, configurations: Sequence[Configuration]) -> None:
        """Find the kernel problems of the configurations' graphs, several graphs at once; the supply keeps them."""
        graphs = {graph_of(configuration): configuration for configuration in filter(wants_kernels, configurations)}
        if graphs:
            with ThreadPoolExecutor(max(1, min(len(graphs), self.context.request.device.cores // 2))) as pool:
                list(pool.map(self.context.supply.problems, graphs.values()))

    def prepare(
        self, configurations: Sequence[Configuration], budget_s: float, crowded: Callable[[], bool] = lambda: False
    ) -> Mapping[Configuration, KnownKernels | None]:
        """Tune the kernels of those configurations that want tuned ones; return the kernels for each build.

        ``budget_s`` is the rest of the whole study's budget. While it is ``crowded``, models are built beside it, and
        fewer cores compile kernels. Each problem is tuned once, for all configurations that have it. If the study is to
        tune none, or less than :data:`LEAST_TUNING_S` is left for kernels, builds get the kernels that the database has
        already. An error in tuning costs tuned kernels only: a build leaves a problem without one to torch.
        StudyInterruptedError and StudyTakenOverError are raised.
        """
        wanting = list(filter(wants_kernels, configurations))
        if wanting:
            self._tune(wanting, budget_s, crowded)
        return {configuration: self.context.supply.of(configuration) for configuration in configurations}

    def _tune(self, wanting: Sequence[Configuration], budget_s: float, crowded: Callable[[], bool]) -> None:
        request, clock = self.context.request, self.context.clock
        begin = clock()
        self.find_problems(wanting)
        for backend in dict.fromkeys(configuration.backend for configuration in wanting):
            same = [configuration for configuration in wanting if configuration.backend == backend]
            counts = {
                problem: count for problem, count in self._counts(same).items()
                if (backend, problem) not in self._tuned
            }  # fmt: skip
            if counts and request.tune_kernels and not self.context.stop.is_set():
                rest_s = budget_s - self.context.executor.split.worked_s(begin, clock())
                left_s = SHARE * (rest_s + self._spent_s) - self._spent_s
                if left_s < LEAST_TUNING_S:
                    log.info("%s: %.1f s are left for %d kernel problems: too few", backend, left_s, len(counts))
                    continue
                self._tuned |= {(backend, problem) for problem in counts}
                self._tune_these(counts, backend, left_s, LASTS * rest_s, crowded)

    def _tune_these(
        self, counts: Mapping[GemmProblem, float], backend: str, budget_s: float, limit_s: float,
        crowded: Callable[[], bool],
    ) -> None:  # fmt: skip
        context = self.context
        self.close()  # the tuning compiles in its own order
        try:
            with context.executor.watched("tune_kernels"):  # other steps run beside it, and end before it
                report = tune_kernels(
                    counts, context.request.device, context.store, context.executor.server, backend=backend,
                    budget_s=budget_s, limit_s=limit_s, progress=context.progress, stop=context.stop,
                    seed=context.request.seed, host=self.host, crowded=crowded,
                )  # fmt: skip
            self._spent_s += report.worked_s
        except (StudyInterruptedError, StudyTakenOverError):
            raise
        except AutotuneError as error:
            text = f"{backend}: kernels could not be tuned, so builds take those of earlier tuning, or torch's: {error}"
            context.progress.event("message", text=text)
        else:
            context.executor.split.add(report.spans)
