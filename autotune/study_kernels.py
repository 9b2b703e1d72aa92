"""The second level of a study: the kernels of a graph are tuned before what takes them is built."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from autotune import registry
from autotune.configuration import Configuration
from autotune.database.kernel_trials import LIBRARY_KINDS
from autotune.environment import cache_folder
from autotune.kernel import KnownKernel, KnownKernels, toolchain_of
from autotune.kernel_problem import GemmProblem
from autotune.kernel_trial import KernelTrial
from autotune.kernel_tuning import tune_kernels
from autotune.model.source import tell_kernels
from autotune.study_context import StudyContext

log = logging.getLogger(__name__)

SHARE = 0.5
"""Of the budget that is left when a configuration wants tuned kernels, so much goes to its kernels at most.

The rest is for building and timing whole models, which is what decides; a kernel that is known already costs nothing.
"""

LOG_LINES = 8
"""So much is told of what a step printed before it failed."""


class StudyKernels:
    """Tunes what configurations with ``kernels=tuned`` need, within a share of the budget, and tells builds of it."""

    def __init__(self, on: StudyContext) -> None:
        self.on = on
        self._problems: dict[str, Mapping[GemmProblem, float]] = {}

    def prepare(self, configurations: Sequence[Configuration], budget_s: float) -> None:
        """Tune the kernels of those configurations that want them tuned, then tell the builds what is known.

        Whatever goes wrong costs tuned kernels and nothing else: a build leaves to torch what nothing is known for.
        """
        asking = [one for one in configurations if one.get("kernels", "") == "tuned"]
        for configuration in asking:
            problems = self._of(configuration)
            if problems and not self.on.stop.is_set():
                report = tune_kernels(
                    problems, self.on.request.device, self.on.store, self.on.bench.server,
                    backend=configuration.backend, budget_s=SHARE * budget_s, progress=self.on.progress,
                    stop=self.on.stop, seed=self.on.request.seed,
                )  # fmt: skip
                self.on.bench.split.add(report.spans)
        if asking:
            tell_kernels(self.on.bench.model, self._known(asking))

    def _of(self, configuration: Configuration) -> Mapping[GemmProblem, float]:
        """The problems of a configuration's graph; what its own search decides does not change them."""
        values = {name: value for name, value in configuration.values if name not in _NO_PART}
        digest = Configuration.of(configuration.backend, values).digest
        if digest not in self._problems:
            looked = self.on.bench.problems(configuration)
            if self.on.stop.is_set():
                return {}
            if looked.failure is not None:
                tail = looked.failure.log_tail.strip().splitlines()[-LOG_LINES:]
                text = "\n    ".join([f"{configuration}: its kernels are not tuned: {looked.failure}", *tail])
                self.on.progress.event("message", text=text)
            entries: list[Mapping[str, Any]] = (looked.value or {}).get("problems", [])
            self._problems[digest] = {GemmProblem.from_dict(one["problem"]): float(one["count"]) for one in entries}
        return self._problems[digest]

    def _known(self, asking: Sequence[Configuration]) -> KnownKernels:
        """What the database knows of the problems: the best kernels, and the best of the libraries' calls."""
        best: dict[str, KnownKernel] = {}
        library: dict[str, KnownKernel] = {}
        for configuration in asking:
            toolchain = toolchain_of(registry.kernels(configuration.backend), self.on.toolchain).digest
            for problem in self._of(configuration):
                complete = [
                    trial
                    for trial in self.on.store.kernels.of(problem, self.on.row.device_class, toolchain)
                    if trial.state == "complete"
                ]
                calls = [trial for trial in complete if trial.configuration.backend in LIBRARY_KINDS]
                for found, trials in ((best, complete), (library, calls)):
                    if trials:
                        found[problem.digest] = _fastest(trials)
        return KnownKernels(folder=cache_folder() / "kernels", best=best, library=library)


_NO_PART = ("kernels", "cuda_graph", "cudnn_benchmark", "threads")
"""Parameters that leave a graph's kernel problems as they are."""


def _fastest(trials: Sequence[KernelTrial]) -> KnownKernel:
    first = min(trials, key=lambda trial: (trial.median_us or 0.0, trial.configuration.digest))
    return KnownKernel(configuration=first.configuration, median_us=first.median_us or 0.0)
