"""The types of the plain data that explain a plan, as ``autotune explain --json`` prints it."""

from typing import NotRequired, TypedDict

from autotune.records.configuration import Scalar


class HeavyKernelEntry(TypedDict):
    """A kernel of the trace with its share of the time."""

    name: str
    share: float


class Figures(TypedDict, total=False):
    """The figures of a finalist from its kernel trace and from the device's own counters."""

    kernels_per_call: float
    copies_per_call: float
    gpu_utilisation: float
    sm_efficiency: float
    occupancy: float
    heaviest: list[HeavyKernelEntry]
    sm_util: float
    sm_occupancy: float
    any_tensor: float
    dram_bw: float


class GemmEntry(TypedDict):
    """All GEMMs of an artifact that have the same problem and the same kernel."""

    problem: dict[str, object]
    times: int
    sites: list[str]
    places: list[str]
    configuration: dict[str, Scalar]
    kernel: str
    median_us: float
    library: str | None
    library_us: float | None
    saved_us: float | None
    saved_share: float | None
    saved_us_per_call: float | None


class TorchEntry(TypedDict):
    """Operators of the same kind that torch computes for the same reason."""

    what: str
    why: str
    times: int
    places: list[str]


class GraphExplanation(TypedDict):
    """The graph of an artifact: its fusions with their places, its GEMMs, and the operators that torch computes.

    ``written`` counts the operators with generated kernels, ``left`` are those that torch computes.
    """

    nodes_before: int
    nodes_after: int
    fusions: dict[str, int]
    places: dict[str, list[str]]
    kernels: list[GemmEntry]
    saved_us_per_call: float | None
    written: dict[str, int]
    left: list[TorchEntry]


class OtherFinalist(TypedDict):
    """A finalist that was not promoted."""

    configuration: dict[str, Scalar]
    latency_ms: float
    interval_ms: list[float]


class RefusedTrial(TypedDict):
    """A trial that failed, or that a constraint refused."""

    number: int
    configuration: dict[str, Scalar]
    why: str


class Explanation(TypedDict):
    """A plan with its finals, its trials by state, and the graph of its artifact.

    ``before`` and ``after`` are the figures of the baseline and of the plan; ``None`` if the finals took none, and
    ``not_measured`` is then the reason (a CPU has no kernels to trace). ``graph`` is ``None`` if the backend does not
    describe its graph, or if the artifact is not here.
    """

    name: str
    batch: int
    structure: str
    weights: str
    device: str
    configuration: dict[str, Scalar]
    status: str
    latency_ms: float
    baseline_latency_ms: float
    speedup: float
    before: Figures | None
    after: Figures | None
    not_measured: str | None
    graph: GraphExplanation | None
    others: list[OtherFinalist]
    trials: dict[str, int]
    refused: list[RefusedTrial]


class TimedKernel(TypedDict):
    """A kernel at a site of an artifact: its configuration, its words for people, and its median time."""

    configuration: dict[str, Scalar]
    words: str
    median_us: float


class ExplainedSite(TypedDict):
    """An operator of an artifact, as :meth:`autotune.backend.ExplainsArtifacts.explain_artifact` describes it."""

    name: str
    operator: str
    problem: NotRequired[dict[str, object] | None]
    place: NotRequired[str]
    kernel: NotRequired[TimedKernel | None]
    library: NotRequired[TimedKernel | None]
    plans: NotRequired[list[object]]
    why: NotRequired[str | None]
