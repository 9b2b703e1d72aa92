"""The steps that a worker runs, by name: STEPS.

Each takes a request and a channel on which it says which stage it is in, and returns an answer. Both are typed records
(:mod:`autotune.execute.requests`, :mod:`autotune.execute.answers`) that cross the border between two processes as plain
data; folders hold everything larger. Steps compose model, runtime, accuracy and measure. They read artifacts from the
store of artifacts, which lies beside the tuning database; no step opens the database itself.
"""

from collections.abc import Callable, Mapping
from typing import TypeVar

from autotune.execute import (
    build_steps,
    finals_steps,
    graph_steps,
    measure_steps,
    metric_steps,
    proof_steps,
    roof_steps,
)
from autotune.execute.channel import Channel
from autotune.execute.requests import (
    BuildRequest,
    CaptureToyRequest,
    DeployedRequest,
    FeaturesRequest,
    FinalsRequest,
    FootprintRequest,
    MeasureRequest,
    MetricsRequest,
    PrepareRequest,
    ProblemsRequest,
    ProveRequest,
    ReferenceRequest,
    RoofsRequest,
)
from autotune.execute.step_record import StepRecord

Step = Callable[[Mapping[str, object], Channel], dict[str, object]]
"""A step as a worker calls it: plain data in, plain data out."""

Request = TypeVar("Request", bound=StepRecord)


def typed_step(kind: type[Request], function: Callable[[Request, Channel], StepRecord]) -> Step:
    """Return a step that reads its request, and writes its answer, as plain data."""
    return lambda request, channel: function(kind.from_dict(request), channel).as_dict()


STEPS: Mapping[str, Step] = {
    "prepare": typed_step(PrepareRequest, build_steps.prepare),
    "metrics": typed_step(MetricsRequest, metric_steps.metrics),
    "reference": typed_step(ReferenceRequest, build_steps.reference),
    "build": typed_step(BuildRequest, build_steps.build),
    "measure": typed_step(MeasureRequest, measure_steps.measure),
    "finals": typed_step(FinalsRequest, finals_steps.finals),
    "footprint": typed_step(FootprintRequest, measure_steps.footprint),
    "deployed": typed_step(DeployedRequest, measure_steps.deployed),
    "features": typed_step(FeaturesRequest, graph_steps.features),
    "problems": typed_step(ProblemsRequest, graph_steps.problems),
    "capture_toy": typed_step(CaptureToyRequest, proof_steps.capture_toy),
    "roofs": typed_step(RoofsRequest, roof_steps.roofs),
    "prove": typed_step(ProveRequest, proof_steps.prove),
}
