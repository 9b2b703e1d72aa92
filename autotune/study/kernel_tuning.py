"""The second level of a study: kernels are tuned before the configurations that use them are built: StudyKernels."""

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from autotune.errors import AutotuneError, StudyInterruptedError, StudyTakenOverError
from autotune.kernel import KnownKernels, wants_kernels
from autotune.kernels.tuning import tune_kernels
from autotune.records.configuration import Configuration
from autotune.records.kernel_problem import GemmProblem
from autotune.study.context import StudyContext
from autotune.study.kernel_supply import graph_of

SHARE = 0.5
"""The largest share for kernels of the budget that is left when a configuration first wants tuned kernels.

The rest is for building and timing whole models, which decides the plan. A kernel that was tuned before costs nothing.
"""


class StudyKernels:
    """Tunes the kernels of the configurations that want tuned kernels, within a share of the budget."""

    def __init__(self, context: StudyContext) -> None:
        self.context = context
        self._tuned: set[tuple[str, GemmProblem]] = set()
        self._spent_s = 0.0

    def find_problems(self, configurations: Sequence[Configuration]) -> None:
        """Find the kernel problems of the configurations' graphs, several graphs at once; the supply keeps them."""
        graphs = {graph_of(configuration): configuration for configuration in filter(wants_kernels, configurations)}
        if graphs:
            with ThreadPoolExecutor(max(1, min(len(graphs), self.context.request.device.cores // 2))) as pool:
                list(pool.map(self.context.supply.problems, graphs.values()))

    def prepare(
        self, configurations: Sequence[Configuration], budget_s: float
    ) -> Mapping[Configuration, KnownKernels | None]:
        """Tune the kernels of those configurations that want tuned ones; return the kernels for each build.

        ``budget_s`` is the rest of the whole study's budget. Each problem is tuned once, for all configurations that
        have it. If the study is to tune none, builds get the kernels that the database has already. An error in tuning
        costs tuned kernels only: a build leaves a problem without one to torch. StudyInterruptedError and
        StudyTakenOverError are raised.
        """
        wanting = list(filter(wants_kernels, configurations))
        if wanting:
            begin = time.monotonic()
            self._tune(wanting, begin, SHARE * (budget_s + self._spent_s) - self._spent_s)
            self._spent_s += self.context.executor.split.worked_s(begin, time.monotonic())
        return {configuration: self.context.supply.of(configuration) for configuration in configurations}

    def _tune(self, wanting: Sequence[Configuration], begin: float, allowed_s: float) -> None:
        supply, request = self.context.supply, self.context.request
        self.find_problems(wanting)
        for backend in dict.fromkeys(configuration.backend for configuration in wanting):
            counts: dict[GemmProblem, float] = {}
            for configuration in wanting:
                if configuration.backend != backend:
                    continue
                for problem, count in supply.problems(configuration).items():
                    if (backend, problem) not in self._tuned:
                        counts[problem] = max(count, counts.get(problem, 0.0))
            if counts and request.tune_kernels and not self.context.stop.is_set():
                self._tuned |= {(backend, problem) for problem in counts}
                worked_s = self.context.executor.split.worked_s(begin, time.monotonic())
                self._tune_these(counts, backend, max(0.0, allowed_s - worked_s))

    def _tune_these(self, counts: Mapping[GemmProblem, float], backend: str, budget_s: float) -> None:
        context = self.context
        try:
            report = tune_kernels(
                counts, context.request.device, context.store, context.executor.server, backend=backend,
                budget_s=budget_s, progress=context.progress, stop=context.stop, seed=context.request.seed,
            )  # fmt: skip
        except (StudyInterruptedError, StudyTakenOverError):
            raise
        except AutotuneError as error:
            text = f"{backend}: kernels could not be tuned, so builds take those of earlier tuning, or torch's: {error}"
            context.progress.event("message", text=text)
        else:
            context.executor.split.add(report.spans)
