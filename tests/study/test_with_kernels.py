"""Studies of a backend with tuned kernels, by real workers: every build is handed the same, wherever it is made."""

import io
import json
import shutil
import textwrap
from dataclasses import replace

import pytest
import torch

from autotune import load, registry
from autotune.database.exchange import export_studies, merge_file
from autotune.database.store import Store
from autotune.errors import WorkError
from autotune.execute.executor import Executor
from autotune.kernel import KernelToolchains
from autotune.model.factory import make_module
from autotune.model.inputs import InputSpec
from autotune.records.kernel_trial import KernelTrial
from autotune.runtime import toolchain as versions
from autotune.runtime.artifact import read_record
from autotune.study.bench import bench_plan
from autotune.study.finals import StudyFinals
from autotune.study.rebuild import StudyRebuild
from autotune.study.reproduce import reproduce
from autotune.study.request import StudyRequest
from autotune.study.study import run_study
from tests.databases import drop_artifact
from tests.toy_tuned import BUILDS, FAST, PROBLEM, SLOW

MODEL = """
    import time, torch

    class Slow(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(12, 6)

        def forward(self, input):
            time.sleep(0.02)  # in no graph, so that a graph is faster even on a busy host
            return SCALE * self.layer(input)

    def make():
        torch.manual_seed({seed})
        return Slow()

    SCALE = 1.0
"""


class Events:
    """Keeps what a study says; ``then`` is called with each trial that has finished."""

    def __init__(self, then=lambda trial: None):
        self.kinds, self.messages, self._then = [], [], then

    def event(self, kind, **data):
        self.kinds.append(kind)
        if "text" in data:
            self.messages.append(data["text"])
        if kind == "trial_finished":
            self._then(data["trial"])


class Place:
    """A model file, a database, and the builds of the toy backend; the model may lie in a folder of its own."""

    def __init__(self, folder, device, monkeypatch, model=None):
        self.folder, self.device, self.model = folder, device, model or folder / "model.py"
        self._log = folder / "builds"
        monkeypatch.setenv(BUILDS, str(self._log))
        monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        self.weights(0)

    def weights(self, seed):
        self.model.write_text(textwrap.dedent(MODEL).replace("{seed}", str(seed)))

    def request(self, **changes):
        values = {
            "name": "tuned", "batch": 2, "device": self.device, "factory": f"{self.model}:make",
            "inputs": (InputSpec(name="input", shape=("batch", 12)),), "backends": ("toytuned",), "trials": 2,
            "budget_s": 120.0,
        }  # fmt: skip
        return StudyRequest(**{**values, **changes})

    def store(self, name="autotune.db"):
        return Store.open(str(self.folder / name))

    def learn(self, store, kernel, us=0.001):
        """Let a database know a kernel that is faster than every other."""
        toolchain = KernelToolchains(registry.kernels("toytuned"), versions.current(self.device)).digest
        store.kernels.add(
            [
                KernelTrial(
                    problem=PROBLEM, device_class=self.device.device_class, toolchain=toolchain, configuration=kernel,
                    state="complete", samples_us=(us,),
                )
            ]
        )  # fmt: skip

    def builds(self, what="kernels"):
        """The notes of all builds so far, in their order."""
        return [json.loads(line)[what] for line in self._log.read_text().splitlines()] if self._log.exists() else []


@pytest.fixture
def place(tmp_path, cpu, monkeypatch, toytuned):
    return Place(tmp_path, cpu, monkeypatch)


@pytest.fixture(scope="module")
def tuned_once(tmp_path_factory, cpu, toytuned):
    """The folder of a place whose study is finished."""
    with pytest.MonkeyPatch.context() as patch:
        place = Place(tmp_path_factory.mktemp("tuned"), cpu, patch)
        with place.store() as store:
            run_study(place.request(), store, Events())
    return place.folder


@pytest.fixture
def tuned(tuned_once, tmp_path, cpu, monkeypatch):
    """A copy of that place; the study names its model by its path, so the model stays in the first folder."""
    shutil.copytree(tuned_once, tmp_path, dirs_exist_ok=True)
    return Place(tmp_path, cpu, monkeypatch, model=tuned_once / "model.py")


@pytest.fixture
def not_alone(monkeypatch):
    """Plans are not timed without their rivals, which only ``autotune bench`` needs."""
    for kind in (StudyFinals, StudyRebuild):
        monkeypatch.setattr(kind, "_time_alone", lambda study, plan: None)


def toy_trial(store, plan):
    """The trial of the toy backend's default in the study that found a plan."""
    (trial,) = (t for t in store.trials.of_study(plan.evidence.study) if not t.configuration.get("slow_build", True))
    return trial


def as_kept(plan):
    """A plan as a database returns it."""
    return {key: value for key, value in json.loads(json.dumps(plan.as_dict())).items() if key != "created"}


