from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from sqlalchemy import text

from autotune.database.plan_rows import StoredJson
from autotune.database.store import Store
from autotune.errors import DatabaseError, DeviceError
from autotune.records.device import Device, Toolchain
from autotune.records.identity import objective_content
from autotune.records.objective import Metric, Objective
from autotune.records.trial import Failure, Measurement
from tests.database.records import (
    CONDITIONS,
    DEVICE,
    OBJECTIVE,
    SAMPLES,
    TOOLCHAIN,
    begin,
    complete,
    configuration,
    digest,
    failed,
    folder_with,
    key,
    plan,
    tried,
    workload,
)
from tests.databases import Databases, drop_artifact

FINALS = Measurement(samples_ms=((2.0, 2.1), (2.2, 2.3)), device_samples_ms=((1.9,),))
STRICT = Objective(signal_error=1e-3)
LOOSE = Objective(signal_error=1e-1)
H100 = Device(kind="cuda", name="NVIDIA H100", uuid="GPU-2", capability=(9, 0), power_limit_w=700)


class Clock:
    """A second passes between any two looks at it."""

    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, tzinfo=timezone.utc)

    def __call__(self) -> datetime:
        self.now += timedelta(seconds=1)
        return self.now


@pytest.fixture
def store(tmp_path: Path, databases: Databases) -> Iterator[Store]:
    with Store.open(databases.url(tmp_path / "a.db"), clock=Clock()) as opened:
        yield opened


def stored(store: Store, tmp_path: Path, content: str) -> str:
    return store.artifacts.add(folder_with(tmp_path / "built" / content, {"model.so": content.encode()}))


def test_a_study_is_found_again_by_what_it_is(store: Store) -> None:
    first = begin(store)
    assert (first.name, first.batch, first.state, first.active_s) == ("resnet50", 1, "running", 0.0)
    assert first.device_class == DEVICE.device_class and first.objective == OBJECTIVE
    assert begin(store, settings={"trials": 90}) == first
    store.studies.describe(first.uid, {"trials": 90})
    assert begin(store) == store.studies.get(first.uid) == replace(first, settings={"trials": 90})
    assert begin(store, objective=Objective(integer_agreement=0.99, signal_error=0.02)).uid == first.uid
    others = [
        begin(store, workload=workload(batch=32)),
        begin(store, workload=workload(weights="other")),
        begin(store, device=H100),
        begin(store, objective=STRICT),
        begin(store, serve_as="onnx"),
        begin(store, space_digest=digest("other")),
        begin(store, seed=1),
    ]
    assert len({study.uid for study in [first, *others]}) == 8
    assert [study.uid for study in store.studies.list()] == [study.uid for study in [first, *others]]
    assert [study.uid for study in store.studies.list("resnet50", 32)] == [others[0].uid]
    assert store.studies.list("absent") == []
    assert store.studies.workload(first.uid) == workload()
    assert store.studies.device(H100.device_class) == H100


def test_search_time_adds_up_and_a_study_can_be_finished_and_reopened(store: Store) -> None:
    study = begin(store)
    store.studies.add_active_time(study.uid, 1.5)
    store.studies.add_active_time(study.uid, 2.0)
    store.studies.finish(study.uid, {"build_s": 3.0})
    found = store.studies.get(study.uid)
    assert (found.state, found.active_s, found.timings) == ("finished", 3.5, {"build_s": 3.0})
    assert begin(store).state == "finished"
    store.studies.reopen(study.uid)
    assert store.studies.get(study.uid) == replace(found, state="running")
    for seconds in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="number of seconds"):
            store.studies.add_active_time(study.uid, seconds)
    with pytest.raises(ValueError, match="no study"):
        store.studies.finish("absent", {})


def test_a_trial_is_written_before_its_build_and_finished_once(store: Store) -> None:
    study = begin(store)
    claimed = store.trials.claim(study.uid, configuration(), TOOLCHAIN.digest)
    assert (claimed.number, claimed.attempt, claimed.state) == (0, 1, "running")
    assert store.trials.of_study(study.uid) == [claimed]
    done = complete(claimed, artifact=digest("artifact"))
    store.trials.finish(done, {"screening": SAMPLES})
    store.trials.finish(done, {"screening": SAMPLES, "finals": FINALS})
    store.trials.add_measurement(done.uid, "finals", FINALS)
    assert store.trials.of_study(study.uid) == [done]
    assert store.trials.measurements(done.uid) == [SAMPLES, FINALS]
    assert store.trials.measurements(done.uid, "finals") == [FINALS]
    with pytest.raises(ValueError, match="keeps what it came to"):
        store.trials.finish(complete(claimed, latency_ms=0.5))
    with pytest.raises(ValueError, match="still running"):
        store.trials.finish(claimed)
    with pytest.raises(ValueError, match="tried"):
        store.trials.claim(study.uid, configuration(), TOOLCHAIN.digest)
    assert store.trials.get(done.uid) == done


