"""Plans of several devices side by side, and those that may not stand there."""

import json

import pytest

from autotune.comparison.comparison import compare_store as compare
from autotune.comparison.prices import Prices
from autotune.comparison.selection import Selection
from autotune.errors import PlanNotFoundError, RequestError
from autotune.records.evidence import ObjectiveFigures
from autotune.records.objective import Objective
from autotune.testing import sample_records
from tests.comparison.database import CPU, H200, L4, add, conditions, energy


def only(comparison):
    (workload,) = comparison.workloads
    return workload


def reasons(cell):
    return [reason.name for reason in cell.reasons]


def test_devices_stand_side_by_side_fastest_first_with_the_winner_by_each_quantity(store):
    for device, latency_ms in ((L4, 2.0), (H200, 0.5), (CPU, 40.0)):
        add(store, device, latency_ms)
    workload = only(compare(store))
    assert [cell.sku for cell in workload.cells] == ["nvidia-h200", "nvidia-l4", "amd-epyc-2c"]
    assert {cell.state for cell in workload.cells} == {"compared"}
    latency = workload.winners["latency"]
    assert latency.device_classes == (H200.device_class,) and latency.margin == pytest.approx(4.0)
    throughput = workload.cells[0].figure("throughput")
    assert throughput.value == pytest.approx(2000) and throughput.interval == pytest.approx((1e3 / 0.51, 1e3 / 0.49))
    assert workload.cells[0].figure("sm_utilisation").value == 0.75


def test_devices_whose_intervals_overlap_share_the_first_place(store):
    add(store, H200, 1.00, width=0.05)
    add(store, L4, 1.04, width=0.05)
    add(store, CPU, 9.0)
    latency = only(compare(store)).winners["latency"]
    assert latency.is_tie and latency.device_classes == (H200.device_class, L4.device_class)
    assert latency.margin == pytest.approx(9.0)


def test_a_figure_that_cannot_be_measured_says_so_and_is_never_zero(store):
    add(store, CPU, 40.0)
    add(store, H200, 0.5)
    fast, slow = only(compare(store)).cells
    assert slow.figure("energy").value is None and "not measurable" in slow.figure("energy").note
    assert "objective energy" in fast.figure("energy").note
    assert slow.figure("sm_utilisation").note == "not measurable on a CPU"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"known": False}, "earlier protocol"),
        ({"protocol": sample_records.CONDITIONS}, "earlier protocol"),
        ({"flags": ("busy_host",)}, "busy host"),
        ({"flags": ("shared_device",)}, "shared device"),
        ({"objective": Objective(signal_error=0.05)}, "other constraints"),
        ({"serve_as": "torchscript"}, "other serving format"),
        ({"structure": sample_records.digest("other")}, "other structure"),
    ],
)
def test_what_may_not_stand_beside_the_others_is_apart_with_its_reason(store, changes, reason):
    add(store, H200, 0.5)
    add(store, CPU, 40.0)
    add(store, L4, 0.1, **changes)
    workload = only(compare(store))
    (apart,) = (cell for cell in workload.cells if cell.state == "apart")
    assert apart.sku == "nvidia-l4" and reason in reasons(apart) and all(entry.text for entry in apart.reasons)
    assert workload.winners["latency"].device_classes == (H200.device_class,)


def test_a_throttled_plan_stays_beside_the_others(store):
    add(store, H200, 0.5, flags=("throttled",))
    assert only(compare(store)).cells[0].state == "compared"


def test_a_device_without_a_plan_is_a_cell_that_says_how_to_fill_it(store):
    add(store, H200, 0.5)
    add(store, L4, 2.0)
    add(store, H200, 5.0, batch=32)
    first, second = compare(store).workloads
    assert (first.batch, second.batch) == (1, 32)
    (missing,) = (cell for cell in second.cells if cell.state == "missing")
    assert missing.sku == "nvidia-l4" and "autotune tune" in missing.command and "--batch 32" in missing.command
    assert missing.figure("latency").value is None


def test_the_newest_plan_stands_for_all_weights_and_says_for_how_many(store):
    add(store, H200, 0.5, created="2026-01-01T00:00:00+00:00")
    add(store, H200, 0.6, weights=sample_records.digest("other"), created="2026-02-01T00:00:00+00:00")
    (cell,) = only(compare(store)).cells
    assert cell.plan.latency_ms == 0.6 and cell.weights_known == 2


def test_weights_of_one_device_do_not_compete_for_the_first_place(store):
    add(store, H200, 0.5)
    add(store, H200, 0.6, weights=sample_records.digest("other"))
    workload = only(compare(store, Selection(by="weights")))
    assert len(workload.compared) == 2 and workload.winners == {}
    add(store, L4, 2.0)
    latency = only(compare(store, Selection(by="weights"))).winners["latency"]
    assert latency.device_classes == (H200.device_class,) and latency.margin == pytest.approx(4.0)


