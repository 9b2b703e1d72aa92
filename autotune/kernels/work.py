"""The state of a tuning: a kernel problem with its candidates and trials, and builds that are being compiled."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from autotune.errors import AutotuneError
from autotune.kernel import KernelSpace
from autotune.kernels.executor import BuildResult
from autotune.kernels.search import KernelSearch
from autotune.records.configuration import Configuration
from autotune.records.kernel_final import KernelFinal
from autotune.records.kernel_problem import GemmProblem
from autotune.records.kernel_trial import KernelTrial

Compiled = tuple[dict[Configuration, BuildResult], dict[str, AutotuneError]]
"""The results of builds, and the error of each kind that cannot be compiled at all."""


@dataclass(slots=True, kw_only=True)
class TunedWork:
    """The state of one problem: its candidates, their trials, and the counts of this run.

    ``search`` continues ``without`` the kinds whose compiler is missing, except for the builds that are ``ready``:
    compiled for this problem or for another one that shares them. ``hope`` is the log time that other launches of its
    builds are expected to save. ``final`` decides between its best kernels, if there is one.
    """

    problem: GemmProblem
    weight: float
    space: KernelSpace | None = None
    search: KernelSearch | None = None
    without: frozenset[str] = frozenset()
    trials: dict[Configuration, KernelTrial] = field(default_factory=dict)
    compile_s: dict[Configuration, float] = field(default_factory=dict)
    ready: set[Configuration] = field(default_factory=set)
    hope: float = 0.0
    measured: int = 0
    compiled: int = 0
    trouble: AutotuneError | None = None
    final: KernelFinal | None = None

    @property
    def best_us(self) -> float | None:
        """The best median so far."""
        return min((trial.median_us for trial in self.trials.values() if trial.median_us is not None), default=None)


class WithoutKinds:
    """A space without the builds of kinds whose compiler is missing, except for builds that are compiled already."""

    def __init__(self, space: KernelSpace, kinds: frozenset[str], compiled: frozenset[Configuration]) -> None:
        self._space, self._kinds, self._compiled = space, kinds, compiled
        self.builds = self._left(space.builds)
        self.ready = space.ready

    def first(self, count: int) -> Sequence[Configuration]:
        """Return the space's own choice to begin with, as far as it is left."""
        return self._left(self._space.first(count)) if self.builds else ()

    def suggested(self, count: int) -> Sequence[Configuration]:
        """Return the suggestions of the space's advisers that are left."""
        return self._left(self._space.suggested(count))

    def launches(self, build: Configuration) -> Sequence[Configuration]:
        """Return the candidates of a build."""
        return self._space.launches(build)

    def _left(self, builds: Sequence[Configuration]) -> tuple[Configuration, ...]:
        return tuple(build for build in builds if build.backend not in self._kinds or build in self._compiled)
