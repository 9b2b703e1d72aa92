"""The second level of a study: the kernels of a graph are tuned before what takes them is built."""

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
"""Of the budget that is left when a configuration first wants tuned kernels, so much goes to kernels at most.

The rest is for building and timing whole models, which is what decides; a kernel that is known already costs nothing.
"""


class StudyKernels:
    """Tunes the kernels of configurations that ask for any, within a share of the budget."""

    def __init__(self, on: StudyContext) -> None:
        self.on = on
        self._tuned: set[tuple[str, GemmProblem]] = set()
        self._spent_s = 0.0

    def look(self, configurations: Sequence[Configuration]) -> None:
        """Find the kernel problems of the graphs of configurations, of several graphs at once; each is kept."""
        graphs = {graph_of(one): one for one in configurations if wants_kernels(one)}
        if graphs:
            with ThreadPoolExecutor(max(1, min(len(graphs), self.on.request.device.cores // 2))) as pool:
                list(pool.map(self.on.supply.problems, graphs.values()))

    def prepare(
        self, configurations: Sequence[Configuration], budget_s: float
    ) -> Mapping[Configuration, KnownKernels | None]:
        """Tune the kernels of those configurations that want them tuned; return what each build is to be handed.

        ``budget_s`` is what the whole study has left. Each problem is tuned once, for all configurations that have it;
        if the study is to tune none, builds are handed what is known all the same.
        What goes wrong in tuning costs tuned kernels and nothing else, except that the study was stopped or taken over:
        a build leaves to torch what nothing is known for.
        """
        asking = [one for one in configurations if wants_kernels(one)]
        if asking:
            begin = time.monotonic()
            self._tune(asking, begin, SHARE * (budget_s + self._spent_s) - self._spent_s)
            self._spent_s += self.on.executor.split.worked_s(begin, time.monotonic())
        return {one: self.on.supply.of(one) for one in configurations}

    def _tune(self, asking: Sequence[Configuration], begin: float, allowed_s: float) -> None:
        supply, request = self.on.supply, self.on.request
        self.look(asking)
        for backend in dict.fromkeys(one.backend for one in asking):
            counts: dict[GemmProblem, float] = {}
            for configuration in asking:
                if configuration.backend != backend:
                    continue
                for problem, count in supply.problems(configuration).items():
                    if (backend, problem) not in self._tuned:
                        counts[problem] = max(count, counts.get(problem, 0.0))
            if counts and request.tune_kernels and not self.on.stop.is_set():
                self._tuned |= {(backend, problem) for problem in counts}
                worked_s = self.on.executor.split.worked_s(begin, time.monotonic())
                self._tune_these(counts, backend, max(0.0, allowed_s - worked_s))

    def _tune_these(self, counts: Mapping[GemmProblem, float], backend: str, budget_s: float) -> None:
        on = self.on
        try:
            report = tune_kernels(
                counts, on.request.device, on.store, on.executor.server, backend=backend, budget_s=budget_s,
                progress=on.progress, stop=on.stop, seed=on.request.seed,
            )  # fmt: skip
        except (StudyInterruptedError, StudyTakenOverError):
            raise
        except AutotuneError as error:
            text = f"{backend}: kernels could not be tuned, so builds take those that are known and torch's: {error}"
            on.progress.event("message", text=text)
        else:
            on.executor.split.add(report.spans)