def test_one_device_alone_is_shown_with_a_note(store):
    add(store, H200, 0.5)
    comparison = compare(store)
    assert comparison.notes[0].startswith("only one device class") and only(comparison).winners == {}


def test_throughput_and_energy_are_those_of_the_objective_for_each_item(store):
    figures = ObjectiveFigures(
        name="throughput", unit="ms/item", value=0.1, interval=(0.09, 0.11), baseline=0.3, concurrency=4
    )
    add(store, H200, 0.5, batch=8, objective=Objective(name="throughput"), figures=figures)
    add(store, H200, 0.5, batch=8, **energy(4.0))
    by_energy, by_throughput = compare(store).workloads
    rate = by_throughput.cells[0].figure("throughput")
    assert rate.value == pytest.approx(1e4) and rate.note == "4 requests in flight"
    assert rate.interval == pytest.approx((1e3 / 0.11, 1e3 / 0.09))
    assert by_energy.cells[0].figure("energy").value == pytest.approx(0.5)


def test_cost_follows_from_throughput_price_and_energy(store):
    add(store, H200, 0.5, **energy(0.36))
    add(store, L4, 2.0, **energy(0.1))
    prices = Prices(currency="EUR", per_hour={"h200": 4.0, "l4": 0.8}, electricity_per_kwh=0.25, path="prices.toml")
    workload = only(compare(store, prices=prices))
    h200, l4 = (cell.figure("cost") for cell in workload.cells)
    # 2,000 items a second are 500 s for a million: 0.1389 h at 4 EUR; 0.36 J an item are 0.1 kWh for a million.
    assert h200.value == pytest.approx(4.0 * 500 / 3600 + 0.1 * 0.25) and "with electricity" in h200.note
    assert l4.value == pytest.approx(0.8 * 2000 / 3600 + 0.25 * 0.1e6 / 3.6e6)
    (even,) = workload.break_evens(prices)
    assert even.against == L4.device_class and even.device_class == H200.device_class
    # At this price and with its own electricity a million items cost as much as on the other.
    assert even.per_hour * 500 / 3600 + 0.1 * 0.25 == pytest.approx(l4.value)
    document = compare(store, prices=prices).as_dict()
    assert document["workloads"][0]["break_even"] == [even.as_dict()]
    free = Prices(currency="EUR", per_hour={"h200": 4.0, "l4": 0.8}, path="prices.toml")
    (even,) = only(compare(store, prices=free)).break_evens(free)
    assert even.per_hour == pytest.approx(0.8 * 4), "it serves four times as many"


def test_cost_without_prices_or_without_a_price_says_what_is_missing(store):
    add(store, H200, 0.5)
    assert "--prices" in only(compare(store)).cells[0].figure("cost").note
    comparison = compare(store, prices=Prices(currency="EUR", per_hour={"a100": 2.0}, path="p.toml"))
    assert "no price for nvidia-h200" in only(comparison).cells[0].figure("cost").note
    assert any("no price for" in note for note in comparison.notes)


def test_a_choice_of_models_devices_and_batch(store):
    for device in (H200, L4, CPU):
        add(store, device, 1.0)
        add(store, device, 1.0, name="bert-base", batch=8)
    comparison = compare(store, Selection(models=("bert-base",), devices=("l4", CPU.device_class), batch=8))
    assert [cell.sku for cell in only(comparison).cells] == ["amd-epyc-2c", "nvidia-l4"]
    assert comparison.device_classes == (L4.device_class, CPU.device_class)


def test_a_device_of_this_machine_may_have_nothing_yet(store):
    add(store, H200, 1.0)
    comparison = compare(store, Selection(devices=("h200", CPU.device_class), here=(CPU.device_class,)))
    assert [cell.state for cell in only(comparison).cells] == ["compared", "missing"]


@pytest.mark.parametrize(
    ("selection", "error", "message"),
    [
        (Selection(models=("resnet5",)), PlanNotFoundError, "found: resnet50"),
        (Selection(devices=("h100",)), RequestError, "found: nvidia-h200"),
        (Selection(devices=("nvidia",)), RequestError, "could be several"),
        (Selection(batch=7), PlanNotFoundError, "found: batch 1"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(store, selection, error, message):
    add(store, H200, 1.0)
    add(store, L4, 1.0, name="bert-base")
    with pytest.raises(error, match=message):
        compare(store, selection)


def test_an_empty_database_has_nothing_to_compare_and_is_no_error(store):
    assert compare(store).workloads == ()


def test_all_of_it_is_json(store):
    add(store, H200, 0.5)
    add(store, CPU, 40.0, flags=("busy_host",))
    document = compare(store, prices=Prices(currency="EUR", per_hour={"h200": 4.0})).as_dict()
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert document["quantities"]["cost"]["unit"] == "EUR"
    states = [cell["state"] for cell in document["workloads"][0]["cells"]]
    assert states == ["compared", "apart"]


def test_conditions_of_the_present_protocol_are_those_of_a_study_of_now():
    assert conditions(H200).measuring != conditions(CPU).measuring, "a CPU and a GPU are timed by different rules"
