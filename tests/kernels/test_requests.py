"""The requests of kernel steps as plain data, and the check of their schema."""

import json
from pathlib import Path

import pytest

from autotune.errors import WorkerError
from autotune.kernels.requests import CompileRequest, ProblemFinalists, RatesRequest, RoundsRequest, TimeRequest
from autotune.kernels.steps import STEPS
from autotune.kernels.timing import TimingLimits
from autotune.records.configuration import Configuration
from autotune.records.device import Device
from autotune.records.kernel_problem import GemmProblem, Window

DEVICE = Device(kind="cuda", name="NVIDIA H200", uuid="GPU-1", capability=(9, 0), memory_bytes=1 << 37)
WINDOW = Window(height=8, width=8, channels=64, kernel=(3, 3), stride=(1, 1), padding=(1, 1), dilation=(1, 1))
PROBLEMS = (GemmProblem(m=8, n=16, k=32, bias=True), GemmProblem(m=64, n=64, k=576, window=WINDOW))
TILES = tuple(Configuration.of("cutlass", {"tile_m": side, "tile_n": 64}) for side in (64, 128))
REQUESTS = (
    RatesRequest(device=DEVICE),
    CompileRequest(backend="native", device=DEVICE, problem=PROBLEMS[1], folder=Path("/cache"), builds=TILES),
    TimeRequest(
        backend="native", device=DEVICE, problem=PROBLEMS[0], folder=Path("/cache"), candidates=TILES, seed=3,
        best_us=4.5, limits=TimingLimits(sampling_s=0.2),
    ),
    RoundsRequest(
        backend="native", device=DEVICE, folder=Path("/cache"), rounds=12, samples=5, seed=1,
        work=tuple(ProblemFinalists(problem=problem, finalists=TILES) for problem in PROBLEMS),
    ),
)  # fmt: skip


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda request: type(request).__name__)
def test_a_request_is_the_same_after_a_trip_through_json(request_):
    data = json.loads(json.dumps(request_.as_dict()))
    assert data["schema"] == 1
    assert type(request_).from_dict(data) == request_


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda request: type(request).__name__)
@pytest.mark.parametrize("schema", [2, None])
def test_another_schema_is_refused_with_both_versions(request_, schema):
    with pytest.raises(WorkerError, match=f"{type(request_).__name__}(.|\n)*schema {schema}(.|\n)*schema 1"):
        type(request_).from_dict({**request_.as_dict(), "schema": schema})


def test_a_step_refuses_a_request_of_another_schema_before_it_works():
    with pytest.raises(WorkerError, match="do not agree on CompileRequest"):
        STEPS["compile_kernels"]({**REQUESTS[1].as_dict(), "schema": 2}, None)
