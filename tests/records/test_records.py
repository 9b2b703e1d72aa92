"""Records survive JSON unchanged, refuse what cannot be, and key what they promise to key."""

import dataclasses
import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.records.configuration import Configuration
from autotune.records.device import Device, Toolchain, slug
from autotune.records.objective import Metric, Objective
from autotune.records.plan import Plan
from autotune.records.trial import Failure, Measurement, Trial
from autotune.records.workload import TensorSpec, Workload

positive = st.floats(min_value=1e-9, max_value=1e9)
limits = st.floats(min_value=1e-9, max_value=0.999)
words = st.text(alphabet="abcdefgh_", min_size=1, max_size=6)
hashes = st.text(alphabet="0123456789abcdef", min_size=64, max_size=64)

cpus = st.builds(
    Device,
    kind=st.just("cpu"),
    name=st.sampled_from(["AMD EPYC 9654", "Intel(R) Xeon(R) Platinum 8480+"]),
    uuid=words,
    cores=st.integers(1, 256),
    isa=st.lists(st.sampled_from(["avx2", "avx512f", "amx_bf16"]), unique=True).map(tuple),
    memory_bytes=st.integers(0, 2**45),
)
gpus = st.builds(
    Device,
    kind=st.just("cuda"),
    name=st.sampled_from(["NVIDIA H200", "NVIDIA L40S"]),
    uuid=words,
    index=st.integers(0, 7),
    capability=st.tuples(st.integers(7, 12), st.integers(0, 9)),
    mig_profile=st.sampled_from([None, "1g.18gb"]),
    power_limit_w=st.none() | st.integers(1, 1000),
)
devices = cpus | gpus
toolchains = st.dictionaries(words, words).map(Toolchain.of)
metrics = st.builds(Metric, function=words, at_most=st.floats(0, 1)) | st.builds(
    Metric, function=words, at_least=st.floats(0, 1)
)
objectives = st.builds(
    Objective,
    signal_error=limits,
    signal_error_by_output=st.dictionaries(words, limits, max_size=3).map(lambda each: tuple(sorted(each.items()))),
    integer_agreement=st.floats(min_value=0.01, max_value=1),
    metrics=st.lists(metrics, max_size=2).map(tuple),
)
specs = st.builds(
    TensorSpec,
    name=words,
    shape=st.lists(st.integers(0, 512), max_size=4).map(tuple),
    dtype=st.sampled_from(["float32", "int64", "bfloat16"]),
)
workloads = st.builds(
    Workload,
    name=words,
    batch=st.integers(1, 512),
    structure=hashes,
    weights=hashes,
    inputs=st.lists(specs, min_size=1, max_size=3).map(tuple),
    outputs=st.lists(specs, min_size=1, max_size=3).map(tuple),
    features=st.lists(words, max_size=3).map(tuple),
)
blocks = st.lists(st.lists(positive, min_size=1, max_size=4).map(tuple), min_size=1, max_size=4).map(tuple)
measurements = st.builds(
    Measurement,
    samples_ms=blocks,
    device_samples_ms=st.just(()) | blocks,
    conditions=st.dictionaries(words, st.integers() | words, max_size=3),
    protocol=st.dictionaries(words, st.integers() | words, max_size=3),
)
configurations = st.builds(
    Configuration.of, st.sampled_from(["eager", "inductor"]), st.dictionaries(words, st.integers())
)
plans = st.builds(
    Plan,
    uid=words,
    name=words,
    batch=st.integers(1, 64),
    structure=hashes,
    weights=hashes,
    device=devices,
    toolchain=toolchains,
    objective=objectives,
    serve_as=st.just("any"),
    configuration=configurations,
    status=st.sampled_from(["promoted", "tie"]),
    artifact=st.none() | hashes,
    latency_ms=positive,
    interval_ms=st.tuples(positive, positive),
    baseline_latency_ms=positive,
    speedup=positive,
    signal_error=limits,
    evidence=st.dictionaries(words, st.lists(positive), max_size=2),
)