def test_numbers_count_up_and_an_upgrade_of_the_toolchain_is_another_trial(store: Store) -> None:
    study = begin(store)
    numbers = [tried(store, study, level).number for level in range(3)]
    newer = Toolchain.of({"torch": "2.14.0"})
    assert [*numbers, store.trials.claim(study.uid, configuration(0), newer.digest).number] == [0, 1, 2, 3]
    assert begin(store, seed=1).uid != study.uid
    assert tried(store, begin(store, seed=1)).number == 0


def test_a_trial_that_was_cut_off_goes_on_under_its_number(store: Store) -> None:
    study = begin(store)
    lost = store.trials.claim(study.uid, configuration(), TOOLCHAIN.digest)
    newer = Toolchain.of({"torch": "2.14.0"}).digest
    again = store.trials.claim(study.uid, configuration(), TOOLCHAIN.digest)
    upgraded = store.trials.claim(study.uid, configuration(), newer)
    assert again == replace(lost, attempt=2)
    assert upgraded == replace(lost, attempt=3, toolchain=newer)
    for stale in (lost, again):
        with pytest.raises(ValueError, match="taken over"):
            store.trials.finish(complete(stale))
    store.trials.finish(complete(upgraded))
    assert [(trial.number, trial.state) for trial in store.trials.of_study(study.uid)] == [(0, "complete")]


@pytest.mark.parametrize("state", ["pruned", "infeasible", "failed"])
def test_every_end_of_a_trial_is_kept(store: Store, state: str) -> None:
    study = begin(store)
    claimed = store.trials.claim(study.uid, configuration(), TOOLCHAIN.digest)
    failure = None if state == "pruned" else Failure(stage="check", kind="inaccurate", detail="0.3 > 0.02", figure=0.3)
    ended = replace(claimed, state=state, failure=failure, signal_error=0.3)  # type: ignore[arg-type]
    store.trials.finish(ended)
    assert store.trials.of_study(study.uid) == [ended]
    assert store.trials.of_study(study.uid, failed=True) == ([ended] if state == "failed" else [])


@pytest.mark.parametrize("figure", [float("inf"), float("-inf"), float("nan"), 0.5, None])
def test_a_figure_that_is_no_number_is_kept_in_the_failure(store: Store, figure: float | None) -> None:
    study = begin(store)
    claimed = store.trials.claim(study.uid, configuration(), TOOLCHAIN.digest)
    ended = failed(claimed, stage="check", kind="non_finite", figure=figure, log_tail="a\x00b\udcff'; DROP TABLE trial")
    store.trials.finish(replace(ended, signal_error=figure))
    (found,) = store.trials.of_study(study.uid)
    assert found.failure is not None and repr(found.failure) == repr(ended.failure)
    assert found.signal_error == (0.5 if figure == 0.5 else None)


@pytest.mark.parametrize(
    "changes",
    [
        {"latency_ms": float("inf")},
        {"state": "pruned", "latency_ms": float("nan")},
        {"state": "pruned", "latency_ms": -1.0},
        {"state": "pruned", "latency_ms": 0.0},
        {"build_s": -1.0},
        {"build_s": float("inf")},
        {"signal_error": float("nan")},
        {"artifact": "../../x"},
    ],
)
def test_figures_that_cannot_be_true_are_refused(store: Store, changes: dict[str, object]) -> None:
    study = begin(store)
    claimed = store.trials.claim(study.uid, configuration(), TOOLCHAIN.digest)
    with pytest.raises(ValueError, match=r"trial 0|latency"):
        store.trials.finish(replace(complete(claimed), **changes), {"screening": SAMPLES})  # type: ignore[arg-type]
    assert store.trials.of_study(study.uid) == [claimed]
    assert store.trials.measurements(claimed.uid) == []


@pytest.mark.parametrize("value", ["-1", "0", "1e300", "NULL"])
def test_the_database_itself_refuses_a_false_latency(store: Store, value: str) -> None:
    tried(store, begin(store))
    store.plans.promote(plan())
    for table in ("trial", "plan"):
        with pytest.raises(DatabaseError, match="constraint"), store.transactions.writing() as session:
            session.execute(text(f"UPDATE {table} SET latency_ms = {value}"))


