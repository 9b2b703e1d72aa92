"""The answers of steps: one record a step, and the table of them by the names of the steps."""

from collections.abc import Mapping
from dataclasses import dataclass

from autotune.execute.step_record import StepRecord
from autotune.records.kernel_problem import GemmProblem
from autotune.records.roofs import Roof
from autotune.records.trial import Failure, Measurement
from autotune.records.workload import Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class Done(StepRecord):
    """The answer of a step that has done its work, and has nothing to report."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrepareAnswer(StepRecord):
    """A captured model.

    ``imported`` are the third-party modules that its factory imported, so that later steps need not pay for them;
    ``read`` records what was read meanwhile, so that an unchanged model is recognised without making it; ``notes`` is
    what the user ought to know of the capture.
    """

    workload: Workload
    imported: tuple[str, ...]
    read: Mapping[str, object]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricCode(StepRecord):
    """The digest of what the code of a metric depends on, and a record of what was read to get it."""

    code: str
    read: Mapping[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsAnswer(StepRecord):
    """The code of each metric, in the order of the request."""

    metrics: tuple[MetricCode, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildAnswer(StepRecord):
    """The time that a build took, and the digest of the tuned kernels that it was handed (empty if none)."""

    build_s: float
    kernels: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasureAnswer(StepRecord):
    """The verdict on a candidate and, if it was accepted and timed, its measurement.

    ``failure`` is the gate's refusal. ``pruned`` says that timing was abandoned; ``score`` is what the objective
    minimises, ``None`` if that is the latency.
    """

    signal_error: float | None = None
    failure: Failure | None = None
    measurement: Measurement | None = None
    pruned: bool = False
    score: float | None = None

    @property
    def timed(self) -> Measurement:
        """The measurement of a candidate that was timed; ``ValueError`` if it was not."""
        if self.measurement is None:
            raise ValueError(f"a candidate that was not timed: {self.failure or 'it was only checked'}")
        return self.measurement


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryReading(StepRecord):
    """A peak of memory above what was used before, or the reason why it is not available.

    ``per_process`` says that other processes cannot have changed it, ``alone`` that none loaded meanwhile; ``source``
    names the counter. The figures of torch's allocator are there if the process used it.
    """

    available: bool
    alone: bool = True
    reason: str = ""
    peak_bytes: int = 0
    before_bytes: int = 0
    source: str = ""
    per_process: bool = False
    torch_allocated_bytes: int | None = None
    torch_reserved_bytes: int | None = None

    def as_conditions(self) -> dict[str, object]:
        """Plain data as it stands in the conditions of a measurement: without what is not there."""
        values = {name: value for name, value in self.as_dict().items() if value is not None}
        left_out = ("schema", "reason") if self.available else ("schema",)
        return {name: value for name, value in values.items() if name not in left_out}


@dataclass(frozen=True, slots=True, kw_only=True)
class FootprintAnswer(StepRecord):
    """The peak of memory of an artifact, and the time of one call on each set of inputs."""

    samples_ms: tuple[float, ...]
    memory: MemoryReading


@dataclass(frozen=True, slots=True, kw_only=True)
class FeaturesAnswer(StepRecord):
    """The number of places of each feature in a graph, by ``backend.feature``."""

    features: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProblemCount(StepRecord):
    """A kernel problem and its number in one call."""

    problem: GemmProblem
    count: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ProblemsAnswer(StepRecord):
    """The kernel problems of a graph."""

    problems: tuple[ProblemCount, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProveAnswer(StepRecord):
    """The signal error of the toy model, and the configuration that was built, in words."""

    signal_error: float
    configuration: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RoofsAnswer(StepRecord):
    """The roofs of a device, those of matrix products by precision; ``absent`` has the reason for one without."""

    copy: Roof
    matrix: Mapping[str, Roof]
    launch: Roof
    absent: Mapping[str, str]


ANSWERS: Mapping[str, type[StepRecord]] = {
    "prepare": PrepareAnswer,
    "metrics": MetricsAnswer,
    "reference": Done,
    "build": BuildAnswer,
    "measure": MeasureAnswer,
    "finals": Done,
    "footprint": FootprintAnswer,
    "deployed": Done,
    "features": FeaturesAnswer,
    "problems": ProblemsAnswer,
    "capture_toy": Done,
    "roofs": RoofsAnswer,
    "prove": ProveAnswer,
}