@pytest.mark.usefixtures("not_alone")
def test_search_finals_rebuild_reproduction_and_a_merged_database_hand_builds_the_same_kernels(place):
    with place.store() as store:
        events = Events(lambda trial: drop_artifact(store, trial.uid))  # so that the finals build it again
        plan = run_study(place.request(), store, events).plan
        assert plan.configuration.backend == "toytuned" and plan.status == "promoted"
        handed = plan.kernels
        assert len(handed) == 64 and place.builds() == [handed, handed]
        assert read_record(store.artifacts.open(plan.artifact)).kernels == toy_trial(store, plan).kernels == handed

        place.weights(1)
        events = Events()
        rebuilt = run_study(place.request(), store, events)
        assert rebuilt.plan.weights != plan.weights
        assert not {"trial_started", "finals_started"} & set(events.kinds)
        assert rebuilt.plan.kernels == handed and place.builds() == [handed] * 3
        assert read_record(store.artifacts.open(rebuilt.plan.artifact)).kernels == handed
        changed = ("uid", "weights", "artifact", "signal_error")
        assert as_kept(rebuilt.plan) == as_kept(plan) | {key: getattr(rebuilt.plan, key) for key in changed}

        row = store.studies.get(plan.evidence.study)
        found = reproduce(row, toy_trial(store, plan), store, place.device, io.StringIO())
        assert found.same and found.notes == ("the weights of the model have changed since the trial",)
        assert place.builds() == [handed] * 4
        export_studies(store, ["tuned"], place.folder / "tuned.zip")

    place.weights(2)
    with place.store("other.db") as other:
        merge_file(other, place.folder / "tuned.zip")
        events = Events()
        again = run_study(place.request(), other, events)
        assert not {"trial_started", "finals_started"} & set(events.kinds)
        assert again.plan.kernels == handed and again.plan.latency_ms == plan.latency_ms
        assert read_record(other.artifacts.open(again.plan.artifact)).kernels == handed
    assert place.builds() == [handed] * 5 and len(set(place.builds("weights"))) == 3


def test_a_plan_that_is_rebuilt_with_better_kernels_is_timed_again_and_its_figures_are_of_what_runs(tuned):
    with tuned.store() as store:
        (plan,) = store.plans.list()
        tuned.learn(store, FAST)
        tuned.weights(1)
        events = Events()
        rebuilt = run_study(tuned.request(), store, events)
        assert "finals_started" in events.kinds and "trial_started" not in events.kinds
        now = rebuilt.plan
        assert plan.kernels != now.kernels == tuned.builds()[-1]
        assert now.latency_ms < 0.6 * plan.latency_ms and now.speedup > plan.speedup
        assert now.status == "promoted" and now.evidence.study == plan.evidence.study
        entries = {entry.uid: entry for entry in now.evidence.finalists}
        assert len(entries) == 2 and entries[now.evidence.trial].latency_ms == now.latency_ms
        (baseline,) = (entry for entry in entries.values() if entry.is_baseline)
        assert baseline.latency_ms == now.baseline_latency_ms and baseline.backend == "eager"
        assert as_kept(store.plans.get(plan.uid)) == as_kept(plan), "the plan for the first weights is what it was"
        for each in (plan, now):  # each is held against what was timed with its own kernels
            assert 0.4 < bench_plan(each, store, tuned.device).drift.ratio < 2.5

        trial = toy_trial(store, plan)
        found = reproduce(store.studies.get(plan.evidence.study), trial, store, tuned.device, io.StringIO())
        assert found.notes[-1].startswith("the tuned kernels in the database have changed")
        assert found.latency_ms < trial.latency_ms


@pytest.mark.usefixtures("not_alone")
def test_a_plan_that_is_loaded_for_other_weights_after_better_kernels_became_known_is_timed_again(tuned):
    with tuned.store() as store:
        (plan,) = store.plans.list()
        tuned.learn(store, FAST)
        row = store.studies.get(plan.evidence.study)
    tuned.weights(1)
    model, example = make_module(row.settings["factory"], row.seed), torch.linspace(-1.0, 1.0, 24).reshape(2, 12)
    loaded = load(model, (example,), db=str(tuned.folder / "autotune.db"), device="cpu")
    assert torch.allclose(loaded(example), model(example), atol=1e-5)
    with tuned.store() as store:
        old, new = sorted(store.plans.list("tuned"), key=lambda each: each.weights != plan.weights)
        assert as_kept(old) == as_kept(plan)
        assert new.kernels == tuned.builds()[-1] != old.kernels and new.latency_ms < 0.6 * old.latency_ms


@pytest.mark.usefixtures("not_alone")
def test_a_plan_that_does_not_beat_the_baseline_with_the_kernels_of_now_does_not_hold(tuned):
    with tuned.store() as store:
        (plan,) = store.plans.list()
        tuned.learn(store, SLOW)
        tuned.weights(1)
        events = Events()
        searched = run_study(tuned.request(), store, events)
        assert any("does not beat the baseline" in text for text in events.messages)
        assert "trial_started" in events.kinds and searched.plan.status == "baseline"
        assert as_kept(store.plans.get(plan.uid)) == as_kept(plan)


