"""The toolchains that the plans of a device class were measured under, side by side."""

from dataclasses import replace

import pytest

from autotune.comparison.by_toolchain import newest_slower
from autotune.comparison.comparison import compare_store
from autotune.comparison.prices import Prices
from autotune.comparison.selection import Selection
from autotune.records.objective import Objective
from autotune.testing import sample_records
from tests.comparison.database import H200, L4, energy, measured

BY_TOOLCHAIN = Selection(by="toolchain")


def compare(store, threshold=0.03, prices=None):
    return compare_store(store, BY_TOOLCHAIN, prices, threshold=threshold)


def slower(comparison):
    return [cell.plan.latency_ms for cell in newest_slower(cell for _, cell in comparison.cells())]


def test_rows_are_the_newest_first_and_name_the_entries_in_which_they_differ(store):
    for latency_ms, torch, day in ((1.0, "2.11.0", 1), (0.8, "2.12.0", 2), (1.2, "2.13.0", 3)):
        measured(store, H200, latency_ms, torch, day)
    (workload,) = compare(store).workloads
    assert workload.device_class == H200.device_class and workload.title.endswith(H200.device_class)
    assert [str(cell.toolchain) for cell in workload.cells] == ["torch 2.13.0", "torch 2.12.0", "torch 2.11.0"]
    newest, middle, oldest = (cell.toolchain for cell in workload.cells)
    assert newest.steps == "torch 2.12.0 → 2.13.0" and newest.change.judgement == "slower"
    assert newest.change.value == pytest.approx(1.5)
    low, high = newest.change.interval
    assert (low, high) == (pytest.approx(1.5 * 0.98 / 1.02), pytest.approx(1.5 * 1.02 / 0.98))
    assert middle.change.judgement == "faster" and oldest.change is None
    for cell in workload.cells:
        command, _, comment = cell.command.partition("  # with ")
        assert command.startswith("autotune reproduce resnet50 ") and comment == str(cell.toolchain)


def test_an_entry_that_one_toolchain_lacks_is_absent(store):
    measured(store, H200, 1.0, "2.11.0", 1)
    measured(store, H200, 1.0, "2.11.0", 2, toolchain=sample_records.NEWER_TOOLCHAIN)
    assert len(compare(store).workloads[0].cells) == 1, "the entries that a plan depends on are no measurement"
    measured(store, L4, 1.0, "2.11.0", 1)
    plan = measured(store, L4, 1.0, "2.12.0", 2)
    store.plans.promote(replace(plan, uid="x", created="2026-01-03T00:00:00Z", evidence={
        **plan.evidence.as_dict(), "toolchain": {"torch": "2.12.0"}}))  # fmt: skip
    first, *_ = compare(store).workloads[1].cells
    assert first.toolchain.steps == "triton 3.5.0 → absent"


def test_only_a_change_of_the_newest_plan_counts_as_slower(store):
    for latency_ms, torch, day in ((1.0, "2.11.0", 1), (1.5, "2.12.0", 2), (1.5, "2.13.0", 3)):
        measured(store, H200, latency_ms, torch, day)
    measured(store, L4, 1.0, "2.11.0", 1)
    measured(store, L4, 1.1, "2.13.0", 3)
    assert slower(compare(store)) == [1.1] and slower(compare(store, threshold=0.2)) == []
    judgements = [cell.toolchain.change.judgement for _, cell in compare(store).cells() if cell.toolchain.change]
    assert judgements == ["undecided", "slower", "slower"]


@pytest.mark.parametrize("changes", [{"flags": ("busy_host",)}, {"protocol": sample_records.CONDITIONS}])
def test_a_row_under_other_rules_is_grey_and_nothing_is_compared_with_it(store, changes):
    measured(store, H200, 1.0, "2.11.0", 1)
    measured(store, H200, 9.0, "2.12.0", 2, **changes)
    measured(store, H200, 1.5, "2.13.0", 3)
    comparison = compare(store)
    cells = comparison.workloads[0].cells
    assert [cell.state for cell in cells] == ["compared", "compared", "apart"]
    assert cells[0].toolchain.steps == "torch 2.11.0 → 2.13.0" and cells[2].toolchain.change is None
    assert slower(comparison) == [1.5]
    measured(store, H200, 9.0, "2.14.0", 4, **changes)
    assert slower(compare(store)) == [], "an older change is not the one of the newest plan"


