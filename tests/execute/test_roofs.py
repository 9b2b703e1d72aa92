"""Roofs are measured by a worker on this machine's CPU, on small data and for a moment."""

import pytest
import torch

from autotune.errors import WorkError
from autotune.execute import roof_steps, roofs
from autotune.execute.requests import RoofsRequest
from autotune.execute.roofs import Sizes, measure_roofs
from autotune.execute.server import WorkerServer
from autotune.measure.statistics import median
from autotune.records.device import Device
from autotune.records.trial import Measurement
from autotune.runtime import discovery
from autotune.testing.sample_records import DEVICE

CREATED = "2026-01-01T00:00:00.000000+00:00"


@pytest.fixture
def briefly(monkeypatch):
    monkeypatch.setitem(roofs.SIZES, "cpu", Sizes(buffer_bytes=8 << 20, matrix_rows=128))
    monkeypatch.setattr(roofs, "SAMPLING_S", 0.2)


def test_a_worker_measures_every_roof_of_this_cpu(briefly, tmp_path):
    device = discovery.cpu()
    with WorkerServer(tmp_path) as server:
        measured = measure_roofs(device, server, created=CREATED)
    assert (measured.device_class, measured.created) == (device.device_class, CREATED)
    assert measured.toolchain.as_dict()["torch"] and measured.absent["tf32"] == "only GPUs have it"
    assert {"copy", "fp32", "bf16", "launch"} <= set(measured.all) and not set(measured.absent) & set(measured.all)
    copy, fp32, launch = measured.copy_gb_s, measured.matrix_tflops["fp32"], measured.launch_us
    assert (copy.size, fp32.size, launch.size) == (8 << 20, 128, 1)
    assert 0.1 < copy.value < 5_000 and 1e-5 < fp32.value < 100 and 0.05 < launch.value < 1_000
    for roof in measured.all.values():
        assert roof.interval[0] <= roof.value <= roof.interval[1] and roof.samples >= 3
        assert roof.measurement.conditions["readings"] and roof.measurement.conditions["seed"] == 0


def test_a_worker_that_cannot_measure_names_the_reason(briefly, tmp_path):
    gpu = Device(kind="cuda", name="NVIDIA H200", uuid="GPU-absent", capability=(9, 0))
    with WorkerServer(tmp_path) as server, pytest.raises(WorkError, match="the roofs of NVIDIA H200 could not be"):
        measure_roofs(gpu, server, created=CREATED)


def test_a_rate_is_work_by_the_median_on_the_clock_of_the_device_if_it_has_one():
    wall = Measurement(samples_ms=((2.0, 4.0, 2.0),))
    roof = roof_steps._rate(8.0, 64, wall)
    assert (roof.value, roof.interval, roof.samples, roof.size) == (4000.0, (2000.0, 4000.0), 3, 64)
    timed = Measurement(samples_ms=((2.0, 4.0, 2.0),), device_samples_ms=((1.0,) * 6,))
    assert roof_steps._rate(8.0, 64, timed).value == 8000.0
    few = Measurement(samples_ms=((2.0, 4.0, 2.0),), device_samples_ms=((1.0,) * 5,))
    assert roof_steps._rate(8.0, 64, few).value == 4000.0


def test_on_a_busy_cpu_samples_that_others_disturbed_do_not_count():
    readings = {"host": {"available": True, "device": "cpu", "competing_share": 0.9}}
    samples = (1.0,) * 6 + (9.0,) * 14
    conditions = {"switches": [0] * 6 + [1] * 14, "readings": readings}
    busy = Measurement(samples_ms=(samples,), conditions=conditions)
    assert roof_steps._rate(1.0, 1, busy).value == 1000.0 and roof_steps._rate(1.0, 1, busy).samples == 6
    all_disturbed = Measurement(samples_ms=(samples,), conditions={**conditions, "switches": [1] * 20})
    assert roof_steps._rate(1.0, 1, all_disturbed).value == 1000.0 / median(samples)


@pytest.mark.parametrize(
    ("precision", "capability", "reason"),
    [("fp16", (7, 5), ""), ("bf16", (7, 5), "8.0"), ("tf32", (7, 5), "8.0"), ("fp32", (6, 0), ""),
     ("bf16", (9, 0), "")],
)  # fmt: skip
def test_a_gpu_without_tensor_cores_for_a_precision_has_no_roof_of_it(precision, capability, reason):
    device = Device(kind="cuda", name="GPU", uuid="GPU-1", capability=capability)
    found = roof_steps._unavailable(precision, device)
    assert reason in found and bool(found) == bool(reason)


def bench(rows):
    request = RoofsRequest(device=discovery.cpu(), buffer_bytes=1 << 20, matrix_rows=rows, limit_s=0.1, seed=3)
    return roof_steps._Bench(request)


def test_sizes_double_up_to_the_largest_and_a_slow_product_ends_them(briefly, monkeypatch):
    assert list(bench(2048)._sizes()) == [256, 512, 1024, 2048]
    assert list(bench(300)._sizes()) == [256, 300] and list(bench(64)._sizes()) == [64]
    monkeypatch.setattr(roof_steps, "SLOWEST_CALL_S", 1e-9)
    assert bench(2048).matrix("fp32").size == 256


def test_data_is_random_and_fp32_stays_fp32():
    drawn = bench(64)._drawn((1000,), torch.float32)
    assert drawn.unique().numel() > 900 and abs(float(drawn.std()) - 1) < 0.2
    assert torch.equal(drawn, bench(64)._drawn((1000,), torch.float32)), "the seed decides them"
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.gpu
def test_a_gpu_is_measured_in_each_of_its_precisions(tmp_path):
    device = discovery.find("cuda")
    with WorkerServer(tmp_path) as server:
        measured = measure_roofs(device, server, created=CREATED)
    rates = {name: roof.value for name, roof in measured.matrix_tflops.items()}
    assert measured.copy_gb_s.value > 100 and measured.launch_us.value > 1
    if device.capability and device.capability >= DEVICE.capability:  # type: ignore[operator]
        assert rates["fp32"] < rates["tf32"] < rates["fp16"]
