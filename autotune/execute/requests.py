"""The requests of steps: one record a step, and the orders that a running step takes."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from autotune.execute.step_record import StepRecord
from autotune.model.inputs import InputSpec
from autotune.records.configuration import Configuration
from autotune.records.device import Device
from autotune.records.objective import Objective


@dataclass(frozen=True, slots=True, kw_only=True)
class PrepareRequest(StepRecord):
    """Make a model by its ``factory`` (a callable or ``file:`` with a path) and capture it into ``folder``."""

    folder: Path
    name: str
    batch: int
    factory: str
    inputs: tuple[InputSpec, ...]
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsRequest(StepRecord):
    """Look at metrics of the user's own, by their ``function``; ``folder`` holds the captured model."""

    folder: Path
    metrics: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceRequest(StepRecord):
    """Compute the reference of the captured model in ``folder``."""

    folder: Path
    device: Device
    objective: Objective


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildRequest(StepRecord):
    """Build a configuration of the captured model in ``folder`` into the folder ``target``.

    ``kernels`` is the file of the tuned kernels that the build is handed; ``None`` if it is handed none.
    """

    folder: Path
    target: Path
    configuration: Configuration
    device: Device
    kernels: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasureRequest(StepRecord):
    """Check the artifact in a folder and, unless ``check_only``, time it for ``limit_s`` seconds.

    Timing is abandoned as soon as it is clear that a call takes longer than ``abandon_ms``. With ``early`` the artifact
    is loaded at once, and judged and timed only after a :class:`MeasureOrder`.
    """

    folder: Path
    artifact: Path
    device: Device
    objective: Objective
    limit_s: float
    seed: int
    check_only: bool = False
    early: bool = False
    abandon_ms: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasureOrder(StepRecord):
    """It is the turn of an artifact that was loaded early."""

    abandon_ms: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class FinalsRequest(StepRecord):
    """Load all finalists: their ``artifacts`` by name.

    ``concurrency`` is how many requests each has in flight if throughput counts; ``canary`` says if the rounds measure
    a fixed piece of work too, ``None`` if the kind of the device decides.
    """

    folder: Path
    device: Device
    artifacts: Mapping[str, Path]
    objective: Objective
    concurrency: Mapping[str, int]
    seed: int
    canary: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundsOrder(StepRecord):
    """Run ``rounds`` rounds of all finalists but the ``frozen`` ones.

    Once ``least`` rounds are done, no round begins that is expected to end after ``limit_s`` seconds. No round but the
    first begins that is expected to end after ``longest_s`` seconds.
    """

    rounds: int
    frozen: tuple[str, ...]
    limit_s: float
    longest_s: float
    least: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FootprintRequest(StepRecord):
    """Read the peak of memory of an artifact; if not ``alone``, it may load beside others."""

    folder: Path
    artifact: Path
    device: Device
    alone: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class DeployedRequest(StepRecord):
    """Call an artifact once as its user will."""

    folder: Path
    artifact: Path
    device: Device


@dataclass(frozen=True, slots=True, kw_only=True)
class FeaturesRequest(StepRecord):
    """Look at the captured graph as each of some backends sees it."""

    folder: Path
    device: Device
    backends: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProblemsRequest(StepRecord):
    """List the kernel problems of the graph that a configuration builds."""

    folder: Path
    device: Device
    configuration: Configuration


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptureToyRequest(StepRecord):
    """Capture the toy model that every proof builds into ``folder``."""

    folder: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class ProveRequest(StepRecord):
    """Prove a backend on the captured toy model, which lies in ``folder`` under ``model``."""

    folder: Path
    backend: str
    device: Device


@dataclass(frozen=True, slots=True, kw_only=True)
class RoofsRequest(StepRecord):
    """Measure the roofs of a device: copies of ``buffer_bytes`` and products of up to ``matrix_rows``.

    ``limit_s`` is the longest time of the samples of one roof.
    """

    device: Device
    buffer_bytes: int
    matrix_rows: int
    limit_s: float
    seed: int