def test_a_name_is_only_ever_a_name(store: Store) -> None:
    name = "x'; DROP TABLE study; --\n\"\\"
    study = begin(store, name)
    assert store.studies.list(name) == [study]
    store.plans.promote(plan(name=name))
    assert [found.name for found in store.plans.list(name)] == [name]


def test_a_configuration_is_answered_from_an_earlier_study(store: Store) -> None:
    first, second = begin(store), begin(store, seed=1)
    at = (first.identity, TOOLCHAIN.digest)
    claimed = store.trials.claim(first.uid, configuration(0), TOOLCHAIN.digest)
    assert store.trials.earlier(*at, configuration(0)) is None
    store.trials.finish(failed(claimed, kind="timeout"))
    assert store.trials.earlier(*at, configuration(0)) is None
    broken = failed(store.trials.claim(second.uid, configuration(0), TOOLCHAIN.digest), kind="error")
    store.trials.finish(broken)
    assert store.trials.earlier(*at, configuration(0)) == broken
    found = tried(store, begin(store, seed=2), 0)
    assert store.trials.earlier(*at, configuration(0)) == found
    assert store.trials.measurements(found.uid) == [SAMPLES]
    for change in ({"structure": "other"}, {"weights": "other"}, {"device_class": "other"}, {"objective": STRICT}):
        assert store.trials.earlier(replace(first.identity, **change), TOOLCHAIN.digest, configuration(0)) is None  # type: ignore[arg-type]
    for part in ("inputs", "measuring"):
        conditions = replace(CONDITIONS, **{part: "other"})
        other = replace(first.identity, conditions=conditions)
        assert store.trials.earlier(other, TOOLCHAIN.digest, configuration(0)) is None
    assert store.trials.earlier(replace(first.identity, conditions=None), TOOLCHAIN.digest, configuration(0)) is None
    assert store.trials.earlier(first.identity, "other", configuration(0)) is None
    assert store.trials.earlier(*at, configuration(0), kernels=digest("tuned")) is None
    unlike = replace(first.identity, name="another", serve_as="onnx", space="another", seed=7)
    assert store.trials.earlier(unlike, TOOLCHAIN.digest, configuration(0)) == found
    assert store.trials.earlier(*at, configuration(1)) is None


def test_a_trial_without_a_result_is_withdrawn_and_its_configuration_can_be_tried_again(store: Store) -> None:
    study = begin(store)
    finished = tried(store, study, 0)
    claimed = store.trials.claim(study.uid, configuration(1), TOOLCHAIN.digest)
    store.trials.withdraw(replace(claimed, attempt=2))  # of an attempt that is another coordinator's
    assert store.trials.of_study(study.uid) == [finished, claimed]
    for trial in (claimed, finished):  # a result is never withdrawn
        store.trials.withdraw(trial)
    assert store.trials.of_study(study.uid) == [finished]
    again = store.trials.claim(study.uid, configuration(1), TOOLCHAIN.digest)
    assert (again.number, again.attempt, again.state) == (claimed.number, 1, "running") and again.uid != claimed.uid


def test_losers_lose_their_artifacts_and_keep_their_rows(store: Store, tmp_path: Path) -> None:
    study = begin(store)
    digests = [stored(store, tmp_path, content) for content in ("won", "lost", "shared", "promoted")]
    won, lost, shared, promoted = (tried(store, study, i, artifact=each) for i, each in enumerate(digests))
    elsewhere = tried(store, begin(store, seed=1), 2, artifact=digests[2])
    store.plans.promote(plan(artifact=digests[3]))
    store.trials.drop_losers(study.uid, keep={won.uid})
    assert [trial.artifact for trial in store.trials.of_study(study.uid)] == [digests[0], None, None, None]
    assert store.trials.of_study(study.uid)[1] == replace(lost, artifact=None)
    assert store.artifacts.digests() == sorted([digests[0], digests[2], digests[3]])
    drop_artifact(store, elsewhere.uid)
    assert not store.artifacts.has(digests[2])
    store.trials.keep_artifact(shared.uid, stored(store, tmp_path, "shared"), kernels=digest("tuned"))
    assert store.trials.get(shared.uid) == replace(shared, kernels=digest("tuned"))
    store.trials.finish(promoted)
    assert store.trials.get(promoted.uid).artifact is None