@pytest.mark.usefixtures("not_alone")
def test_a_finalist_that_fails_the_gate_when_it_is_built_again_misses_the_finals(place):
    def spoil(trial):
        if trial.configuration.backend == "toytuned":
            drop_artifact(store, trial.uid)
            place.folder.joinpath("wrong").touch()

    with place.store() as store:
        events = Events(spoil)
        plan = run_study(place.request(), store, events).plan
        assert plan.status == "baseline" and plan.artifact is not None
        (missed,) = (text for text in events.messages if "is left out of the finals" in text)
        assert "check: inaccurate" in missed
        assert toy_trial(store, plan).artifact is None
        assert not list((store.artifacts.root / "temporary").iterdir())


@pytest.mark.usefixtures("not_alone")
def test_a_baseline_that_fails_when_it_is_built_again_ends_the_study_without_blaming_the_installation(place):
    def spoil(trial):
        drop_artifact(store, trial.uid)
        if trial.configuration.backend == "eager":
            place.model.write_text("raise RuntimeError('gone')")

    with place.store() as store:
        with pytest.raises(WorkError) as raised:
            run_study(place.request(), store, Events(spoil))
        assert "the baseline was built again for the finals" in str(raised.value)
        assert "doctor" not in str(raised.value)


@pytest.mark.usefixtures("not_alone")
def test_a_trial_of_another_study_is_taken_over_only_if_its_kernels_are_those_of_now(tuned):
    with tuned.store() as store:
        (first,) = store.plans.list()
        taken = run_study(tuned.request(name="again"), store, Events()).plan
        assert toy_trial(store, taken).reused and toy_trial(store, taken).kernels == first.kernels
        tuned.learn(store, FAST)
        fresh = run_study(tuned.request(name="third"), store, Events()).plan
        assert not toy_trial(store, fresh).reused and fresh.kernels not in ("", first.kernels)


@pytest.mark.usefixtures("not_alone")
@pytest.mark.parametrize("overlaps", [False, True])
def test_side_by_side_as_on_a_gpu_kernels_are_tuned_after_or_beside_the_candidates_without_them(
    overlaps, place, monkeypatch
):
    monkeypatch.setattr("autotune.study.search.StudySearch.parallel", 4)
    monkeypatch.setattr("autotune.study.search.StudySearch._overlaps", overlaps)
    events = Events()
    with place.store() as store:
        outcome = run_study(place.request(trials=3), store, events)
        trials = store.trials.of_study(outcome.plan.evidence.study)
    assert all(trial.state == "complete" for trial in trials) and len(trials) == 3
    first = min(index for index, kind in enumerate(events.kinds) if kind == "kernel_tried")
    assert events.kinds.count("trial_finished") == 3
    if not overlaps:
        assert events.kinds[:first].count("trial_finished") == 2, "the baseline at each number of threads"
    assert all(place.builds("kernels")), "each build of the toy was handed kernels"


@pytest.mark.usefixtures("not_alone")
def test_what_was_left_out_for_want_of_time_is_tried_when_the_study_is_given_more(place, monkeypatch):
    build = Executor.build

    def with_little_time(self, configurations, workers, timeout_s=None, **values):
        slow = any(configuration.get("slow_build", False) for configuration in configurations)
        return build(self, configurations, workers, 1.0 if slow else timeout_s, **values)

    def slow_trials():
        (row,) = store.studies.list("tuned")
        return [trial for trial in store.trials.of_study(row.uid) if trial.configuration.get("slow_build", False)]

    request = place.request(trials=50, tune_kernels=False)
    with place.store() as store:
        with monkeypatch.context() as hurried:
            hurried.setattr(Executor, "build", with_little_time)
            events = Events()
            first = run_study(request, store, events)
        (left_out,) = (text for text in events.messages if "left out" in text)
        assert "slow_build=True" in left_out and "larger budget" in left_out
        assert slow_trials() == [] and True not in place.builds("slow_build")
        (row,) = store.studies.list("tuned")
        assert row.timings["asked"]["exhausted"] is False and not first.trials["pruned"] and not first.trials["failed"]
        more = run_study(replace(request, budget_s=request.budget_s + 60.0), store, Events())
        (slow,) = slow_trials()
        assert not more.cached and slow.state == "complete" and place.builds("slow_build").count(True) == 1
        (row,) = store.studies.list("tuned")
        assert row.timings["asked"]["exhausted"] is True


@pytest.mark.usefixtures("not_alone")
def test_what_would_build_longer_than_the_budget_lasts_is_left_for_more_budget(place, monkeypatch):
    monkeypatch.setattr(
        "autotune.records.search_space.SearchSpace.build_cost", lambda space, configuration: costs(configuration)
    )

    def costs(configuration):
        return 1e6 if configuration.get("slow_build", False) else 0.0

    request = place.request(trials=50, tune_kernels=False)
    with place.store() as store:
        run_study(request, store, Events())
        (row,) = store.studies.list("tuned")
        assert row.timings["asked"]["exhausted"] is False and True not in place.builds("slow_build")
        run_study(replace(request, budget_s=request.budget_s + 1e9), store, Events())
        assert place.builds("slow_build").count(True) == 1
