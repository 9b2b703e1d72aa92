"""Requests and answers at the border between two processes."""

import dataclasses
import inspect
import json
from pathlib import Path
from typing import ClassVar

import pytest

from autotune.errors import WorkerError
from autotune.execute import answers, requests
from autotune.execute.answers import ANSWERS, BuildAnswer, MeasureAnswer, MemoryReading
from autotune.execute.channel import NotOurs
from autotune.execute.message import checked
from autotune.execute.requests import BuildRequest, MeasureRequest
from autotune.execute.server import WorkerServer
from autotune.execute.step_record import StepRecord
from autotune.execute.steps import STEPS
from autotune.model.inputs import InputSpec
from autotune.records.configuration import Configuration
from autotune.records.kernel_problem import GemmProblem, Window
from autotune.records.objective import Metric, Objective
from autotune.records.trial import Failure, Measurement
from autotune.records.workload import TensorSpec, Workload
from autotune.testing.sample_records import sample_roof
from tests.database.records import DEVICE

ME = "a" * 32
FOLDER = Path("/tmp/study")
CONFIGURATION = Configuration.of("eager", {"precision": "fp32", "threads": 2, "share": 0.5, "graph": True})
OBJECTIVE = Objective(
    name="throughput",
    signal_error_by_output=(("logits", 0.01),),
    metrics=(Metric(function="a.py:metric", at_most=0.1),),
)
SPEC = InputSpec(name="x", shape=("batch", 16), dtype="int64", low=0, high=5)
TENSOR = TensorSpec(name="x", shape=(2, 16), dtype="float32")
WORKLOAD = Workload(name="toy", batch=2, structure="0" * 64, weights="1" * 64, inputs=(TENSOR,), outputs=(TENSOR,))
PROBLEM = GemmProblem(m=128, n=64, k=32, window=Window(height=8, width=16, channels=32, kernel=(1, 1)))
FAILURE = Failure(stage="check", kind="inaccurate", detail="wrong", figure=0.5)
MEASUREMENT = Measurement(
    samples_ms=((1.0, 1.5), (2.0,)), device_samples_ms=((0.5,),), conditions={"seed": 1, "readings": {"gpu": {}}}
)
MEMORY = MemoryReading(available=True, alone=False, peak_bytes=2**40, per_process=True, torch_allocated_bytes=5)
READ = {"files": {"a": "b"}, "unknown": []}

RECORDS = [
    requests.PrepareRequest(folder=FOLDER, name="toy", batch=2, factory="a.py:make", inputs=(SPEC,), seed=7),
    requests.MetricsRequest(folder=FOLDER, metrics=("a.py:metric",)),
    requests.ReferenceRequest(folder=FOLDER, device=DEVICE, objective=OBJECTIVE),
    BuildRequest(folder=FOLDER, target=FOLDER, configuration=CONFIGURATION, device=DEVICE, kernels=FOLDER),
    MeasureRequest(folder=FOLDER, artifact=FOLDER, device=DEVICE, objective=OBJECTIVE, limit_s=2.0, seed=0),
    requests.MeasureOrder(abandon_ms=None),
    requests.FinalsRequest(
        folder=FOLDER, device=DEVICE, artifacts={"a": FOLDER}, objective=OBJECTIVE, concurrency={"a": 2}, seed=0,
        canary=True,
    ),
    requests.RoundsOrder(rounds=5, frozen=("a",), limit_s=0.5, longest_s=900.0, least=1),
    requests.FootprintRequest(folder=FOLDER, artifact=FOLDER, device=DEVICE, alone=False),
    requests.DeployedRequest(folder=FOLDER, artifact=FOLDER, device=DEVICE),
    requests.FeaturesRequest(folder=FOLDER, device=DEVICE, backends=("native",)),
    requests.ProblemsRequest(folder=FOLDER, device=DEVICE, configuration=CONFIGURATION),
    requests.CaptureToyRequest(folder=FOLDER),
    requests.ProveRequest(folder=FOLDER, backend="eager", device=DEVICE),
    requests.RoofsRequest(device=DEVICE, buffer_bytes=2**30, matrix_rows=8192, limit_s=2.0, seed=0),
    answers.Done(),
    answers.PrepareAnswer(workload=WORKLOAD, imported=("timm",), read=READ, notes=("a note",)),
    answers.MetricCode(code="0" * 64, read=READ),
    answers.MetricsAnswer(metrics=(answers.MetricCode(code="0" * 64, read=READ),)),
    BuildAnswer(build_s=1.5, kernels=""),
    MeasureAnswer(signal_error=0.5, failure=FAILURE),
    MeasureAnswer(signal_error=1e-6, measurement=MEASUREMENT, pruned=True, score=3.5),
    MEMORY,
    answers.FootprintAnswer(samples_ms=(1.0, 2.0), memory=MEMORY),
    answers.FeaturesAnswer(features={"native.conv_bn": 53}),
    answers.ProblemCount(problem=PROBLEM, count=2.0),
    answers.ProblemsAnswer(problems=(answers.ProblemCount(problem=PROBLEM, count=2.0),)),
    answers.RoofsAnswer(
        copy=sample_roof(), matrix={"fp32": sample_roof()}, launch=sample_roof(), absent={"tf32": "only GPUs have it"}
    ),
    answers.ProveAnswer(signal_error=1e-6, configuration="eager(precision=fp32)"),
]  # fmt: skip


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_plain_data_brings_back_the_same_record(record: StepRecord) -> None:
    text = json.dumps(record.as_dict())
    assert type(record).from_dict(json.loads(text)) == record


