"""Rows that are predicted from roofs of the user's, beside measured ones and never among them."""

import json

import pytest

from autotune.comparison.bound import parse_bound, within_bound
from autotune.comparison.comparison import compare_store
from autotune.comparison.roofline import Ceilings
from autotune.comparison.selection import Selection
from autotune.comparison.supplied_roofs import SuppliedRoofs, read_supplied_roofs
from autotune.errors import RequestError
from autotune.records.configuration import Configuration
from tests.comparison.database import CPU, H200, add, count_work

A100 = Ceilings(bandwidth_gb_s=1000.0, tflops={"fp32": 20.0, "fp16": 300.0, "bf16": 300.0}, launch_us=10.0)
GOOD = """
[devices."NVIDIA A100"]
bandwidth_gb_s = 1555
tflops = { fp32 = 19.5, fp16 = 312 }
launch_us = 6.5
"""


def supplied(**devices):
    return SuppliedRoofs(by_sku={name.replace("_", "-"): ceilings for name, ceilings in devices.items()})


@pytest.fixture
def tuned(store):
    add(store, H200, 0.5, configuration=Configuration.of("inductor", {"precision": "fp16"}))
    add(store, CPU, 40.0)
    count_work(store, flops=3 * 10**10, traffic_bytes=10**8)
    return store


def test_a_device_without_measurements_has_a_row_in_the_best_precision_that_plans_use(tuned):
    (workload,) = compare_store(tuned, supplied_roofs=supplied(nvidia_a100=A100)).workloads
    assert [cell.state for cell in workload.cells] == ["compared", "compared", "predicted"]
    cell = workload.cells[-1]
    assert (cell.device_class, cell.sku, cell.plan) == ("nvidia-a100", "nvidia-a100", None)
    assert cell.figure("latency").value == pytest.approx(0.1 + 0.01) == cell.limit.ms
    assert "fp16" in cell.figure("latency").note and "no measurement" in cell.figure("latency").note
    inputs = cell.limit.inputs
    assert (inputs.precision, inputs.tflops, inputs.traffic_bytes) == ("fp16", 300.0, 5e7)
    assert cell.limit.distance is None and "with nvidia-a100" in cell.command


def test_it_takes_part_in_nothing(tuned):
    comparison = compare_store(tuned, supplied_roofs=supplied(nvidia_a100=A100))
    (workload,) = comparison.workloads
    assert workload.winners["latency"].device_classes == (H200.device_class,)
    assert "nvidia-a100" not in comparison.device_classes
    bound = parse_bound("p50<=1s")
    assert {entry.device_class for entry in within_bound(comparison, bound, tuned)} == {
        H200.device_class, CPU.device_class
    }  # fmt: skip


def test_a_device_with_measurements_gets_no_row(tuned):
    comparison = compare_store(tuned, supplied_roofs=supplied(nvidia_h200=A100, h200=A100))
    assert all(cell.state == "compared" for _, cell in comparison.cells())
    assert [note for note in comparison.notes if "nothing is predicted for h200: the database has" in note]


def test_what_cannot_be_predicted_is_said(store):
    add(store, H200, 0.5, configuration=Configuration.of("inductor", {"precision": "tf32"}))
    comparison = compare_store(store, supplied_roofs=supplied(nvidia_a100=A100))
    assert "nothing is predicted for resnet50 at batch 1 on nvidia-a100" in comparison.notes[-1]
    count_work(store, flops=1, traffic_bytes=1)
    half = Ceilings(bandwidth_gb_s=1000.0, tflops={"fp16": 300.0}, launch_us=10.0)
    comparison = compare_store(store, supplied_roofs=supplied(nvidia_a100=half))
    assert "no rate in fp32, nor in a precision that a plan of it uses" in comparison.notes[-1]
    assert [cell.state for _, cell in comparison.cells()] == ["compared"]


