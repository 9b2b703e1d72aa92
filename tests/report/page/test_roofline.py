"""The data and the key of the roofline plot."""

import pytest

from autotune.comparison.comparison import compare_store
from autotune.database.store import Store
from autotune.records.configuration import Configuration
from autotune.report.page.content import content_of
from autotune.report.page.roofline import Mark, RooflinePlot, roofline_plot
from autotune.testing.sample_records import sample_roofs
from tests.comparison.database import CPU, H200, L4, add, count_work
from tests.report.page.comparisons import FAST, H200_ROOFS, L4_ROOFS


@pytest.fixture
def store(tmp_path):
    with Store.open(str(tmp_path / "a.db"), create=True) as opened:
        yield opened


def plot_of(store):
    comparison = compare_store(store)
    (workload,) = comparison.workloads
    names = {name: name.split("/")[0] for name in comparison.device_classes}
    return roofline_plot(workload.compared, names, comparison.device_classes)


def test_a_plan_is_below_its_roof_in_its_precision(store):
    add(store, H200, 0.5, configuration=FAST)
    add(store, L4, 4.0)
    count_work(store, flops=3 * 10**10, traffic_bytes=10**8)
    for roofs in (H200_ROOFS, L4_ROOFS):
        store.roofs.put(roofs)
    half, single = plot_of(store).points
    assert (half.name, half.precision) == ("nvidia-h200", "fp16") and single.precision == "fp32"
    assert half.intensity == pytest.approx(600) and single.intensity == pytest.approx(300), "twice the bytes"
    assert half.tflops == pytest.approx(60) and half.limit_tflops == pytest.approx(30 / 0.11)
    assert (half.roof_tflops, half.bandwidth_gb_s) == (300.0, 1000.0)
    assert [entry.text for entry in plot_of(store).key] == [
        "nvidia-h200, fp16: 60 TFLOP/s at 600 operations per byte; 4.5× the limit, by compute",
        "nvidia-l4, fp32: 7.5 TFLOP/s at 300 operations per byte; 2.0× the limit, by compute",
    ]


@pytest.mark.parametrize("flops", [10**6, 10**9, 10**12])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "default"])
def test_the_limit_lies_below_both_parts_of_the_roof(store, flops, precision):
    add(store, H200, 0.5, configuration=Configuration.of("eager", {"precision": precision}))
    count_work(store, flops=flops, traffic_bytes=10**8)
    store.roofs.put(sample_roofs(H200, copy_gb_s=1000.0, matrix_tflops={"fp32": 50.0, "fp16": 300.0}))
    (point,) = plot_of(store).points
    (_, cell), *_ = compare_store(store).cells()
    assert point.limit_tflops < min(point.roof_tflops, point.bandwidth_gb_s * point.intensity / 1e3)
    assert point.limit_tflops / point.tflops == pytest.approx(cell.limit.distance)


def test_a_plan_without_a_limit_is_in_the_key_with_the_reason(store):
    add(store, H200, 0.5, configuration=FAST)
    add(store, CPU, 40.0)
    count_work(store, flops=3 * 10**10, traffic_bytes=10**8)
    store.roofs.put(H200_ROOFS)
    plot = plot_of(store)
    assert len(plot.points) == 1 and [entry.mark is None for entry in plot.key] == [False, True]
    assert plot.key[1].text == "amd-epyc-2c: limit not known: no roofs of amd-epyc-2c were measured"


def test_without_roofs_or_work_there_is_no_plot(store):
    add(store, H200, 0.5, configuration=FAST)
    assert plot_of(store) == RooflinePlot()
    store.roofs.put(H200_ROOFS)
    count_work(store, flops=0, traffic_bytes=10**8)
    assert compare_store(store).workloads[0].cells[0].limit.ms is not None
    assert plot_of(store) == RooflinePlot(), "no axis of powers of ten has a zero"


def test_a_cell_apart_is_not_drawn(store):
    add(store, H200, 0.5, configuration=FAST)
    add(store, L4, 2.0, configuration=FAST, flags=("busy_host",))
    count_work(store, flops=3 * 10**10, traffic_bytes=10**8)
    for roofs in (H200_ROOFS, L4_ROOFS):
        store.roofs.put(roofs)
    (section,) = content_of(compare_store(store)).sections
    assert [point["name"] for point in section.plots["roofline"]] == ["nvidia-h200"] and len(section.roofline_key) == 1


def test_a_device_class_keeps_its_mark_over_the_page(store):
    add(store, H200, 0.5, configuration=FAST)
    add(store, L4, 2.0, configuration=FAST)
    add(store, L4, 2.0, name="bert-base", configuration=FAST)
    for name in ("resnet50", "bert-base"):
        count_work(store, name, flops=3 * 10**10, traffic_bytes=10**8)
    for roofs in (H200_ROOFS, L4_ROOFS):
        store.roofs.put(roofs)
    bert, resnet = content_of(compare_store(store)).sections
    marks = {point["name"]: point["mark"] for point in resnet.plots["roofline"]}
    assert bert.plots["roofline"][0]["mark"] == marks["nvidia-l4"] != marks["nvidia-h200"]


def test_device_classes_differ_without_their_colours():
    marks = [Mark.of(number) for number in range(32)]
    assert len({(mark.symbol, mark.dash) for mark in marks}) == len(marks)
    assert len({mark.symbol for mark in marks[:8]}) == 8
