"""The distance of plans to the limit of their device."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.comparison.comparison import compare_store as compare
from autotune.comparison.roofline import BYTES, Ceilings, Limit, LimitInputs, Roofline
from autotune.records.configuration import Configuration
from autotune.report.comparison import limit_words
from autotune.testing import sample_records
from autotune.testing.sample_records import sample_roof, sample_roofs
from tests.comparison.database import CPU, H200, L4, add, count_work

rates = st.floats(1e-3, 1e5)
amounts = st.integers(0, 10**15)
ceilings = st.builds(
    Ceilings, bandwidth_gb_s=rates, launch_us=rates,
    tflops=st.fixed_dictionaries(dict.fromkeys(("fp32", "tf32", "bf16", "fp16"), rates)),
)  # fmt: skip
precisions = st.sampled_from(sorted(BYTES))


def least_ms(flops, fp32_bytes, precision, of):
    return LimitInputs.of(flops, fp32_bytes, precision, of).least_ms()


@given(flops=amounts, traffic=amounts, precision=precisions, of=ceilings)
def test_the_limit_is_a_launch_and_the_longer_part(flops, traffic, precision, of):
    ms, by = least_ms(flops, traffic, precision, of)
    compute_ms = (
        flops / 1e9 / (max(of.tflops["fp32"], of.tflops["tf32"]) if precision == "default" else of.tflops[precision])
    )
    moved_ms = traffic * BYTES[precision] / 4 / 1e6 / of.bandwidth_gb_s
    assert ms == pytest.approx(max(compute_ms, moved_ms) + of.launch_us / 1e3)
    parts = {"compute": compute_ms, "bandwidth": moved_ms, "launch": of.launch_us / 1e3}
    assert parts[by] == pytest.approx(max(parts.values()))


@given(flops=amounts, traffic=amounts, precision=precisions, of=ceilings, factor=st.floats(1.0, 100.0))
def test_more_work_never_takes_less_time_and_a_faster_device_never_more(flops, traffic, precision, of, factor):
    ms, _ = least_ms(flops, traffic, precision, of)
    assert least_ms(2 * flops, traffic, precision, of)[0] >= ms
    assert least_ms(flops, 2 * traffic, precision, of)[0] >= ms
    faster = Ceilings(
        bandwidth_gb_s=factor * of.bandwidth_gb_s, launch_us=of.launch_us / factor,
        tflops={name: factor * rate for name, rate in of.tflops.items()},
    )  # fmt: skip
    assert least_ms(flops, traffic, precision, faster)[0] == pytest.approx(ms / factor)


def test_a_precision_without_a_rate_has_no_limit():
    known = Ceilings(bandwidth_gb_s=1.0, tflops={"tf32": 2.0}, launch_us=1.0)
    assert known.rate("default") == 2.0 and known.rate("fp32") is None
    with pytest.raises(ValueError, match="no rate of fp32"):
        least_ms(1, 1, "fp32", known)


def cell_of(store, device=H200):
    (workload,) = compare(store).workloads
    return next(cell for cell in workload.cells if cell.device_class == device.device_class)


def test_a_plan_has_its_distance_to_the_limit_of_its_precision(store):
    fast = Configuration.of("inductor", {"precision": "bf16"})
    add(store, H200, 0.5, configuration=fast)
    count_work(store, flops=7 * 10**10, traffic_bytes=8 * 10**8)
    store.roofs.put(sample_roofs(H200, copy_gb_s=4000.0, matrix_tflops={"fp32": 50.0, "bf16": 700.0}, launch_us=50.0))
    limit = cell_of(store).limit
    assert limit.ms == pytest.approx(0.1 + 0.05) and limit.distance == pytest.approx(0.5 / 0.15)
    assert (limit.note, limit.command) == ("", "") and limit.by in ("compute", "bandwidth")
    assert limit_words(cell_of(store)) == f"3.3× the limit, by {limit.by}"
    row = compare(store).to_frame().iloc[0]
    assert row.limit_ms == limit.ms and row.limit_by == limit.by and row.distance == limit.distance
    assert cell_of(store).as_dict()["limit"] == limit.as_dict()
    assert limit.as_dict()["inputs"] == {
        "precision": "bf16", "flops": 7 * 10**10, "traffic_bytes": 4e8, "bandwidth_gb_s": 4000.0, "tflops": 700.0,
        "launch_us": 50.0,
    }  # fmt: skip
    assert limit.inputs.intensity == pytest.approx(175.0)
    assert limit.inputs.tflops_within(0.5) == pytest.approx(140.0)


def test_a_plan_without_a_precision_computes_in_fp32(store):
    add(store, H200, 1.0)
    count_work(store, flops=10**11, traffic_bytes=0)
    store.roofs.put(sample_roofs(H200, matrix_tflops={"fp32": 50.0, "bf16": 700.0}, launch_us=1.0))
    assert cell_of(store).limit.ms == pytest.approx(2.001) and cell_of(store).limit.by == "compute"
    assert cell_of(store).limit.note.startswith("faster than the limit: its data stays in a cache, or the roofs")
    assert limit_words(cell_of(store)) == "beyond the roofs"
    assert cell_of(store).limit.inputs.intensity is None, "no traffic was counted"


def test_what_is_missing_for_a_limit_is_named_with_the_command(store):
    add(store, H200, 0.5, configuration=Configuration.of("other", {"precision": "int8"}))
    limit = cell_of(store).limit
    assert "no roofs of nvidia-h200 were measured" in limit.note and "autotune roofs measure" in limit.command
    store.roofs.put(sample_roofs(H200))
    limit = cell_of(store).limit
    assert "found resnet50's plan did not count its work" in limit.note and "autotune tune" in limit.command
    count_work(store, flops=1, traffic_bytes=1)
    limit = cell_of(store).limit
    assert "no rate of int8" in limit.note and limit.command == "autotune roofs measure"
    assert (limit.ms, limit.by, limit.distance, limit.inputs) == (None,) * 4 and limit_words(cell_of(store)) == "–"


def test_flags_of_the_roofs_are_part_of_the_note(store):
    add(store, CPU, 40.0)
    count_work(store, flops=10**9, traffic_bytes=1)
    busy = replace(sample_roofs(CPU), copy_gb_s=sample_roof(20.0, ("busy_host",)))
    store.roofs.put(busy)
    assert cell_of(store, CPU).limit.note == "the roofs were measured under: busy host"


def test_of_a_structure_with_other_weights_the_work_is_the_same(store):
    plan = add(store, L4, 2.0)
    counted = replace(sample_records.sample_workload(weights="others"), flops=10**9, traffic_bytes=10**6)
    assert counted.structure == plan.structure and counted.weights != plan.weights
    roofline = Roofline.of([sample_roofs(L4)], [counted, sample_records.sample_workload()])
    assert roofline.limit(plan).ms is not None
    assert Roofline().limit(plan).ms is None and Limit().as_dict()["ms"] is None
