"""Hints from other studies of the database: when a study tries them, what it stores, and what stays the same."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import text

from autotune import registry
from autotune.database.exchange import export_studies, merge_file
from autotune.database.store import Store
from autotune.errors import StudyInterruptedError
from autotune.execute.timing import TimeSplit
from autotune.programs.reliability import simulated
from autotune.programs.reliability.simulated import Journal, Part
from autotune.records.configuration import Configuration
from autotune.records.evidence import FinalistRecord, ObjectiveFigures, PlanEvidence
from autotune.runtime import discovery
from autotune.search_spaces.precision import threads
from autotune.study.hints import past_finals
from autotune.study.study import Study
from tests.database import records
from tests.study.test_curve import Clock, Server

DEFAULTS = 1 + len(threads(discovery.cpu()))
"""The defaults of a simulated study: one of the simulated backend, and the baseline at each thread count."""


class Lab:
    """Runs simulated studies of several models in one database; a model is its name."""

    def __init__(self, folder, store):
        self.folder, self.store, self.runs, self.messages = folder, store, 0, []

    def run(self, name, *, seed=0, trials=6, halting=None):
        self.runs += 1
        folder = self.folder / f"run-{self.runs}"
        folder.mkdir()
        part = Part(database="", study=name, trials=trials, journal=str(self.folder / "journal"), site="", seed=seed)
        server = Server(Journal(Path(part.journal)), Clock(), TimeSplit(), halting=halting)
        return simulated.run(part, self.store, server, self, folder)

    def event(self, kind, **data):
        if kind == "message":
            self.messages.append(data["text"])

    def tried(self, name):
        """The configurations of a study in the order of their trials."""
        (row,) = self.store.studies.list(name)
        return [trial.configuration for trial in self.store.trials.of_study(row.uid)]


@pytest.fixture
def lab(tmp_path, monkeypatch):
    monkeypatch.setattr("autotune.study.trial_timing.EARLY_LOADS", 0)  # the simulated executor has no early loads
    plain = simulated.latency_ms
    monkeypatch.setattr(simulated, "latency_ms", lambda point: plain(point) + 2 * (point.backend == "eager"))
    monkeypatch.syspath_prepend(str(simulated.install(tmp_path)))
    registry.refresh()
    with Store.open(str(tmp_path / "a.db")) as store:
        yield Lab(tmp_path, store)
    sys.path.remove(str(tmp_path / "site"))
    registry.refresh()


def cold(monkeypatch):
    """Let studies be requested with ``warm_start: false``."""
    begin = Study.__init__

    def without(self, request, *others):
        begin(self, replace(request, warm_start=False), *others)

    monkeypatch.setattr(simulated.SimulatedStudy, "__init__", without)


def test_the_best_of_another_model_is_tried_right_after_the_defaults_and_recorded(lab):
    first = lab.run("first", trials=12)
    assert first.known_at_start.hints is None and first.known_at_start.was_empty
    best = first.plan.configuration
    second = lab.run("second")
    (hint,) = second.known_at_start.hints
    assert hint.configuration == best and hint.gain > 1
    assert [(source.name, source.batch) for source in hint.studies] == [("first", 1)]
    assert not second.known_at_start.was_empty and second.plan.evidence.known_at_start == second.known_at_start
    tried = lab.tried("second")
    assert tried.index(best) == DEFAULTS and tried[:DEFAULTS] == lab.tried("first")[:DEFAULTS]


def test_it_is_a_result_of_this_study_and_not_taken_over(lab):
    first = lab.run("first", trials=12)
    second = lab.run("second")
    (row,) = lab.store.studies.list("second")
    trial = next(t for t in lab.store.trials.of_study(row.uid) if t.configuration == first.plan.configuration)
    assert trial.state == "complete" and not trial.reused and second.known_at_start.model_trials == 0


def test_without_warm_start_the_search_is_that_of_an_empty_database(lab, monkeypatch, tmp_path):
    with Store.open(str(tmp_path / "empty.db")) as empty:
        alone = Lab(tmp_path / "alone", empty)
        alone.folder.mkdir()
        alone.run("second")
        expected = alone.tried("second")
    lab.run("first", trials=12)
    cold(monkeypatch)
    outcome = lab.run("second")
    assert outcome.known_at_start.hints is None and lab.tried("second") == expected


def test_a_study_is_the_same_with_hints_and_without(lab, monkeypatch):
    lab.run("first", trials=12)
    warm = lab.run("second")
    cold(monkeypatch)
    again = lab.run("second")
    assert again.cached and again.plan.uid == warm.plan.uid and len(lab.store.studies.list("second")) == 1


def test_a_continued_study_keeps_the_hints_that_it_began_with(lab):
    """Else it would make other proposals than the run that was stopped, if the database has learned more."""
    lab.run("first", trials=12)
    with pytest.raises(StudyInterruptedError):
        lab.run("second", halting=2)
    before = lab.store.studies.list("second")[0].start.hints
    third = lab.run("third", trials=40)
    assert third.known_at_start.hints == before and third.plan.configuration != before[0].configuration
    lab.run("second", trials=8)
    (row,) = lab.store.studies.list("second")
    assert row.start.hints == before
    assert lab.tried("second")[DEFAULTS] == before[0].configuration


def test_hints_travel_with_their_study(lab, tmp_path):
    lab.run("first", trials=12)
    second = lab.run("second")
    export_studies(lab.store, ["second"], tmp_path / "second.zip", artifacts=False)
    with Store.open(str(tmp_path / "b.db")) as other:
        merge_file(other, tmp_path / "second.zip")
        assert other.studies.list("second")[0].start == second.known_at_start


def test_a_plan_that_cannot_be_read_costs_the_hints_and_not_the_study(lab):
    lab.run("first", trials=12)
    with lab.store.transactions.writing() as session:
        session.execute(text("UPDATE plan SET evidence = '{'"))
    outcome = lab.run("second")
    assert outcome.known_at_start.hints is None and outcome.plan is not None
    assert any("second: no hints from other studies" in message for message in lab.messages)


def test_threads_on_all_cores_of_another_cpu_are_those_on_all_cores_here():
    other = replace(discovery.cpu(), name="Wide Brand", cores=64)
    here = replace(discovery.cpu(), cores=16)
    finalists = tuple(
        FinalistRecord(
            configuration=Configuration.of("openvino", {"threads": count}), latency_ms=1.0, interval_ms=(1, 1)
        )
        for count in (64, 4)
    )
    plan = records.plan(device=other, evidence=PlanEvidence(finalists=finalists))
    assert [point["threads"] for point, _ in past_finals(plan, here).finalists] == [16, 4]
    without = replace(finalists[0], configuration=Configuration.of("openvino", {"pinning": True}))
    plan = replace(plan, evidence=PlanEvidence(finalists=(without,)))
    assert past_finals(plan, here).finalists == ((without.configuration, 1.0),)


@pytest.mark.parametrize("value", [0.0, -1.0, "1", None, True])
def test_values_of_a_foreign_plan_that_are_no_positive_numbers_are_left_out(value):
    """``None`` as the objective's value means that latencies are compared, which are good here."""
    finalist = FinalistRecord(
        configuration=Configuration.of("native", {"graph": True}), latency_ms=1.0, interval_ms=(1, 1),
        objective_value=value,
    )  # fmt: skip
    plan = records.plan(evidence=PlanEvidence(finalists=(finalist,)))
    assert len(past_finals(plan, records.DEVICE).finalists) == (value is None)
    figures = ObjectiveFigures(name="latency_p50", unit="ms", value=1.0, interval=(1.0, 1.0), baseline=0.0)
    without = replace(plan, evidence=PlanEvidence(finalists=(finalist,), objective=figures))
    assert past_finals(without, records.DEVICE).finalists == ()