def through_json(record: Any) -> Any:
    return json.loads(json.dumps(record.as_dict(), allow_nan=False))


@given(record=devices | objectives | workloads | measurements | plans)
def test_json_brings_back_the_same_record(record: Any) -> None:
    assert type(record).from_dict(through_json(record)) == record


@given(toolchain=toolchains)
def test_a_toolchain_comes_back_with_its_digest(toolchain: Toolchain) -> None:
    after = Toolchain.of(through_json(toolchain))
    assert after == toolchain
    assert after.digest == toolchain.digest


@given(toolchain=toolchains, names=st.lists(words, max_size=4))
def test_a_toolchain_cut_down_holds_only_what_was_named(toolchain: Toolchain, names: list[str]) -> None:
    part = toolchain.only(tuple(names)).as_dict()
    assert part == {name: version for name, version in toolchain.as_dict().items() if name in names}


@given(text=st.text())
def test_a_slug_is_canonical(text: str) -> None:
    once = slug(text)
    assert slug(once) == once
    assert set(once) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    assert once == once.strip("-") and "--" not in once


def test_a_slug_keeps_what_tells_names_apart() -> None:
    assert slug("NVIDIA H200") == "nvidia-h200"
    assert slug("Intel(R) Xeon(R) Platinum 8480+") == "intel-r-xeon-r-platinum-8480"


@pytest.mark.parametrize(
    "record",
    [
        Configuration.of("eager", {}),
        Objective(),
        Toolchain.of({}),
        TensorSpec(name="x", shape=(1,), dtype="float32"),
        Failure(stage="build", kind="error", detail="d"),
    ],
)
def test_records_do_not_change(record: Any) -> None:
    name = dataclasses.fields(record)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(record, name, "other")


H200 = Device(kind="cuda", name="NVIDIA H200", uuid="GPU-1", capability=(9, 0), power_limit_w=700)
CPU = Device(kind="cpu", name="AMD EPYC 9654", uuid="cpu-1", cores=16, isa=("avx2", "avx512f"))


def test_a_device_class_names_what_decides_speed() -> None:
    assert (H200.sku, H200.device_class, H200.torch_name) == ("nvidia-h200", "nvidia-h200/whole/700w", "cuda:0")
    assert (CPU.sku, CPU.device_class) == ("amd-epyc-9654-16c", "amd-epyc-9654-16c/avx2+avx512f")
    assert CPU.torch_name == "cpu"
    gpu_changes: list[dict[str, Any]] = [{"mig_profile": "1g.18gb"}, {"power_limit_w": 500}, {"name": "NVIDIA H100"}]
    for change in gpu_changes:
        assert dataclasses.replace(H200, **change).device_class != H200.device_class
    cpu_changes: list[dict[str, Any]] = [{"cores": 8}, {"isa": ("avx2",)}, {"name": "AMD EPYC 7763"}]
    for change in cpu_changes:
        assert dataclasses.replace(CPU, **change).device_class != CPU.device_class
    assert dataclasses.replace(H200, uuid="GPU-2", index=3).device_class == H200.device_class


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "tpu"}, "cpu or cuda"),
        ({"name": "--"}, "no letter or digit"),
        ({"cores": 0}, "cores >= 1"),
        ({"index": -1}, "index >= 0"),
        ({"memory_bytes": -1}, "memory >= 0"),
        ({"capability": None}, "needs its compute capability"),
    ],
)
def test_a_device_that_cannot_be_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(H200, **change)