def test_a_plan_is_kept_whole_and_replaced_by_its_key(store: Store, tmp_path: Path) -> None:
    first, second = (stored(store, tmp_path, content) for content in ("first", "second"))
    store.plans.promote(plan("p1", artifact=first))
    assert store.plans.get("p1") == plan("p1", artifact=first)
    assert store.plans.get("p1").as_dict() == plan("p1", artifact=first).as_dict()
    store.plans.promote(plan("p2", artifact=second, latency_ms=3.0, created=""))
    assert [found.uid for found in store.plans.list()] == ["p2"]
    assert store.plans.get("p2").created.startswith("2026-01-01T00:00:0")
    assert store.artifacts.digests() == [second]
    with pytest.raises(ValueError, match="no plan"):
        store.plans.get("p1")
    for changes in ({"objective": STRICT}, {"serve_as": "onnx"}, {"weights": digest("x")}, {"device": H100}):
        store.plans.promote(plan(f"p-{next(iter(changes))}", **changes))
    assert len(store.plans.list()) == 5
    for change in ({"artifact": "../x"}, {"uid": ""}, {"created": "yesterday"}, {"created": "2026-01-01T00:00:00"}):
        with pytest.raises(ValueError, match=r"names no artifact|a uid has|isoformat|time zone"):
            store.plans.promote(replace(plan("p9"), **change))  # type: ignore[arg-type]
    assert len(store.plans.list()) == 5


def test_a_looser_plan_never_serves_a_stricter_caller(store: Store) -> None:
    def found(objective: Objective, **changes: str) -> str | None:
        answer = store.plans.find(key(objective=objective, **changes))
        return answer.uid if answer else None

    assert found(LOOSE) is None
    store.plans.promote(plan("loose", objective=LOOSE, latency_ms=0.5))
    assert (found(LOOSE), found(OBJECTIVE), found(STRICT)) == ("loose", None, None)
    store.plans.promote(plan("default", latency_ms=1.0))
    store.plans.promote(plan("strict", objective=STRICT, latency_ms=2.0))
    assert (found(LOOSE), found(OBJECTIVE), found(STRICT)) == ("loose", "default", "strict")
    store.plans.promote(plan("strict", objective=STRICT, latency_ms=0.9))
    assert (found(LOOSE), found(OBJECTIVE), found(STRICT)) == ("loose", "strict", "strict")
    gated = Objective(metrics=(Metric(function="m:f", at_most=1.0),))
    assert found(gated) is None
    assert found(OBJECTIVE, serve_as="onnx") is None
    store.plans.promote(plan("onnx", serve_as="onnx", latency_ms=0.8))
    assert (found(OBJECTIVE, serve_as="onnx"), found(OBJECTIVE)) == ("onnx", "onnx")
    assert store.plans.find(key(device_class=H100.device_class, objective=LOOSE)) is None
    assert store.plans.find(key(structure=digest("other"), objective=LOOSE)) is None


def test_a_plan_for_these_weights_comes_before_a_faster_one_for_others(store: Store) -> None:
    store.plans.promote(plan("other", weights=digest("other"), latency_ms=0.5))
    answer = store.plans.find(key(), weights=digest("w"))
    assert answer is not None and answer.uid == "other"
    store.plans.promote(plan("own", latency_ms=1.0))
    for weights, uid in ((digest("w"), "own"), (digest("other"), "other"), (digest("third"), "other"), (None, "other")):
        answer = store.plans.find(key(), weights=weights)
        assert answer is not None and answer.uid == uid


def test_a_rebuilt_artifact_joins_its_plan(store: Store, tmp_path: Path) -> None:
    first, second, third = (stored(store, tmp_path, content) for content in "abc")
    store.plans.promote(plan("p1", artifact=first))
    newer = Toolchain.of({"torch": "2.14.0"})
    changed = store.plans.replace_artifact("p1", second, digest("w"), newer)
    assert changed == plan("p1", artifact=second, toolchain=newer) == store.plans.get("p1")
    assert store.artifacts.digests() == sorted([second, third])
    copy = store.plans.replace_artifact("p1", third, digest("fine-tuned"), newer)
    assert copy.uid != "p1" and copy == replace(changed, uid=copy.uid, artifact=third, weights=digest("fine-tuned"))
    assert {found.uid for found in store.plans.list()} == {"p1", copy.uid}
    assert store.plans.replace_artifact("p1", second, digest("w"), newer) == changed
    assert store.artifacts.digests() == sorted([second, third])


