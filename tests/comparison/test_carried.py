"""The loss of carried plans, from stored evidence."""

from dataclasses import replace

import pytest

from autotune.comparison.comparison import compare_store
from autotune.records.device import Device
from autotune.records.evidence import CarriedRecord, FinalistRecord, PlanEvidence
from autotune.testing import sample_records
from tests.comparison.database import CPU, H200, L4, add

OLD = sample_records.configuration(level=7)
ROUNDS = 12


def finalist(uid: str, configuration, samples: list[float]) -> FinalistRecord:
    blocks = tuple((value,) for value in samples)
    middle = sorted(samples)[len(samples) // 2]
    return FinalistRecord(
        uid=uid, configuration=configuration, latency_ms=middle, interval_ms=(min(samples), max(samples)),
        samples_ms=blocks,
    )  # fmt: skip


def carry(store, to: Device, record: CarriedRecord, ratio: float | None = None) -> None:
    """Give the plan of a device a carried record and, with a ratio, a finalist for it that takes that much longer."""
    plan = next(plan for plan in store.plans.list() if plan.device == to)
    own = [plan.latency_ms * (1 + 0.001 * (index % 5)) for index in range(ROUNDS)]
    finalists = [finalist(plan.evidence.trial, plan.configuration, own)]
    if ratio is not None:
        times = [value * ratio * (1 + 0.002 * (index % 3)) for index, value in enumerate(own)]
        finalists.append(finalist(record.trial, record.configuration, times))
    evidence = replace(
        PlanEvidence.from_dict(plan.evidence.as_dict()),
        finalists=tuple(finalists), carried=(record,), processes=tuple(i // 4 for i in range(ROUNDS)), stored_keys=None,
    )  # fmt: skip
    store.plans.promote(replace(plan, evidence=evidence))


def entries(store) -> dict[tuple[str, str], object]:
    (workload,) = compare_store(store).workloads
    return {(entry.from_class.split("/")[0], entry.to_class.split("/")[0]): entry for entry in workload.carried}


@pytest.fixture
def devices(store):
    add(store, H200, 0.5)
    add(store, L4, 2.0, configuration=OLD)
    add(store, CPU, 40.0)
    return store


def record(**changes) -> CarriedRecord:
    return CarriedRecord(device_class=L4.device_class, plan="p", configuration=OLD, **changes)


def test_the_loss_is_the_median_of_pairs_with_an_interval(devices):
    carry(devices, H200, record(trial="carried"), ratio=1.25)
    entry = entries(devices)["nvidia-l4", "nvidia-h200"]
    assert entry.state == "measured" and entry.verdict == "slower"
    assert entry.loss.value == pytest.approx(0.2525, abs=0.003) and entry.loss.interval[0] > 0.24
    assert entry.as_dict()["loss"]["value"] == entry.loss.value


def test_rounds_of_equal_times_show_no_difference(devices):
    carry(devices, H200, record(trial="carried"), ratio=1.0)
    assert entries(devices)["nvidia-l4", "nvidia-h200"].verdict == "no difference"


def test_a_plan_that_failed_or_was_far_too_slow_says_so_and_has_no_interval(devices):
    carry(devices, H200, record(failure="build: error: no such kernel"))
    failed = entries(devices)["nvidia-l4", "nvidia-h200"]
    assert (failed.state, failed.loss.value) == ("failed", None) and "no such kernel" in failed.reason
    carry(devices, H200, record(screened=5.0))
    slow = entries(devices)["nvidia-l4", "nvidia-h200"]
    assert slow.state == "outclassed" and slow.loss.interval is None and slow.loss.value == pytest.approx(9.0)


def test_a_pair_that_was_not_measured_has_the_command_and_only_pairs_of_one_kind_are_there(devices):
    carried = entries(devices)
    assert set(carried) == {("nvidia-l4", "nvidia-h200"), ("nvidia-h200", "nvidia-l4")}
    missing = carried["nvidia-l4", "nvidia-h200"]
    assert missing.state == "missing" and "--carry nvidia-l4" in missing.command and missing.loss.value is None


def test_equal_configurations_lose_nothing(store):
    add(store, H200, 0.5)
    add(store, L4, 2.0)
    assert {entry.state for entry in entries(store).values()} == {"same"}


def test_a_record_of_an_earlier_plan_is_shown_with_a_remark(devices):
    earlier = replace(record(trial="carried"), configuration=sample_records.configuration(level=3))
    carry(devices, H200, earlier, ratio=1.5)
    entry = entries(devices)["nvidia-l4", "nvidia-h200"]
    assert entry.state == "measured" and "earlier plan" in entry.reason