def test_every_record_is_tried_and_every_step_answers_by_one() -> None:
    classes = {
        kind
        for module in (requests, answers)
        for _, kind in inspect.getmembers(module, inspect.isclass)
        if issubclass(kind, StepRecord) and kind.__module__ == module.__name__
    }
    assert classes == {type(record) for record in RECORDS}
    assert STEPS.keys() == ANSWERS.keys()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LaterBuildAnswer(BuildAnswer):
    schema: ClassVar[int] = 2
    linked_s: float = 0.0


def test_another_schema_is_refused_by_one_clear_error() -> None:
    later = LaterBuildAnswer(build_s=1.0, kernels="")
    assert later.as_dict()["schema"] == 2 and BuildAnswer(build_s=1.0, kernels="").as_dict()["schema"] == 1
    with pytest.raises(WorkerError, match="do not agree on BuildAnswer") as refused:
        BuildAnswer.from_dict(later.as_dict())
    assert (refused.value.found, refused.value.expected) == ("schema 2", "schema 1")
    assert refused.value.run == "the same version of autotune in both processes"
    with pytest.raises(WorkerError, match="do not agree on LaterBuildAnswer"):
        LaterBuildAnswer.from_dict({"build_s": 1.0, "kernels": ""})
    with pytest.raises(NotOurs, match="do not agree on BuildAnswer"):
        checked({"result": later.as_dict(), "identity": ME}, ME, "build")


GOOD = next(record for record in RECORDS if isinstance(record, MeasureRequest)).as_dict()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": None}, "MeasureRequest.seed: expected int, found None"),
        ({"seed": "1"}, "MeasureRequest.seed: expected int, found '1'"),
        ({"seed": True}, "MeasureRequest.seed: expected int, found True"),
        ({"early": 1}, "MeasureRequest.early: expected bool, found 1"),
        ({"limit_s": "2"}, "MeasureRequest.limit_s: expected int or float"),
        ({"folder": 3}, "MeasureRequest.folder: expected str or Path"),
        ({"device": "cpu"}, "MeasureRequest.device: expected Mapping, found 'cpu'"),
        ({"objective": {"name": "beauty"}}, "objective 'beauty' is not one of"),
        ({"surprise": 1}, r"unknown fields: \['surprise'\]"),
    ],
)
def test_what_is_no_request_is_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        MeasureRequest.from_dict({**GOOD, **changes})


@pytest.mark.parametrize("lacking", ["folder", "artifact", "device", "objective", "limit_s", "seed"])
def test_a_request_that_lacks_something_is_refused(lacking: str) -> None:
    with pytest.raises(ValueError, match=rf"missing fields: \['{lacking}'\]"):
        MeasureRequest.from_dict({name: value for name, value in GOOD.items() if name != lacking})


def test_a_field_with_a_default_may_be_left_out() -> None:
    assert not MeasureRequest.from_dict({name: value for name, value in GOOD.items() if name != "early"}).early


@pytest.mark.parametrize("huge", [10**400, -(10**400)])
def test_a_number_that_is_too_large_for_a_float_is_refused(huge: int) -> None:
    with pytest.raises(NotOurs):
        checked({"result": {"build_s": huge, "kernels": ""}, "identity": ME}, ME, "build")
    with pytest.raises(NotOurs):
        checked({"stage": "load", "at": huge, "identity": ME}, ME, "build")


def test_a_memory_reading_stands_in_conditions_as_it_was_read() -> None:
    reading = {"available": True, "peak_bytes": 5, "before_bytes": 3, "source": "NVML", "per_process": True}
    with_torch = {**reading, "torch_allocated_bytes": 1, "torch_reserved_bytes": 2}
    for plain in (reading, with_torch):
        assert MemoryReading.from_dict({**plain, "alone": True}).as_conditions() == {**plain, "alone": True}


def test_a_worker_refuses_a_request_of_another_schema(tmp_path: Path) -> None:
    request = {**requests.CaptureToyRequest(folder=tmp_path / "toy").as_dict(), "schema": 2}
    with WorkerServer(tmp_path) as server:
        result = server.run("capture_toy", request, timeout_s=60.0)
    assert isinstance(result.raised, WorkerError) and result.raised.found == "schema 2"
    assert result.failure is not None and "do not agree on CaptureToyRequest" in result.failure.detail
