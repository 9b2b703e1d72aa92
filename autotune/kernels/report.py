"""The result of a tuning of kernels: KernelReport."""

from collections.abc import Iterable
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
        """The trial of the fastest kernel."""
        return next(iter(self.complete), None)

    @property
    def library(self) -> KernelTrial | None:
        """The trial of the fastest of the libraries' own calls."""
        library_kinds = registry.library_kinds()
        return next((trial for trial in self.complete if trial.configuration.backend in library_kinds), None)

    @property
    def best_us(self) -> float | None:
        """The lowest median of the search, also if a final has chosen another kernel."""
        return min(self._medians_us(self.complete), default=None)

    @property
    def library_us(self) -> float | None:
        """The lowest median of the libraries' own calls in the search."""
        library_kinds = registry.library_kinds()
        calls = [trial for trial in self.complete if trial.configuration.backend in library_kinds]
        return min(self._medians_us(calls), default=None)

    @property
    def saved(self) -> float | None:
        """The share of the best library call's time that the best kernel saves by the search; ``None`` if unknown."""
        return None if self.best_us is None or self.library_us is None else 1 - self.best_us / self.library_us

    @staticmethod
    def _medians_us(trials: Iterable[KernelTrial]) -> list[float]:
        return [trial.median_us for trial in trials if trial.median_us is not None]


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelReport:
    """The result for each problem, and the spans of time.

    ``rates`` are the device's, if they are known; ``worked_s`` are the seconds without the waits for other processes;
    ``stopped`` is true if it was ended from outside, ``notes`` are about missing compilers.
    """

    problems: tuple[TunedProblem, ...]
    toolchain: str
    rates: DeviceRates | None
    seconds: float
    worked_s: float
    spans: tuple[Span, ...]
    stopped: bool = False
    notes: tuple[str, ...] = ()
