"""Whether plans became slower than an earlier comparison says."""

import json

import pytest

from autotune.comparison.comparison import compare_store as compare
from autotune.comparison.regression import changes, read_baseline
from autotune.comparison.selection import Selection
from autotune.errors import RequestError
from tests.comparison.database import H200, L4, add


@pytest.fixture
def baseline(store, tmp_path):
    """The comparison of one plan of 1 ms, ±2%, as a file."""
    add(store, H200, 1.0)
    path = tmp_path / "baseline.json"
    path.write_text(json.dumps(compare(store).as_dict()))
    return read_baseline(path)


@pytest.mark.parametrize(
    ("latency_ms", "judgement"),
    [(1.2, "slower"), (1.05, "undecided"), (1.0, "undecided"), (0.8, "faster")],
)
def test_a_change_counts_if_both_intervals_allow_nothing_else(store, baseline, latency_ms, judgement):
    add(store, H200, latency_ms)
    (change,) = changes(compare(store), baseline, 0.03)
    assert change.judgement == judgement and change.ratio == pytest.approx(latency_ms)
    assert change.interval[0] < change.ratio < change.interval[1]


def test_the_threshold_decides_what_is_the_same(store, baseline):
    (change,) = changes(compare(store), baseline, 0.05)
    assert change.judgement == "same"


def test_cells_of_one_side_only_are_new_or_gone(store, baseline, tmp_path):
    add(store, L4, 2.0)
    found = {change.device_class: change.judgement for change in changes(compare(store), baseline, 0.03)}
    assert found == {H200.device_class: "undecided", L4.device_class: "new"}
    gone = changes(compare(store), {("bert-base", 1, "latency_p50", "x/y/z", "{}", "any"): None}, 0.03)
    assert {change.judgement for change in gone} == {"new", "gone"}


def test_a_comparison_by_toolchain_is_no_baseline(store, tmp_path):
    add(store, H200, 1.0)
    path = tmp_path / "b.json"
    path.write_text(json.dumps(compare(store, Selection(by="toolchain")).as_dict()))
    with pytest.raises(RequestError, match="by toolchain"):
        read_baseline(path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 9, "workloads": []}', '{"schema": 1, "workloads": [1]}'])
def test_a_file_of_something_else_is_refused(tmp_path, text):
    path = tmp_path / "b.json"
    path.write_text(text)
    with pytest.raises(RequestError, match="autotune compare --json"):
        read_baseline(path)
    with pytest.raises(RequestError, match="No such file"):
        read_baseline(tmp_path / "none.json")


def test_rows_that_were_not_asked_for_are_not_gone(store, baseline):
    add(store, L4, 2.0)
    other = {("bert-base", 1, "latency_p50", H200.device_class, "{}", "any"): next(iter(baseline.values()))}
    for selection in (Selection(models=("resnet50",)), Selection(devices=("l4",)), Selection(batch=8)):
        judged = changes(compare(store, Selection(devices=selection.devices)), {**baseline, **other}, 0.03, selection)
        gone = [change for change in judged if change.judgement == "gone"]
        assert len(gone) == (0 if selection.models or selection.devices or selection.batch else 1)


@pytest.mark.parametrize(
    ("change", "refused"),
    [
        (lambda data: data["quantities"]["latency"].update(unit="s"), "latency_p50 in s"),
        (
            lambda data: data["workloads"][0]["cells"][0]["figures"]["latency"].update(interval=None),
            "without an interval",
        ),
        (lambda data: data.pop("workloads"), "no entry 'workloads'"),
    ],
)
def test_other_units_and_figures_without_intervals_are_refused_in_words(store, tmp_path, change, refused):
    add(store, H200, 1.0)
    data = json.loads(json.dumps(compare(store).as_dict()))
    change(data)
    path = tmp_path / "b.json"
    path.write_text(json.dumps(data))
    with pytest.raises(RequestError, match=refused):
        read_baseline(path)
