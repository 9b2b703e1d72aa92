"""A study that an earlier version finished answers as before, and the work of its model is counted once."""

import json
from pathlib import Path

import pytest
from sqlalchemy import text

from autotune.database.store import Store
from autotune.errors import ModelError
from autotune.execute.executor import Executor
from autotune.model.inputs import InputSpec
from autotune.runtime import discovery
from autotune.study.request import StudyRequest
from autotune.study.study import run_study
from autotune.study.work import TRIED

TOY = f"{Path(__file__).parents[1]}/toy.py:make"


class Messages:
    def __init__(self):
        self.texts = []

    def event(self, kind, **data):
        if kind == "message":
            self.texts.append(data["text"])


@pytest.fixture(scope="module")
def request_():
    return StudyRequest(
        name="toy", batch=2, device=discovery.cpu(), factory=TOY,
        inputs=(InputSpec(name="input", shape=("batch", 16)),), backends=("eager",), trials=1, budget_s=60.0,
    )  # fmt: skip


@pytest.fixture(scope="module")
def finished(request_, tmp_path_factory):
    """A database with a finished study, and the workload of it with its work."""
    with Store.open(str(tmp_path_factory.mktemp("db") / "a.db")) as store:
        plan = run_study(request_, store).plan
        yield store, store.studies.workload(plan.evidence.study)


def forget(store):
    """Bring the workload into the form that earlier versions stored, and forget that its work was to be counted."""
    with store.transactions.writing() as session:
        record = json.loads(session.execute(text("SELECT record FROM workload")).scalar())
        for name in ("schema", "flops", "traffic_bytes"):
            record.pop(name, None)
        session.execute(text("UPDATE workload SET record = :record"), {"record": json.dumps(record)})
    (row,) = store.studies.list()
    store.studies.describe(row.uid, {name: value for name, value in row.settings.items() if name != TRIED})


def answered(request, store):
    """The texts that a run showed which had nothing to search."""
    messages = Messages()
    assert run_study(request, store, messages).cached
    return messages.texts


def test_the_work_is_counted_once_and_the_answer_stays_cached(request_, finished):
    store, workload = finished
    assert workload.flops and workload.traffic_bytes
    assert answered(request_, store) == []
    forget(store)
    (message,) = answered(request_, store)
    assert "it is counted, once" in message and store.studies.workloads() == [workload]
    assert answered(request_, store) == []


def test_a_model_that_cannot_be_captured_any_more_is_tried_once(request_, finished, monkeypatch):
    store, workload = finished
    forget(store)
    calls = []

    def refuse(*arguments):
        calls.append(arguments)
        raise ModelError("no capture")

    monkeypatch.setattr(Executor, "prepare", refuse)
    assert len(answered(request_, store)) == 1 and answered(request_, store) == []
    (row,) = store.studies.list()
    assert len(calls) == 1 and row.settings[TRIED] is False and store.studies.workloads() != [workload]


def test_what_is_captured_now_is_not_taken_for_another_model(request_, finished, monkeypatch):
    store, workload = finished
    forget(store)
    real = Executor.workload

    def other(executor):
        captured = real(executor)
        return type(captured).from_dict({**captured.as_dict(), "weights": "0" * 64})

    monkeypatch.setattr(Executor, "workload", other)
    assert len(answered(request_, store)) == 1
    assert store.studies.lacks_work(workload.structure, workload.weights)
