"""Studies that minimise something else than the median latency, and plans that are timed again."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from autotune.cli.main import app
from autotune.database.store import Store
from autotune.errors import ArtifactError, DeviceError, OutOfMemoryError, RequestError, WorkError
from autotune.execute.executor import Executor
from autotune.measure.percentiles import samples_needed
from autotune.measure.statistics import median
from autotune.records.device import Device
from autotune.records.evidence import FinalistRecord, PlanEvidence
from autotune.records.objective import Objective
from autotune.records.trial import Measurement
from autotune.report.results import results_document, verify_results
from autotune.study.bench import bench_plan, machine_change
from autotune.study.rebuild import best_concurrency
from autotune.study.request import StudyOutcome, StudyRequest
from autotune.study.study import run_study
from autotune.study.sweep import GAIN, saturated, sweep
from tests.finished import DATABASE, REQUEST
from tests.short_timing import PROCESSES


def request(objective: str, **changes) -> StudyRequest:
    values = {
        "name": f"toy-{objective.replace('_', '-')}", "objective": Objective(name=objective), "backends": ("eager",),
        "trials": 2,
    }  # fmt: skip
    return replace(REQUEST, **{**values, **changes})


@pytest.fixture(scope="module")
def studies(tmp_path_factory, finished_folder):
    """A study of each objective, that of the latency made before, with their store and its path."""
    path = shutil.copytree(finished_folder, tmp_path_factory.mktemp("objectives") / "finished") / DATABASE
    with Store.open(str(path)) as store:
        names = ("latency_p99", "throughput", "memory")
        outcomes = {
            "latency_p50": run_study(REQUEST, store),
            **{name: run_study(request(name), store) for name in names},
        }
        yield outcomes, store, path


def finalists(outcome: StudyOutcome) -> tuple[FinalistRecord, ...]:
    return outcome.plan.evidence.finalists


def test_the_tail_is_compared_on_equal_blocks_that_back_it(studies):
    outcome = studies[0]["latency_p99"]
    for finalist in finalists(outcome):
        assert len({len(block) for block in finalist.samples_ms if block is not None}) == 1
        total = sum(len(block) for block in finalist.samples_ms if block)
        assert (finalist.percentiles["p99"] is not None) == (total >= samples_needed(0.99))
    found = outcome.plan.evidence.objective
    assert (found.name, found.unit) == ("latency_p99", "ms") and found.value >= outcome.plan.latency_ms


def test_throughput_says_with_how_many_requests_in_flight(studies):
    plan, store = studies[0]["throughput"].plan, studies[1]
    objective = plan.evidence.objective
    assert objective.concurrency == best_concurrency(store, plan.evidence.trial)
    assert objective.items_per_s == pytest.approx(1e3 / objective.value)
    assert all(len(block) == 1 for one in finalists(studies[0]["throughput"]) for block in one.figures if block)


def test_memory_is_the_peak_of_a_fresh_process_each_round(studies):
    outcome, store, _ = studies[0]["memory"], *studies[1:]
    for finalist in finalists(outcome):
        assert len(finalist.figures) == 7 and all(block[0] > 0 for block in finalist.figures)
    trials = store.trials.of_study(outcome.plan.evidence.study)
    assert all(trial.score is not None and trial.score > trial.latency_ms for trial in trials)


def test_what_is_minimised_is_what_plans_are_kept_for(studies):
    outcomes, store, _ = studies
    for name, outcome in outcomes.items():
        plan = outcome.plan
        found = store.plans.find(replace(plan.key, objective=Objective(name=name)), plan.weights)
        assert found is not None and found.uid == plan.uid


def test_results_of_every_objective_follow_from_their_samples(studies):
    for outcome in studies[0].values():
        document = json.loads(json.dumps(results_document(outcome, "autotune tune")))
        assert verify_results(document) == []
        entry = document["finals"][0]
        entry["objective_value"] *= 1.5
        assert verify_results(document) != []


def test_a_plan_timed_again_is_compared_with_how_it_was_timed_alone(studies):
    outcomes, store, _ = studies
    plan = outcomes["latency_p50"].plan
    again = bench_plan(plan, store, plan.device)
    (stored,) = store.trials.measurements(plan.evidence.trial, "alone")
    assert stored.protocol == {**again.fresh.protocol, "grouped": stored.protocol["grouped"]}
    assert again.drift.fresh_ms == median([median(block) for block in again.fresh.samples_ms])
    assert 0.1 < again.drift.ratio < 10
    assert again.as_dict()["status"] == again.drift.status
    assert len(set(again.fresh.conditions["processes"])) == PROCESSES


def beside(*canary_ms: float) -> Measurement:
    readings = [{"canary": {"available": True, "before_ms": ms, "after_ms": ms}} for ms in canary_ms] or [
        {"canary": {"available": False}}
    ]
    return Measurement(samples_ms=((1.0,),), conditions={"readings": readings})


def test_a_machine_that_runs_at_another_speed_is_not_a_plan_that_drifted(studies):
    assert machine_change(beside(1.0, 1.0, 1.1), beside(1.2, 1.2)) == pytest.approx(0.2)
    assert machine_change(beside(), beside(1.2)) == machine_change(beside(1.2), beside()) == 0.0
    (stored,) = studies[1].trials.measurements(studies[0]["latency_p50"].plan.evidence.trial, "alone")
    assert all(reading["canary"]["available"] for reading in stored.conditions["readings"])


def test_a_plan_that_cannot_be_timed_here_says_why(studies):
    outcomes, store, _ = studies
    plan = outcomes["latency_p50"].plan
    with pytest.raises(DeviceError, match="a device of the class"):
        bench_plan(plan, store, Device(kind="cpu", name="another CPU", uuid="cpu-other", cores=64))
    with pytest.raises(ArtifactError, match="not in this store"):
        bench_plan(replace(plan, artifact="0" * 64), store, plan.device)
    with pytest.raises(RequestError, match="not stored"):
        bench_plan(
            replace(plan, evidence=replace(PlanEvidence.from_dict(plan.evidence.as_dict()), inputs=())),
            store,
            plan.device,
        )


def test_the_command_prints_one_document(studies, capfd):
    with pytest.raises(SystemExit) as done:
        app(["bench", "toy", "--on", "cpu", "--db", str(studies[2]), "--json"])
    document = json.loads(capfd.readouterr().out)
    assert done.value.code == 0 and document["name"] == "toy" and document["status"]


def test_energy_on_a_cpu_is_refused_before_anything_is_begun():
    with pytest.raises(RequestError, match="energy cannot be measured"):
        request("energy")


def served(outcome: StudyOutcome, batch: int, items_per_s: float) -> StudyOutcome:
    objective = {
        "name": "throughput", "unit": "ms/item", "value": 1e3 / items_per_s, "interval": [1.0, 2.0], "baseline": 3.0,
        "items_per_s": items_per_s, "concurrency": 1,
    }  # fmt: skip
    evidence = PlanEvidence.from_dict({"objective": objective})
    return replace(outcome, batch=batch, plan=replace(outcome.plan, batch=batch, evidence=evidence))


def test_batches_are_doubled_until_throughput_is_saturated(studies):
    outcome = studies[0]["throughput"]
    rates = {1: 100.0, 2: 190.0, 4: 190.0 * (1 + GAIN) - 0.1, 8: 1000.0}
    asked = [request("throughput", batch=batch) for batch in rates]
    ran = list(sweep(asked, lambda one: served(outcome, one.batch, rates[one.batch])))
    assert [one.batch for one in ran] == [1, 2, 4]
    assert saturated(ran).batch == 2


def test_an_undecided_batch_says_nothing_about_saturation(studies):
    outcome = studies[0]["throughput"]
    rates = {1: 100.0, 2: None, 4: 400.0, 8: 400.0}

    def run(one: StudyRequest) -> StudyOutcome:
        if rates[one.batch] is None:
            kept = served(outcome, one.batch, 1.0)
            return replace(kept, status="undecided", reason="busy host", run="autotune tune study.yaml")
        return served(outcome, one.batch, rates[one.batch])

    ran = list(sweep([request("throughput", batch=batch) for batch in rates], run))
    assert [one.batch for one in ran] == [1, 2, 4, 8]
    assert saturated(ran).batch == 4 and saturated(ran[1:2]) is None


def too_large() -> torch.nn.Module:
    """A model that takes more memory than there can be from a batch of 4."""

    class TooLarge(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(16, 8)

        def forward(self, input: torch.Tensor) -> torch.Tensor:
            rows = input.shape[0] if input.shape[0] < 4 else 1 << 46
            return self.layer(input) + input.new_zeros(rows, 8).sum()

    return TooLarge()


class Swept:
    """Runs studies for real from a batch of 4, and has found a plan for those before."""

    def __init__(self, found: StudyOutcome, store: Store, **changes) -> None:
        self.found, self.store, self.changes, self.ran = found, store, changes, []

    def __call__(self, asked: StudyRequest) -> StudyOutcome:
        self.ran.append(asked.batch)
        if asked.batch < 4:
            return served(self.found, asked.batch, 100.0 * asked.batch)
        return run_study(replace(asked, **self.changes), self.store)


def batches(*of: int) -> list[StudyRequest]:
    return [request("throughput", batch=batch, name="swept") for batch in of]


def check_the_sweep_ends_before_batch_4(run: Swept) -> None:
    assert [one.plan.batch for one in sweep(batches(1, 2, 4, 8), run)] == [1, 2] and run.ran == [1, 2, 4]
    with pytest.raises(OutOfMemoryError, match="memory"):
        list(sweep(batches(4, 8), run))


def test_a_batch_that_a_model_has_no_memory_for_ends_the_sweep_and_may_not_be_the_first(studies):
    run = Swept(studies[0]["throughput"], studies[1], factory=f"{__file__}:too_large")
    check_the_sweep_ends_before_batch_4(run)


@pytest.mark.parametrize("after", [None, "prepare", "reference", "build"])
def test_the_limit_of_a_steps_memory_ends_the_sweep_in_whatever_step(studies, monkeypatch, after):
    """From a step on, no step may take more than 1 MiB, which the keeper of each watches over."""

    def limit(executor: Executor) -> None:
        executor.server.memory_limit_bytes = 1 << 20

    if after is None:
        make = Executor.__init__
        monkeypatch.setattr(Executor, "__init__", lambda executor, *given: (make(executor, *given), limit(executor))[0])
    else:
        step = getattr(Executor, after)

        def then_limit(executor: Executor, *given, **named):
            answer = step(executor, *given, **named)
            limit(executor)
            return answer

        monkeypatch.setattr(Executor, after, then_limit)
    check_the_sweep_ends_before_batch_4(Swept(studies[0]["throughput"], studies[1]))


def test_another_failure_of_a_larger_batch_is_raised(studies):
    def run(one: StudyRequest) -> StudyOutcome:
        if one.batch == 4:
            raise WorkError("batch 4", found="a file named out of memory is not there")
        return served(studies[0]["throughput"], one.batch, 100.0 * one.batch)

    with pytest.raises(WorkError, match="batch 4"):
        list(sweep(batches(1, 2, 4, 8), run))
