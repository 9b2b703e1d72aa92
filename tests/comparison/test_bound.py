"""The most that a device serves within a bound of latency."""

from dataclasses import replace

import pytest

from autotune.comparison.bound import parse_bound, within_bound
from autotune.comparison.comparison import compare_store as compare
from autotune.comparison.prices import Prices
from autotune.errors import RequestError
from autotune.records.evidence import ObjectiveFigures, PlanEvidence
from autotune.records.objective import Objective
from autotune.records.trial import Measurement
from autotune.testing import sample_records
from tests.comparison.database import H200, L4, add


def with_percentiles(store, plan, **values):
    """Give the winner of a stored plan percentiles."""
    winner = replace(plan.evidence.winner, percentiles={"n": 700, "p50": plan.latency_ms, "p90": None, **values})
    evidence = PlanEvidence(study=plan.evidence.study, trial=plan.evidence.trial, finalists=(winner,))
    store.plans.promote(replace(plan, evidence=evidence))


@pytest.mark.parametrize(
    ("text", "percentile", "limit_ms"),
    [("p99<=10ms", "p99", 10.0), ("p50 ≤ 0.5 s", "p50", 500.0), ("p99.9<200us", "p99.9", 0.2)],
)
def test_a_bound_is_a_percentile_and_a_time(text, percentile, limit_ms):
    bound = parse_bound(text)
    assert bound.percentile == percentile and bound.limit_ms == pytest.approx(limit_ms)


@pytest.mark.parametrize("text", ["", "p99", "p98<=10ms", "p99>=10ms", "p99<=0ms", "p99<=ten", "10ms"])
def test_another_text_is_refused(text):
    with pytest.raises(RequestError, match="p99<=10ms"):
        parse_bound(text)


def test_the_largest_batch_that_holds_the_bound_is_chosen(store):
    for batch, latency_ms, p99 in ((1, 0.5, 0.6), (8, 2.0, 2.4), (32, 7.0, 12.0)):
        with_percentiles(store, add(store, H200, latency_ms, batch=batch), p99=p99)
    with_percentiles(store, add(store, L4, 2.0), p99=11.0)
    prices = Prices(currency="EUR", per_hour={"h200": 4.0})
    entries = {
        entry.device_class: entry
        for entry in within_bound(compare(store, prices=prices), parse_bound("p99<=10ms"), store)
    }
    operation = entries[H200.device_class].operation
    assert (operation.plan.batch, operation.concurrency) == (8, 1)
    assert operation.throughput.value == pytest.approx(4000) and operation.cost.value == pytest.approx(4 / 14.4)
    none = entries[L4.device_class]
    assert none.operation is None and "11 ms" in none.reason and none.as_dict()["batch"] is None


def test_a_percentile_that_too_few_samples_back_holds_no_bound(store):
    with_percentiles(store, add(store, H200, 0.5), p99=None)
    (entry,) = within_bound(compare(store), parse_bound("p99<=10ms"), store)
    assert entry.operation is None and "too few samples" in entry.reason
    (entry,) = within_bound(compare(store), parse_bound("p50<=10ms"), store)
    assert entry.operation.plan.batch == 1


def test_requests_in_flight_are_judged_by_the_latency_that_they_had(store):
    figures = ObjectiveFigures(
        name="throughput",
        unit="ms/item",
        value=0.1,
        interval=(0.09, 0.11),
        baseline=0.3,
        concurrency=4,
        items_per_s=1e4,
    )
    plan = add(store, H200, 0.3, batch=4, objective=Objective(name="throughput"), figures=figures)
    study = store.studies.get(plan.evidence.study)
    trial = store.trials.claim(study.uid, sample_records.configuration(), "t")
    point = {"concurrency": 4, "samples_ms": [1.5] * 700}
    measured = Measurement(samples_ms=((0.3,),), conditions={"throughput": point})
    store.trials.finish(sample_records.complete(trial), {"screening": measured})
    store.plans.promote(replace(plan, evidence=PlanEvidence(study=study.uid, trial=trial.uid, objective=figures)))
    (entry,) = within_bound(compare(store), parse_bound("p99<=2ms"), store)
    assert entry.operation.concurrency == 4 and entry.operation.latency.value == pytest.approx(1.5)
    (entry,) = within_bound(compare(store), parse_bound("p99<=1ms"), store)
    assert entry.operation is None
