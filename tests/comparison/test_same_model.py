"""Graphs of one model that different versions captured."""

from dataclasses import replace

import pytest

from autotune.comparison.comparison import compare_store
from autotune.records.evidence import PlanEvidence
from autotune.testing import sample_records
from tests.comparison.database import CPU, H200, L4, add

OTHER = sample_records.digest("the graph of another version")


def with_toolchain(store, device, torch, **changes):
    """Store a plan whose finals were measured under a version of torch."""
    plan = add(store, device, changes.pop("latency_ms", 1.0), **changes)
    evidence = PlanEvidence.from_dict({**plan.evidence.as_dict(), "toolchain": {"torch": torch}})
    store.plans.promote(replace(plan, evidence=evidence))


def count_work(store, structure=None, flops=100):
    """Store the work of the graph of a model."""
    model = replace(sample_records.sample_workload(), flops=flops, traffic_bytes=10)
    model = model if structure is None else replace(model, structure=structure)
    sample_records.begin(store, model.name, workload=model, space_digest=f"{structure} {flops}")


@pytest.fixture
def two_graphs(store):
    with_toolchain(store, H200, "2.11.0")
    with_toolchain(store, L4, "2.11.0", latency_ms=3.0)
    with_toolchain(store, CPU, "2.13.0", latency_ms=40.0, structure=OTHER)
    return store


def cells(store):
    comparison = compare_store(store)
    (workload,) = comparison.workloads
    return {cell.sku: cell for cell in workload.cells}, comparison.notes


def test_another_graph_of_equal_work_by_another_version_stands_beside_the_others_with_a_note(two_graphs):
    count_work(two_graphs)
    count_work(two_graphs, OTHER)
    by_sku, notes = cells(two_graphs)
    assert by_sku["amd-epyc-2c"].state == "compared"
    (note,) = [note for note in notes if "another graph" in note]
    assert "torch 2.13.0" in note and "amd-epyc-2c" in note


@pytest.mark.parametrize("flops", [None, 101])
def test_a_graph_of_other_or_unknown_work_stands_apart(two_graphs, flops):
    count_work(two_graphs)
    if flops is not None:
        count_work(two_graphs, OTHER, flops)
    by_sku, notes = cells(two_graphs)
    assert [reason.name for reason in by_sku["amd-epyc-2c"].reasons] == ["other structure"]
    assert not any("another graph" in note for note in notes)


def test_under_one_version_another_graph_is_another_model(store):
    with_toolchain(store, H200, "2.11.0")
    with_toolchain(store, L4, "2.11.0", latency_ms=3.0)
    with_toolchain(store, CPU, "2.11.0", latency_ms=40.0, structure=OTHER)
    count_work(store)
    count_work(store, OTHER)
    by_sku, _ = cells(store)
    assert by_sku["amd-epyc-2c"].state == "apart"
