"""The requests of the steps of tuned kernels: one record per step."""

from dataclasses import dataclass
from pathlib import Path

from autotune.execute.step_record import StepRecord
from autotune.kernels.timing import TimingLimits
from autotune.records.configuration import Configuration
from autotune.records.device import Device
from autotune.records.kernel_problem import GemmProblem


@dataclass(frozen=True, slots=True, kw_only=True)
class RatesRequest(StepRecord):
    """Read the rates of a device."""

    device: Device


@dataclass(frozen=True, slots=True, kw_only=True)
class CompileRequest(StepRecord):
    """Compile the ``builds`` of a problem into the cache ``folder``."""

    backend: str
    device: Device
    problem: GemmProblem
    folder: Path
    builds: tuple[Configuration, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeRequest(StepRecord):
    """Check and time the ``candidates`` of a problem, whose builds are in the cache ``folder``.

    ``best_us`` is the fastest time so far; a candidate that is hopelessly slower is not timed to the end.
    """

    backend: str
    device: Device
    problem: GemmProblem
    folder: Path
    candidates: tuple[Configuration, ...]
    seed: int
    best_us: float | None
    limits: TimingLimits


@dataclass(frozen=True, slots=True, kw_only=True)
class ProblemFinalists(StepRecord):
    """One problem with the candidates that are timed against each other."""

    problem: GemmProblem
    finalists: tuple[Configuration, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundsRequest(StepRecord):
    """Time finalists against each other, problem by problem: ``rounds`` of ``samples`` calls of each."""

    backend: str
    device: Device
    folder: Path
    rounds: int
    samples: int
    seed: int
    work: tuple[ProblemFinalists, ...]