def test_plans_under_other_constraints_are_compared_among_themselves(store):
    loose = Objective(signal_error=0.05)
    for latency_ms, torch, day in ((1.0, "2.11.0", 1), (1.5, "2.13.0", 2)):
        measured(store, H200, latency_ms, torch, day)
        measured(store, H200, latency_ms / 2, torch, day + 10, objective=loose)
    (workload,) = compare(store).workloads
    assert {cell.state for cell in workload.cells} == {"compared"} and len(workload.cells) == 4
    assert sorted(slower(compare(store))) == [0.75, 1.5]


def test_weights_are_one_row_and_an_objective_is_compared_by_its_own_figure(store):
    measured(store, H200, 1.0, "2.11.0", 1, weights=sample_records.digest("a"))
    measured(store, H200, 1.1, "2.11.0", 2, weights=sample_records.digest("b"))
    measured(store, H200, 1.5, "2.13.0", 3, weights=sample_records.digest("a"))
    newest, older = compare(store).workloads[0].cells
    assert (newest.plan.latency_ms, older.plan.latency_ms, older.weights_known) == (1.5, 1.1, 2)
    measured(store, H200, 1.0, "2.11.0", 1, batch=8, **energy(4.0))
    measured(store, H200, 1.0, "2.13.0", 2, batch=8, **energy(8.0))
    assert compare(store).workloads[1].cells[0].toolchain.change.value == pytest.approx(2.0)


def test_device_classes_have_tables_of_their_own_without_winners(store):
    for device, latency_ms in ((H200, 0.5), (L4, 2.0)):
        measured(store, device, latency_ms, "2.11.0", 1)
        measured(store, device, 2 * latency_ms, "2.13.0", 2)
    comparison = compare(store, prices=Prices(currency="EUR", per_hour={"h200": 4.0, "l4": 0.8}))
    assert [workload.device_class for workload in comparison.workloads] == [H200.device_class, L4.device_class]
    assert all(
        workload.winners == {} and workload.break_evens(comparison.prices) == () for workload in comparison.workloads
    )
    assert not any("only one" in note or "--again" in note for note in comparison.notes)


def test_one_toolchain_everywhere_is_no_error_but_a_note_with_the_commands(store):
    measured(store, H200, 1.0, "2.13.0", 1)
    measured(store, L4, 2.0, "2.12.0", 1)
    comparison = compare(store)
    (note,) = (note for note in comparison.notes if "one toolchain" in note)
    assert "autotune tune STUDY_FILE --again" in note and "autotune db merge" in note
    assert all(not cell.toolchain.versions and "#" not in cell.command for _, cell in comparison.cells())
    assert slower(comparison) == []


def test_by_device_no_former_plan_has_a_row(store):
    measured(store, H200, 1.0, "2.11.0", 1)
    plan = measured(store, H200, 1.5, "2.13.0", 2)
    comparison = compare_store(store)
    assert [cell.plan for _, cell in comparison.cells()] == [plan] and comparison.as_dict()["by"] == "device"
    assert comparison.as_dict()["workloads"][0]["cells"][0]["toolchain"] is None


def test_the_document_has_versions_and_changes(store):
    measured(store, H200, 1.0, "2.11.0", 1)
    measured(store, H200, 1.5, "2.13.0", 2)
    document = compare(store).as_dict()
    newest, older = document["workloads"][0]["cells"]
    assert document["by"] == "toolchain" and document["workloads"][0]["device_class"] == H200.device_class
    assert newest["plan"]["measured_under"] == {"torch": "2.13.0", "triton": "3.5.0"}
    assert newest["toolchain"]["versions"] == {"torch": "2.13.0"} and newest["toolchain"]["before"] == {
        "torch": "2.11.0"
    }
    assert newest["toolchain"]["judgement"] == "slower" and len(newest["toolchain"]["interval"]) == 2
    assert older["toolchain"] == {
        "versions": {"torch": "2.11.0"}, "before": {}, "judgement": None, "ratio": None, "interval": None
    }  # fmt: skip
