"""Plans of another CPU that are carried into the finals of this one."""

from dataclasses import replace
from pathlib import Path

import pytest

from autotune import registry
from autotune.comparison.carried import carried_to
from autotune.database.store import Store
from autotune.errors import RequestError
from autotune.model.inputs import InputSpec
from autotune.records.configuration import Configuration
from autotune.records.evidence import PlanEvidence
from autotune.report.results import results_document, verify_results
from autotune.runtime import discovery
from autotune.runtime import toolchain as versions
from autotune.study.request import StudyRequest
from autotune.study.study import run_study

TOY = f"{Path(__file__).parents[1]}/toy.py:make"
OTHER = replace(discovery.cpu(), name="Other Brand", cores=64)
WIDE = replace(discovery.cpu(), name="Wide Brand", cores=32)
FAULTY = replace(discovery.cpu(), name="Faulty Brand", cores=8)
OUTSIDE = 1 + discovery.cpu().cores
"""A number of threads that the space of this CPU does not have."""


@pytest.fixture(scope="module")
def request_(misbehaving):
    return StudyRequest(
        name="toy", batch=2, device=discovery.cpu(), factory=TOY, backends=("eager", "torchscript"), budget_s=300.0,
        inputs=(InputSpec(name="input", shape=("batch", 16)),), trials=4,
    )  # fmt: skip


@pytest.fixture(scope="module")
def finished(request_, tmp_path_factory, misbehaving):
    """A study that has a plan, then plans of three other CPUs from elsewhere, then its finals with them."""
    with Store.open(str(tmp_path_factory.mktemp("db") / "autotune.db")) as store:
        own = run_study(request_, store).plan
        values = {"channels_last": False, "optimize": False, "precision": "fp32", "threads": 1}
        fitting = Configuration.of("torchscript", values)
        outside = Configuration.of("torchscript", {**values, "threads": OUTSIDE})
        faulty = Configuration.of(misbehaving, {"fault": "error", "precision": "fp32"})
        for device, configuration in ((OTHER, fitting), (WIDE, outside), (FAULTY, faulty)):
            store.plans.promote(
                replace(own, uid=f"plan of {device.name}", device=device, configuration=configuration, artifact=None)
            )
        yield own, store, run_study(replace(request_, carry=("all",)), store)


def test_a_plan_of_another_cpu_is_timed_in_the_same_finals_as_it_is(finished):
    _, _, outcome = finished
    records = {record.device_class: record for record in outcome.plan.evidence.carried}
    timed = records[OTHER.device_class]
    assert timed.plan == f"plan of {OTHER.name}" and timed.trial, timed
    finalist = next(entry for entry in outcome.plan.evidence.finalists if entry.uid == timed.trial)
    assert finalist.configuration == timed.configuration
    assert all(len(entry.samples_ms) == outcome.plan.evidence.rounds for entry in outcome.plan.evidence.finalists)


def test_one_outside_of_the_space_of_this_cpu_is_built_and_one_that_fails_says_why(finished):
    _, store, outcome = finished
    trials = store.trials.of_study(outcome.plan.evidence.study)
    assert any(trial.configuration.get("threads", 0) == OUTSIDE and trial.latency_ms for trial in trials)
    failed = next(record for record in outcome.plan.evidence.carried if record.device_class == FAULTY.device_class)
    assert failed.failure.startswith("build: error") and not failed.trial


def test_its_loss_follows_from_the_pairs_of_rounds(finished):
    _, _, outcome = finished
    by_class = {entry.from_class: entry for entry in carried_to(outcome.plan)}
    timed = by_class[OTHER.device_class]
    assert timed.state in ("measured", "same") and timed.own.value == outcome.plan.latency_ms
    low, high = timed.loss.interval or (0.0, 0.0)
    assert low <= timed.loss.value <= high
    assert by_class[FAULTY.device_class].state == "failed" and by_class[FAULTY.device_class].loss.value is None
    assert by_class[WIDE.device_class].loss.value is not None


def test_its_finals_replaced_the_ones_before_and_are_not_run_twice(finished, request_):
    own, store, outcome = finished
    assert outcome.plan.uid != own.uid and not outcome.cached
    again = run_study(replace(request_, carry=("all",)), store)
    assert again.cached and again.plan.uid == outcome.plan.uid
    assert run_study(request_, store).cached


def test_a_carried_configuration_that_was_cut_off_does_not_stop_a_study_that_goes_on(request_, misbehaving, tmp_path):
    """A process that is killed leaves the trial of a carried plan running; its backend takes no part in the study."""
    with Store.open(str(tmp_path / "autotune.db")) as store:
        first = run_study(request_, store)
        study = first.plan.evidence.study
        cut_off = Configuration.of(misbehaving, {"fault": "error", "precision": "fp32"})
        toolchain = versions.current(request_.device).only(registry.backend(misbehaving).toolchain).digest
        assert store.trials.claim(study, cut_off, toolchain).state == "running"
        outcome = run_study(replace(request_, trials=request_.trials + 1), store)
    assert outcome.trials["complete"] > first.trials["complete"] and outcome.plan.evidence.study == study


def test_again_runs_the_finals_although_there_is_a_plan(finished, request_):
    _, store, outcome = finished
    anew = run_study(replace(request_, again=True), store)
    assert not anew.cached and anew.plan.uid != outcome.plan.uid
    assert anew.plan.evidence.study == outcome.plan.evidence.study and anew.trials == outcome.trials


def test_its_record_is_stored_and_its_results_verify(finished):
    _, _, outcome = finished
    evidence = outcome.plan.evidence
    assert PlanEvidence.from_dict(evidence.as_dict()).carried == evidence.carried
    assert not verify_results(results_document(outcome, command="autotune tune"))


@pytest.mark.parametrize("name", ["h200", "all"])
def test_a_device_without_a_plan_is_refused_before_anything_is_begun(request_, name, tmp_path):
    with Store.open(str(tmp_path / "autotune.db")) as store:
        with pytest.raises(RequestError, match="can be carried from") as error:
            run_study(replace(request_, carry=(name,)), store)
        assert "autotune db merge" in str(error.value) and not store.studies.list()


def test_a_plan_of_a_gpu_is_not_carried_to_a_cpu_and_the_nearest_names_are_offered(finished, request_):
    own, store, _ = finished
    gpu = replace(own.device, kind="cuda", name="NVIDIA H200", capability=(9, 0))
    store.plans.promote(replace(own, uid="plan of a GPU", device=gpu, artifact=None))
    with pytest.raises(RequestError) as error:
        run_study(replace(request_, carry=("h200",)), store)
    assert "other-brand-64c" in str(error.value) and "another CPU" in str(error.value)