@pytest.mark.parametrize("limit", [0.0, 1.0, -0.1, math.nan, math.inf])
def test_a_signal_error_limit_outside_0_and_1_is_refused(limit: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        Objective(signal_error=limit)
    with pytest.raises(ValueError, match="between 0 and 1"):
        Objective(signal_error_by_output=(("logits", limit),))


def test_other_objectives_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="is not one of latency_p50, latency_p99"):
        Objective(name="fastest")
    with pytest.raises(ValueError, match="integer_agreement"):
        Objective(integer_agreement=0.0)
    with pytest.raises(ValueError, match="sorted"):
        Objective(signal_error_by_output=(("b", 0.1), ("a", 0.1)))
    for bounds in ({}, {"at_most": 1.0, "at_least": 0.0}):
        with pytest.raises(ValueError, match="exactly one"):
            Metric(function="m:f", **bounds)


@given(kept=objectives, asked=objectives)
def test_a_plan_never_serves_a_stricter_caller(kept: Objective, asked: Objective) -> None:
    if kept.serves(asked):
        for output in ("anything", *dict(kept.signal_error_by_output), *dict(asked.signal_error_by_output)):
            assert kept.limit_of(output) <= asked.limit_of(output)
        assert kept.integer_agreement >= asked.integer_agreement
    assert kept.serves(kept)


def test_a_stricter_plan_serves_and_a_looser_one_does_not() -> None:
    strict, loose = Objective(signal_error=0.01), Objective(signal_error=0.02)
    assert strict.serves(loose) and not loose.serves(strict)
    by_output = Objective(signal_error=0.02, signal_error_by_output=(("logits", 0.001),))
    assert by_output.serves(loose) and not loose.serves(by_output)
    judged = Objective(metrics=(Metric(function="m:f", at_least=0.9),))
    assert judged.serves(Objective()) and not Objective().serves(judged)


@pytest.mark.parametrize("sample", [0.0, -1.0, math.nan, math.inf])
def test_a_sample_that_is_no_duration_is_refused(sample: float) -> None:
    with pytest.raises(ValueError, match="positive number of milliseconds"):
        Measurement(samples_ms=((1.0, sample),))
    with pytest.raises(ValueError, match="positive number of milliseconds"):
        Measurement(samples_ms=((1.0,),), device_samples_ms=((sample,),))


@pytest.mark.parametrize("samples", [(), ((),), ((1.0,), ())])
def test_a_measurement_without_samples_is_refused(samples: tuple[tuple[float, ...], ...]) -> None:
    with pytest.raises(ValueError, match="at least one"):
        Measurement(samples_ms=samples)


@given(measurement=measurements)
def test_samples_keep_their_order(measurement: Measurement) -> None:
    assert list(measurement.flat_ms) == [sample for block in measurement.samples_ms for sample in block]


FAILURE = Failure(stage="check", kind="inaccurate", detail="signal error 0.4", figure=0.4)
TRIAL = Trial(uid="u", number=3, configuration=Configuration.of("eager", {}), state="complete", latency_ms=1.5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"state": "done"}, "is not one of"),
        ({"state": "failed"}, "lacks a failure"),
        ({"state": "infeasible"}, "lacks a failure"),
        ({"failure": FAILURE}, "has a failure"),
        ({"state": "pruned", "failure": FAILURE}, "has a failure"),
        ({"latency_ms": None}, "positive latency"),
        ({"latency_ms": 0.0}, "positive latency"),
        ({"latency_ms": math.nan}, "positive latency"),
        ({"latency_ms": math.inf}, "positive latency"),
        ({"number": -1}, "number starts at 0"),
        ({"attempt": 0}, "attempt at 1"),
    ],
)
def test_a_trial_that_cannot_be_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TRIAL, **change)


def test_a_trial_as_plain_data_names_its_backend_and_failure() -> None:
    failed = dataclasses.replace(TRIAL, state="failed", latency_ms=None, failure=FAILURE)
    data = through_json(failed)
    assert data["configuration"] == {"backend": "eager"}
    assert data["failure"] == {
        "stage": "check", "kind": "inaccurate", "detail": "signal error 0.4", "log_tail": "", "figure": 0.4
    }  # fmt: skip
    assert str(FAILURE) == "check: inaccurate: signal error 0.4"