def test_a_precision_that_no_plan_uses_is_not_promised_but_fp32_is(store):
    add(store, H200, 0.5, configuration=Configuration.of("inductor", {"precision": "tf32"}))
    count_work(store, flops=2 * 10**9, traffic_bytes=1)
    ((_, _), (_, cell)) = compare_store(store, supplied_roofs=supplied(nvidia_a100=A100)).cells()
    assert cell.state == "predicted" and cell.figure("latency").value == pytest.approx(0.1 + 0.01), "20 TFLOP/s"
    assert "fp32" in cell.figure("latency").note


def test_predicted_rows_come_before_missing_ones(tuned):
    add(tuned, H200, 0.7, name="bert-base")
    count_work(tuned, "bert-base", flops=10**9, traffic_bytes=10**6)
    workloads = compare_store(tuned, supplied_roofs=supplied(nvidia_a100=A100)).workloads
    assert [cell.state for cell in workloads[0].cells] == ["compared", "predicted", "missing"]


def written(tmp_path, text):
    path = tmp_path / "roofs.toml"
    path.write_text(text)
    return path


def test_a_file_of_roofs_is_read(tmp_path):
    path = written(tmp_path, GOOD)
    read = read_supplied_roofs(path)
    assert read.by_sku == {
        "nvidia-a100": Ceilings(bandwidth_gb_s=1555.0, tflops={"fp32": 19.5, "fp16": 312.0}, launch_us=6.5)
    }
    document = json.loads(json.dumps(read.as_dict()))
    assert document["path"] == str(path)
    assert document["devices"]["nvidia-a100"] == {
        "bandwidth_gb_s": 1555.0, "tflops": {"fp32": 19.5, "fp16": 312.0}, "launch_us": 6.5
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", "no devices"),
        ("devices = 3", "no devices"),
        ("[devices", "a TOML file"),
        ("\xff", "a TOML file"),
        (GOOD + "peak = 3", "peak in devices.NVIDIA A100"),
        (GOOD.replace("bandwidth_gb_s = 1555", ""), "has no bandwidth_gb_s"),
        (GOOD.replace("launch_us = 6.5", ""), "has no launch_us"),
        (GOOD.replace("1555", "0"), "bandwidth_gb_s = 0"),
        (GOOD.replace("6.5", "inf"), "launch_us = inf"),
        (GOOD.replace("6.5", "true"), "launch_us = True"),
        (GOOD.replace("312", "'312'"), "tflops.fp16 = '312'"),
        (GOOD.replace("fp16", "fp4"), "fp4 in devices.NVIDIA A100.tflops"),
        (GOOD.replace("{ fp32 = 19.5, fp16 = 312 }", "{}"), "a rate for each precision"),
        (GOOD.replace("{ fp32 = 19.5, fp16 = 312 }", "312"), "a rate for each precision"),
        ("[devices]\na100 = 5", "devices.a100 = 5"),
        (GOOD.replace("NVIDIA A100", "--"), "a device '--'"),
        (GOOD + GOOD.replace("NVIDIA A100", "nvidia-a100"), "one entry for each"),
        ("currency = 'EUR'" + GOOD, "currency in the file"),
    ],
)
def test_a_file_with_anything_else_is_refused(tmp_path, text, found):
    path = written(tmp_path, "") if text != "\xff" else tmp_path / "roofs.toml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(RequestError) as caught:
        read_supplied_roofs(path)
    assert found in str(caught.value) and str(path) in str(caught.value)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(RequestError, match=r"absent\.toml"):
        read_supplied_roofs(tmp_path / "absent.toml")


def test_a_chosen_device_may_be_one_of_the_file_and_others_of_it_are_left_out(tuned):
    roofs = supplied(nvidia_a100=A100, nvidia_l4=A100)
    (workload,) = compare_store(tuned, Selection(devices=("H200", "A100")), supplied_roofs=roofs).workloads
    assert [cell.sku for cell in workload.cells] == ["nvidia-h200", "nvidia-a100"]
    with pytest.raises(RequestError, match="T4"):
        compare_store(tuned, Selection(devices=("H200", "T4")), supplied_roofs=roofs)
