"""The second level of a study: the kernels of a graph are tuned before what takes them is built."""

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from autotune import registry
from autotune.configuration import Configuration
from autotune.database.kernel_trials import LIBRARY_KINDS
from autotune.environment import cache_folder
from autotune.kernel import NEAR, KnownKernel, KnownKernels, toolchain_of
from autotune.kernel_problem import GemmProblem
from autotune.kernel_trial import KernelTrial
from autotune.kernel_tuning import tune_kernels
from autotune.model.source import tell_kernels
from autotune.study_context import StudyContext

log = logging.getLogger(__name__)

SHARE = 0.5
"""Of the budget that is left when a configuration first wants tuned kernels, so much goes to kernels at most.

The rest is for building and timing whole models, which is what decides; a kernel that is known already costs nothing.
"""

LOG_LINES = 8
"""So much is told of what a step printed before it failed."""


class StudyKernels:
    """Tunes the kernels of configurations that ask for any, within a share of the budget, and tells builds of them."""

    def __init__(self, on: StudyContext) -> None:
        self.on = on
        self._problems: dict[str, Mapping[GemmProblem, float]] = {}
        self._tuned: set[tuple[str, GemmProblem]] = set()
        self._spent_s = 0.0

    def prepare(self, configurations: Sequence[Configuration], budget_s: float) -> None:
        """Tune the kernels of those configurations that want them tuned, then tell the builds what is known.

        ``budget_s`` is what the whole study has left. Each problem is tuned once, for all configurations that have it;
        where the study is to tune none, builds are told what is known all the same.
        Whatever goes wrong costs tuned kernels and nothing else: a build leaves to torch what nothing is known for.
        """
        begin = time.monotonic()
        asking = [one for one in configurations if one.get("kernels", "torch") != "torch"]
        if not asking:
            return
        allowed_s = SHARE * (budget_s + self._spent_s) - self._spent_s
        with ThreadPoolExecutor(max(1, min(len(asking), self.on.request.device.cores // 2))) as pool:
            list(pool.map(self._of, {_graph_of(one): one for one in asking}.values()))
        looked = [self._of(one) for one in asking]
        for backend in dict.fromkeys(one.backend for one in asking):
            counts: dict[GemmProblem, float] = {}
            for configuration, problems in zip(asking, looked, strict=True):
                for problem, count in problems.items():
                    if configuration.backend == backend and (backend, problem) not in self._tuned:
                        counts[problem] = max(count, counts.get(problem, 0.0))
            if counts and self.on.request.tune_kernels and not self.on.stop.is_set():
                report = tune_kernels(
                    counts, self.on.request.device, self.on.store, self.on.bench.server, backend=backend,
                    budget_s=max(0.0, allowed_s - (time.monotonic() - begin)), progress=self.on.progress,
                    stop=self.on.stop, seed=self.on.request.seed,
                )  # fmt: skip
                self._tuned |= {(backend, problem) for problem in counts}
                self.on.bench.split.add(report.spans)
        self._spent_s += time.monotonic() - begin
        tell_kernels(self.on.bench.model, self._known(asking))

    def _of(self, configuration: Configuration) -> Mapping[GemmProblem, float]:
        """The problems of a configuration's graph; what its own search decides does not change them."""
        digest = _graph_of(configuration)
        if self.on.stop.is_set():
            return {}
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
        """What the database knows of the problems: the best kernels, those near them, the libraries' best calls."""
        best: dict[str, KnownKernel] = {}
        library: dict[str, KnownKernel] = {}
        near: dict[str, tuple[KnownKernel, ...]] = {}
        for configuration in asking:
            toolchain = toolchain_of(registry.kernels(configuration.backend), self.on.toolchain).digest
            for problem in self._of(configuration):
                complete = _by_time(self.on.store.kernels.of(problem, self.on.row.device_class, toolchain))
                calls = [known for known in complete if known.configuration.backend in LIBRARY_KINDS]
                for found, several in ((best, complete), (library, calls)):
                    if several:
                        found[problem.digest] = several[0]
                near[problem.digest] = tuple(
                    known for known in complete
                    if known not in calls and known.median_us <= NEAR * complete[0].median_us
                )  # fmt: skip
        return KnownKernels(folder=cache_folder() / "kernels", best=best, library=library, near=near)


_NO_PART = ("kernels", "cuda_graph", "cudnn_benchmark", "programmatic_launch", "threads")
"""Parameters that leave a graph's kernel problems as they are."""


def _graph_of(configuration: Configuration) -> str:
    """What two configurations share whose graphs are the same."""
    values = {name: value for name, value in configuration.values if name not in _NO_PART}
    return Configuration.of(configuration.backend, values).digest


def _by_time(trials: Iterable[KernelTrial]) -> list[KnownKernel]:
    """What was timed to the end, the fastest first."""
    complete = [
        KnownKernel(configuration=trial.configuration, median_us=trial.median_us)
        for trial in trials
        if trial.state == "complete" and trial.median_us is not None
    ]
    return sorted(complete, key=lambda known: (known.median_us, known.configuration.digest))