@pytest.mark.parametrize("change", [{"stage": "deploy"}, {"kind": "bad_luck"}])
def test_a_failure_of_an_unknown_stage_or_kind_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="is not one of"):
        dataclasses.replace(FAILURE, **change)


WORKLOAD = Workload(
    name="m",
    batch=1,
    structure="0" * 64,
    weights="f" * 64,
    inputs=(TensorSpec(name="x", shape=(1, 3), dtype="float32"),),
    outputs=(TensorSpec(name="y", shape=(1,), dtype="int64"),),
)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"structure": "abc"}, "structure must be a SHA-256"),
        ({"weights": "F" * 64}, "weights must be a SHA-256"),
        ({"batch": 0}, "batch must be at least 1"),
        ({"name": ""}, "needs a name"),
        ({"inputs": ()}, "an input"),
        ({"outputs": ()}, "an output"),
        ({"flops": -1}, "flops is a whole number"),
        ({"traffic_bytes": 1.5}, "traffic_bytes is a whole number"),
    ],
)
def test_a_workload_that_cannot_be_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(WORKLOAD, **change)


def test_a_workload_without_its_work_is_stored_as_before_work_was_counted() -> None:
    spec = {"name": "x", "shape": [1, 3], "dtype": "float32"}
    stored: dict[str, object] = {
        "name": "m", "batch": 1, "structure": "0" * 64, "weights": "f" * 64, "inputs": [spec],
        "outputs": [{"name": "y", "shape": [1], "dtype": "int64"}], "features": [], "former": "",
    }  # fmt: skip
    assert json.loads(json.dumps(WORKLOAD.as_dict())) == stored
    assert Workload.from_dict(stored) == WORKLOAD and WORKLOAD.flops is None
    counted = dataclasses.replace(WORKLOAD, flops=0, traffic_bytes=20)
    assert Workload.from_dict(json.loads(json.dumps(counted.as_dict()))) == counted
    with pytest.raises(ValueError, match="a later version of autotune"):
        Workload.from_dict({**stored, "schema": 3})


def test_a_tensor_needs_a_name_and_sizes() -> None:
    assert WORKLOAD.inputs[0].is_floating and not WORKLOAD.outputs[0].is_floating
    with pytest.raises(ValueError, match="needs a name"):
        TensorSpec(name="", shape=(1,), dtype="float32")
    with pytest.raises(ValueError, match="may be negative"):
        TensorSpec(name="x", shape=(-1,), dtype="float32")


PLAN = Plan(
    uid="u",
    name="m",
    batch=1,
    structure="0" * 64,
    weights="f" * 64,
    device=H200,
    toolchain=Toolchain.of({"torch": "2.13.0"}),
    objective=Objective(),
    serve_as="any",
    configuration=Configuration.of("eager", {}),
    status="baseline",
    artifact=None,
    latency_ms=1.0,
    interval_ms=(0.9, 1.1),
    baseline_latency_ms=1.0,
    speedup=1.0,
    signal_error=0.0,
)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"status": "won"}, "is not one of"),
        ({"speedup": 1.2}, "exactly 1.0"),
        ({"latency_ms": 0.0}, "positive numbers"),
        ({"baseline_latency_ms": math.inf}, "positive numbers"),
        ({"interval_ms": (math.nan, 1.0)}, "positive numbers"),
        ({"status": "tie", "speedup": -1.0}, "positive numbers"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(PLAN, **change)


def test_a_plan_as_plain_data_says_its_backend_and_device_class() -> None:
    data = through_json(PLAN)
    assert (data["backend"], data["device_class"]) == ("eager", "nvidia-h200/whole/700w")


@pytest.mark.parametrize("versions", [(("b", "1"), ("a", "1")), (("a", "1"), ("a", "2"))])
def test_toolchain_entries_are_sorted_and_distinct(versions: tuple[tuple[str, str], ...]) -> None:
    with pytest.raises(ValueError, match="sorted and distinct"):
        Toolchain(versions=versions)
