"""Whole studies of a toy model with real workers, in a database of their own."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from autotune.database.store import Store
from autotune.errors import RequestError, SpaceError, StudyInterruptedError
from autotune.measure.lock import device_lock
from autotune.model.inputs import InputSpec
from autotune.report.results import results_document, verify_results
from autotune.runtime import discovery
from autotune.study.request import StudyRequest
from autotune.study.space import OUTCLASSED
from autotune.study.study import run_study
from autotune.testing import FAULTS

TOY = f"{Path(__file__).parents[1]}/toy.py:make"


class Recorder:
    def __init__(self) -> None:
        self.events: list[tuple[str, dict]] = []

    def event(self, kind, **data):
        self.events.append((kind, data))

    def kinds(self):
        return [kind for kind, _ in self.events]


@pytest.fixture(scope="module")
def request_(misbehaving):
    return StudyRequest(
        name="toy",
        batch=2,
        device=discovery.cpu(),
        factory=TOY,
        inputs=(InputSpec(name="input", shape=("batch", 16)),),
        backends=("eager", "torchscript", misbehaving),
        trials=40,
        budget_s=300.0,
    )


@pytest.fixture(scope="module")
def finished(request_, tmp_path_factory):
    """One study run to the end of its space, everything that can go wrong included."""
    path = tmp_path_factory.mktemp("db") / "autotune.db"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("autotune.execute.executor.BUILD_TIMEOUT_S", 5.0)
        patch.setattr("autotune.study.built_trial.BUILD_TIMEOUT_S", 5.0)
        with Store.open(str(path)) as store:
            recorder = Recorder()
            yield run_study(request_, store, recorder), store, recorder, path


def test_every_fault_costs_one_trial_and_the_study_ends_with_a_plan(finished):
    outcome, store, _, _ = finished
    trials = store.trials.of_study(outcome.plan.evidence.study)
    failures = {
        str(trial.configuration["fault"]): (trial.failure.stage, trial.failure.kind)
        for trial in trials
        if trial.failure is not None and trial.configuration.backend == "misbehaving"
    }
    assert failures == {
        "error": ("build", "error"),
        "segfault": ("build", "crash"),
        "hang": ("build", "timeout"),
        "exit": ("build", "protocol"),
        "memory": ("build", "out_of_memory"),
        "log_flood": ("build", "log_flood"),
        "inaccurate": ("check", "inaccurate"),
        "constant": ("check", "inaccurate"),
        "non_finite": ("check", "non_finite"),
        "load_segfault": ("load", "crash"),
    }
    assert len(failures) == len(FAULTS) - 1 and outcome.trials["failed"] == len(failures)
    assert len({trial.configuration.digest for trial in trials}) == len(trials)
    complete = {trial.configuration for trial in trials if trial.state == "complete"}
    assert outcome.plan.configuration in complete and outcome.plan.signal_error < 0.02


class Holding(Recorder):
    """Has the device for itself from the first trial on, until the study has said for a while that it waits."""

    def __init__(self, uuid):
        super().__init__()
        self._lock, self._held = device_lock(uuid, True, purpose="another study"), False
        self.seconds = {}

    def event(self, kind, **data):
        super().event(kind, **data)
        self.seconds[kind] = time.monotonic()
        if kind == "trial_started" and not self._held:
            self._held = True
            self._lock.__enter__()
        if kind == "message" and "another study" in data["text"]:
            threading.Timer(6.0, self._lock.__exit__, (None, None, None)).start()


def test_a_study_says_for_whom_it_waits_and_pays_nothing_for_it(request_, tmp_path):
    progress = Holding(request_.device.uuid)
    with Store.open(str(tmp_path / "autotune.db")) as store:
        outcome = run_study(replace(request_, backends=("eager",), trials=1), store, progress)
        (row,) = store.studies.list(outcome.plan.name, outcome.plan.batch)
    (told,) = [data["text"] for kind, data in progress.events if kind == "message" and "another study" in data["text"]]
    assert told.startswith(f"waiting for {request_.device.name}: process {os.getpid()} of ")
    took_s = progress.seconds["trial_finished"] - progress.seconds["trial_started"]
    assert took_s > 6.0 and row.active_s < took_s - 5.0
    assert outcome.split["waiting"] > 5.0


def test_the_defaults_of_every_backend_come_first_and_enter_the_finals(finished):
    outcome, store, recorder, _ = finished
    started = [data["configuration"] for kind, data in recorder.events if kind == "trial_started"]
    assert {configuration.backend for configuration in started[:3]} == {"eager", "torchscript", "misbehaving"}
    finalists = outcome.plan.evidence.finalists
    timed = {trial.configuration: trial.ranked_by for trial in store.trials.of_study(outcome.plan.evidence.study)}
    best = min(taken for taken in timed.values() if taken is not None)
    in_reach = {default.backend for default in started[:3] if timed[default] <= OUTCLASSED * best}
    assert {finalist.backend for finalist in finalists if finalist.is_default} >= in_reach
    assert {finalist.backend for finalist in finalists} == {configuration.backend for configuration in started}
    assert sum(finalist.is_baseline for finalist in finalists) == 1


def test_the_plan_can_be_recomputed_from_its_raw_samples(finished):
    document = json.loads(json.dumps(results_document(finished[0], "autotune tune")))
    assert verify_results(document) == []
    document["plan"]["latency_ms"] *= 1.01
    (wrong,) = verify_results(document)
    assert wrong.startswith("plan latency_ms: ")


def test_the_time_split_adds_up(finished):
    outcome = finished[0]
    assert abs(sum(outcome.split.values()) - outcome.seconds) < 0.5
    assert min(outcome.split.values()) >= 0 and outcome.split["sampling"] > 0


def test_built_and_loaded_side_by_side_as_on_a_gpu_every_fault_still_costs_one_trial(request_, tmp_path):
    with pytest.MonkeyPatch.context() as patch, Store.open(str(tmp_path / "autotune.db")) as store:
        patch.setattr("autotune.execute.executor.BUILD_TIMEOUT_S", 5.0)
        patch.setattr("autotune.study.built_trial.BUILD_TIMEOUT_S", 5.0)
        patch.setattr("autotune.study.search.StudySearch.parallel", 4)
        patch.setattr("autotune.study.trial_timing.EARLY_LOADS", 2)
        patch.setattr("autotune.execute.finals._load_together", lambda drive: True)
        backends = ("eager", *request_.backends[2:])
        outcome = run_study(replace(request_, name="side-by-side", backends=backends), store, Recorder())
        trials = store.trials.of_study(outcome.plan.evidence.study)
    kinds = {str(t.configuration["fault"]): t.failure.kind for t in trials if t.failure is not None}
    assert len(kinds) == len(FAULTS) - 1 and (kinds["hang"], kinds["load_segfault"]) == ("timeout", "crash")
    timed = {trial.configuration for trial in trials if trial.state == "complete" and trial.latency_ms}
    assert len(timed) == sum(trial.state == "complete" for trial in trials) and outcome.plan.configuration in timed


def test_a_finished_study_answers_at_once_and_measures_nothing(finished, request_):
    outcome, store, _, _ = finished
    recorder = Recorder()
    again = run_study(request_, store, recorder)
    assert again.cached and again.plan.uid == outcome.plan.uid
    assert recorder.kinds() == ["finished"]
    assert again.as_dict()["plan"]["cached"] is True
    more = run_study(replace(request_, trials=400), store, recorder)
    assert more.cached, "an exhausted space has nothing more to try"


def test_another_study_of_the_same_workload_builds_nothing_twice(finished, request_):
    _, store, _, _ = finished
    recorder = Recorder()
    outcome = run_study(replace(request_, backends=("eager",), name="toy-again"), store, recorder)
    trials = store.trials.of_study(outcome.plan.evidence.study)
    first = {trial.configuration: trial.state for trial in store.trials.of_study(finished[0].plan.evidence.study)}
    started = {data["configuration"] for kind, data in recorder.events if kind == "trial_started"}
    assert all(first[configuration] == "pruned" for configuration in started), "only what was given up is tried again"
    assert {trial.configuration for trial in trials if trial.reused} == {t.configuration for t in trials} - started
    assert {finalist.backend for finalist in outcome.finalists} == {"eager"}


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"precisions": ("tf32",), "backends": ("torchscript",)}, SpaceError),
        ({"backends": ("no_such_backend",)}, RequestError),
        ({"serve_as": "onnx", "backends": ("eager",)}, SpaceError),
    ],
)
def test_a_request_that_leaves_nothing_to_try_writes_nothing(request_, tmp_path, change, error):
    with Store.open(str(tmp_path / "a.db")) as store:
        with pytest.raises(error):
            run_study(replace(request_, **change), store)
        assert store.studies.list() == []


SCRIPT = """
    import sys
    from autotune.database.store import Store
    from autotune.model.inputs import InputSpec
    from autotune.runtime import discovery
    from autotune.study.study import run_study
    from autotune.study.request import StudyRequest

    class Tell:
        def event(self, kind, **data):
            print(kind, flush=True)

    with Store.open(sys.argv[1]) as store:
        request = StudyRequest(
            name="toy", batch=2, device=discovery.cpu(), factory=sys.argv[2], backends=("eager", "torchscript"),
            inputs=(InputSpec(name="input", shape=("batch", 16)),), trials=4,
        )
        run_study(request, store, Tell())
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_study_goes_on_where_it_was(tmp_path, number):
    database = tmp_path / "autotune.db"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT), str(database), TOY]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        finished_trials = 0
        for line in process.stdout:
            finished_trials += line.startswith("trial_finished")
            if finished_trials == 2:
                process.send_signal(number)
                break
        process.communicate(timeout=60)
    assert process.returncode == (1 if number == signal.SIGTERM else -number)
    with Store.open(str(database)) as store:
        (study,) = store.studies.list("toy")
        before = {trial.uid: trial for trial in store.trials.of_study(study.uid)}
        assert sum(trial.state == "complete" for trial in before.values()) >= 2
        recorder = Recorder()
        request = StudyRequest(
            name="toy", batch=2, device=discovery.cpu(), factory=TOY, backends=("eager", "torchscript"),
            inputs=(InputSpec(name="input", shape=("batch", 16)),), trials=4,
        )  # fmt: skip
        run_study(request, store, recorder)
        after = store.trials.of_study(study.uid)
    complete = {uid for uid, trial in before.items() if trial.state == "complete"}
    started = [data["number"] for kind, data in recorder.events if kind == "trial_started"]
    assert not set(started) & {before[uid].number for uid in complete}, "a finished trial was measured twice"
    assert complete <= {trial.uid for trial in after} and all(trial.state != "running" for trial in after)


def test_a_study_that_is_stopped_while_its_model_is_captured_says_so(tmp_path, request_):
    with Store.open(str(tmp_path / "autotune.db")) as store:
        timer = threading.Timer(1.0, lambda: os.kill(os.getpid(), signal.SIGINT))
        timer.start()
        try:
            with pytest.raises(StudyInterruptedError, match="stopped"):
                run_study(replace(request_, name="stopped-at-once", backends=("eager", "torchscript")), store)
        finally:
            timer.cancel()  # where the study did not even begin, nothing would catch the signal