def test_plans_of_one_model_in_two_forms_stand_beside_each_other(store: Store, tmp_path: Path) -> None:
    first, second = (stored(store, tmp_path, content) for content in "ab")
    store.plans.promote(plan("old", artifact=first))
    renewed = store.plans.replace_artifact("old", second, digest("w"), TOOLCHAIN, form="one", fingerprint=2)
    assert renewed.uid == "old" and store.plans.list() == [renewed], "a form that was unknown is found out in place"
    store.plans.promote(plan("fast", form="two", latency_ms=0.5))
    assert [store.plans.find(key(form=form), digest("w")).uid for form in ("one", "two", "")] == ["old", "fast", "fast"]  # type: ignore[union-attr]
    beside = store.plans.replace_artifact("fast", second, digest("w"), TOOLCHAIN, form="three")
    assert beside.uid not in ("old", "fast") and len(store.plans.list()) == 3


def test_the_nearest_plans_of_a_miss_come_with_what_differs(store: Store) -> None:
    store.plans.promote(plan("loose", objective=LOOSE))
    store.plans.promote(plan("elsewhere", device=H100, objective=LOOSE, serve_as="any"))
    store.plans.promote(plan("former", structure=digest("former"), name="another"))
    store.plans.promote(plan("stranger", structure=digest("stranger"), name="stranger"))
    asked = key(serve_as="onnx")
    near = store.plans.nearest(asked, "resnet50", digest("former"))
    assert [found.uid for found in near] == ["former", "loose", "elsewhere"]
    differences = [(part, wanted, found) for part, wanted, found in near[2].key.differences(asked)]
    assert ("device class", DEVICE.device_class, H100.device_class) in differences
    assert ("constraint signal_error", "0.02", "0.1") in differences
    assert ("serving format", "onnx", "any") in differences


def test_plans_are_listed_by_any_unambiguous_part_of_a_device(store: Store) -> None:
    nvl = replace(DEVICE, name="NVIDIA H200 NVL")
    for uid, device in (("a", DEVICE), ("b", H100), ("c", nvl), ("d", replace(DEVICE, power_limit_w=600))):
        store.plans.promote(plan(uid, device=device))

    def listed(device: str) -> set[str]:
        return {found.uid for found in store.plans.list(device=device)}

    assert listed("h100") == listed("NVIDIA H100") == listed(H100.device_class) == {"b"}
    assert listed("nvidia-h200") == {"a", "d"} and listed("nvl") == {"c"}
    assert listed(DEVICE.device_class) == {"a"}
    assert listed("a100") == set() == listed("")
    for part in ("h200", "nvidia"):
        with pytest.raises(DeviceError, match="nvidia-h200, nvidia-h200-nvl"):
            store.plans.list(device=part)
    assert [found.batch for found in store.plans.list("resnet50", 1, "h100")] == [1]
    assert store.plans.list("resnet50", 32) == store.plans.list("absent") == []


def test_equal_demands_are_one_objective() -> None:
    one, other = Metric(function="m:f", at_most=1.0), Metric(function="m:g", at_least=0.5)
    left = Objective(metrics=(one, other), integer_agreement=1)
    right = Objective(metrics=(other, one), integer_agreement=1.0)
    assert objective_content(left) == objective_content(right)
    assert objective_content(left) != objective_content(replace(right, integer_agreement=0.99))


def test_evidence_is_a_mapping_like_any_other() -> None:
    stored = StoredJson('{"a":[1,2]}', "p1")
    assert stored == {"a": [1, 2]} and len(stored) == 1 and stored["a"] == [1, 2] and repr(stored) == "{'a': [1, 2]}"


def test_an_error_of_the_database_is_told_without_a_traceback(store: Store, tmp_path: Path) -> None:
    begin(store)
    with store.transactions.writing() as session:
        session.execute(text("ALTER TABLE plan RENAME TO mislaid"))
    with pytest.raises(DatabaseError, match=r"no such table|does not exist"):
        store.plans.list()
    with pytest.raises(DatabaseError, match=r"no such table|does not exist"):
        store.plans.promote(plan())


@pytest.mark.parametrize("column", ["record", "evidence", "objective"])
@pytest.mark.parametrize("content", ["{", "[1]", "7"])
def test_a_plan_whose_column_is_no_json_is_told(store: Store, column: str, content: str) -> None:
    store.plans.promote(plan("p7"))
    with store.transactions.writing() as session:
        session.execute(text(f"UPDATE plan SET {column} = :content"), {"content": content})
    reads = {
        "record": (store.plans.list, lambda: store.plans.get("p7"), lambda: store.plans.find(key())),
        "evidence": (lambda: dict(store.plans.list()[0].evidence),),
        "objective": (lambda: store.plans.find(key()),),
    }
    for read in reads[column]:
        with pytest.raises(
            DatabaseError, match=r"Plan p7 .*cannot be read\n.*found.*\n.*\n  run next: autotune db check"
        ):
            read()
