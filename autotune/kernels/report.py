"""The result of a tuning of kernels: KernelReport."""

from dataclasses import dataclass

from autotune import registry
from autotune.errors import AutotuneError
from autotune.execute.step_result import Span
from autotune.kernels.rates import DeviceRates
from autotune.records.kernel_final import KernelFinal
from autotune.records.kernel_problem import GemmProblem
from autotune.records.kernel_trial import KernelTrial


@dataclass(frozen=True, slots=True, kw_only=True)
class TunedProblem:
    """All trials of a problem, complete ones first and the fastest first.

    If it has a ``final``, the finalists come first, in the order of its rounds.

    ``weight`` is the number of times that a call of the model computes it. ``measured`` and ``compiled`` are the counts
    of this run; ``trouble`` is the error that ended it.
    """

    problem: GemmProblem
    weight: float
    trials: tuple[KernelTrial, ...]
    measured: int = 0
    compiled: int = 0
    trouble: AutotuneError | None = None
    final: KernelFinal | None = None

    @property
    def complete(self) -> tuple[KernelTrial, ...]:
        """The complete trials, the fastest first."""
        return tuple(trial for trial in self.trials if trial.state == "complete")

    @property
    def best(self) -> KernelTrial | None:
        """The fastest trial."""
        return next(iter(self.complete), None)

    @property
    def library(self) -> KernelTrial | None:
        """The fastest trial of the libraries' own calls."""
        library_kinds = registry.library_kinds()
        return next((trial for trial in self.complete if trial.configuration.backend in library_kinds), None)

    @property
    def saved(self) -> float | None:
        """The share of the time of the best library call that the best kernel saves; ``None`` if one is unknown.

        By the rounds if both took part in the final, else by the search.
        """
        if self.best is None or self.library is None:
            return None
        ratio = self.final.ratio(self.best.configuration, self.library.configuration) if self.final else None
        if ratio is None and self.best.median_us and self.library.median_us:
            ratio = self.best.median_us / self.library.median_us
        return None if ratio is None else 1 - ratio


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelReport:
    """The result for each problem, and the spans of time.

    ``rates`` are the device's, if they are known; ``stopped`` is true if it was ended from outside, ``notes`` are
    about missing compilers.
    """

    problems: tuple[TunedProblem, ...]
    toolchain: str
    rates: DeviceRates | None
    seconds: float
    spans: tuple[Span, ...]
    stopped: bool = False
    notes: tuple[str, ...] = ()
