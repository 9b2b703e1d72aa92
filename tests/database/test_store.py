from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from sqlalchemy import text

from autotune.database.plan_rows import StoredEvidence
from autotune.database.store import Store
from autotune.errors import DatabaseError, DeviceError
from autotune.records.device import Device, Toolchain
from autotune.records.evidence import PlanEvidence
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
    store.describe_study(first.uid, {"trials": 90})
    assert begin(store) == store.study(first.uid) == replace(first, settings={"trials": 90})
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
    assert [study.uid for study in store.studies()] == [study.uid for study in [first, *others]]
    assert [study.uid for study in store.studies("resnet50", 32)] == [others[0].uid]
    assert store.studies("absent") == []
    assert store.workload(first.uid) == workload()
    assert store.device(H100.device_class) == H100


def test_search_time_adds_up_and_a_study_can_be_finished_and_reopened(store: Store) -> None:
    study = begin(store)
    store.add_active_time(study.uid, 1.5)
    store.add_active_time(study.uid, 2.0)
    store.finish_study(study.uid, {"build_s": 3.0})
    found = store.study(study.uid)
    assert (found.state, found.active_s, found.timings) == ("finished", 3.5, {"build_s": 3.0})
    assert begin(store).state == "finished"
    store.reopen_study(study.uid)
    assert store.study(study.uid) == replace(found, state="running")
    for seconds in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="number of seconds"):
            store.add_active_time(study.uid, seconds)
    with pytest.raises(ValueError, match="no study"):
        store.finish_study("absent", {})


def test_a_trial_is_written_before_its_build_and_finished_once(store: Store) -> None:
    study = begin(store)
    claimed = store.claim_trial(study.uid, configuration(), TOOLCHAIN.digest)
    assert (claimed.number, claimed.attempt, claimed.state) == (0, 1, "running")
    assert store.trials(study.uid) == [claimed]
    done = complete(claimed, artifact=digest("artifact"))
    store.finish_trial(done, {"screening": SAMPLES})
    store.finish_trial(done, {"screening": SAMPLES, "finals": FINALS})
    store.add_measurement(done.uid, "finals", FINALS)
    assert store.trials(study.uid) == [done]
    assert store.measurements(done.uid) == [SAMPLES, FINALS]
    assert store.measurements(done.uid, "finals") == [FINALS]
    with pytest.raises(ValueError, match="keeps what it came to"):
        store.finish_trial(complete(claimed, latency_ms=0.5))
    with pytest.raises(ValueError, match="still running"):
        store.finish_trial(claimed)
    with pytest.raises(ValueError, match="tried"):
        store.claim_trial(study.uid, configuration(), TOOLCHAIN.digest)
    assert store.trial(done.uid) == done


def test_numbers_count_up_and_an_upgrade_of_the_toolchain_is_another_trial(store: Store) -> None:
    study = begin(store)
    numbers = [tried(store, study, level).number for level in range(3)]
    newer = Toolchain.of({"torch": "2.14.0"})
    assert [*numbers, store.claim_trial(study.uid, configuration(0), newer.digest).number] == [0, 1, 2, 3]
    assert begin(store, seed=1).uid != study.uid
    assert tried(store, begin(store, seed=1)).number == 0


def test_a_trial_that_was_cut_off_goes_on_under_its_number(store: Store) -> None:
    study = begin(store)
    lost = store.claim_trial(study.uid, configuration(), TOOLCHAIN.digest)
    newer = Toolchain.of({"torch": "2.14.0"}).digest
    again = store.claim_trial(study.uid, configuration(), TOOLCHAIN.digest)
    upgraded = store.claim_trial(study.uid, configuration(), newer)
    assert again == replace(lost, attempt=2)
    assert upgraded == replace(lost, attempt=3, toolchain=newer)
    for stale in (lost, again):
        with pytest.raises(ValueError, match="taken over"):
            store.finish_trial(complete(stale))
    store.finish_trial(complete(upgraded))
    assert [(trial.number, trial.state) for trial in store.trials(study.uid)] == [(0, "complete")]


@pytest.mark.parametrize("state", ["pruned", "infeasible", "failed"])
def test_every_end_of_a_trial_is_kept(store: Store, state: str) -> None:
    study = begin(store)
    claimed = store.claim_trial(study.uid, configuration(), TOOLCHAIN.digest)
    failure = None if state == "pruned" else Failure(stage="check", kind="inaccurate", detail="0.3 > 0.02", figure=0.3)
    ended = replace(claimed, state=state, failure=failure, signal_error=0.3)  # type: ignore[arg-type]
    store.finish_trial(ended)
    assert store.trials(study.uid) == [ended]
    assert store.trials(study.uid, failed=True) == ([ended] if state == "failed" else [])


@pytest.mark.parametrize("figure", [float("inf"), float("-inf"), float("nan"), 0.5, None])
def test_a_figure_that_is_no_number_is_kept_in_the_failure(store: Store, figure: float | None) -> None:
    study = begin(store)
    claimed = store.claim_trial(study.uid, configuration(), TOOLCHAIN.digest)
    ended = failed(claimed, stage="check", kind="non_finite", figure=figure, log_tail="a\x00b\udcff'; DROP TABLE trial")
    store.finish_trial(replace(ended, signal_error=figure))
    (found,) = store.trials(study.uid)
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
    claimed = store.claim_trial(study.uid, configuration(), TOOLCHAIN.digest)
    with pytest.raises(ValueError, match=r"trial 0|latency"):
        store.finish_trial(replace(complete(claimed), **changes), {"screening": SAMPLES})  # type: ignore[arg-type]
    assert store.trials(study.uid) == [claimed]
    assert store.measurements(claimed.uid) == []


@pytest.mark.parametrize("value", ["-1", "0", "1e300", "NULL"])
def test_the_database_itself_refuses_a_false_latency(store: Store, value: str) -> None:
    tried(store, begin(store))
    store.promote(plan())
    for table in ("trial", "plan"):
        with pytest.raises(DatabaseError, match="constraint"), store.writing() as session:
            session.execute(text(f"UPDATE {table} SET latency_ms = {value}"))


def test_a_name_is_only_ever_a_name(store: Store) -> None:
    name = "x'; DROP TABLE study; --\n\"\\"
    study = begin(store, name)
    assert store.studies(name) == [study]
    store.promote(plan(name=name))
    assert [found.name for found in store.plans(name)] == [name]


def test_a_configuration_is_answered_from_an_earlier_study(store: Store) -> None:
    first, second = begin(store), begin(store, seed=1)
    at = (first.identity, TOOLCHAIN.digest)
    claimed = store.claim_trial(first.uid, configuration(0), TOOLCHAIN.digest)
    assert store.earlier_trial(*at, configuration(0)) is None
    store.finish_trial(failed(claimed, kind="timeout"))
    assert store.earlier_trial(*at, configuration(0)) is None
    broken = failed(store.claim_trial(second.uid, configuration(0), TOOLCHAIN.digest), kind="error")
    store.finish_trial(broken)
    assert store.earlier_trial(*at, configuration(0)) == broken
    found = tried(store, begin(store, seed=2), 0)
    assert store.earlier_trial(*at, configuration(0)) == found
    assert store.measurements(found.uid) == [SAMPLES]
    for change in ({"structure": "other"}, {"weights": "other"}, {"device_class": "other"}, {"objective": STRICT}):
        assert store.earlier_trial(replace(first.identity, **change), TOOLCHAIN.digest, configuration(0)) is None  # type: ignore[arg-type]
    for part in ("inputs", "measuring"):
        conditions = replace(CONDITIONS, **{part: "other"})
        other = replace(first.identity, conditions=conditions)
        assert store.earlier_trial(other, TOOLCHAIN.digest, configuration(0)) is None
    assert store.earlier_trial(replace(first.identity, conditions=None), TOOLCHAIN.digest, configuration(0)) is None
    assert store.earlier_trial(first.identity, "other", configuration(0)) is None
    assert store.earlier_trial(*at, configuration(0), kernels=digest("tuned")) is None
    unlike = replace(first.identity, name="another", serve_as="onnx", space="another", seed=7)
    assert store.earlier_trial(unlike, TOOLCHAIN.digest, configuration(0)) == found
    assert store.earlier_trial(*at, configuration(1)) is None


def test_a_trial_without_a_result_is_withdrawn_and_its_configuration_can_be_tried_again(store: Store) -> None:
    study = begin(store)
    finished = tried(store, study, 0)
    claimed = store.claim_trial(study.uid, configuration(1), TOOLCHAIN.digest)
    store.withdraw_trial(replace(claimed, attempt=2))  # of an attempt that is another coordinator's
    assert store.trials(study.uid) == [finished, claimed]
    for trial in (claimed, finished):  # a result is never withdrawn
        store.withdraw_trial(trial)
    assert store.trials(study.uid) == [finished]
    again = store.claim_trial(study.uid, configuration(1), TOOLCHAIN.digest)
    assert (again.number, again.attempt, again.state) == (claimed.number, 1, "running") and again.uid != claimed.uid


def test_losers_lose_their_artifacts_and_keep_their_rows(store: Store, tmp_path: Path) -> None:
    study = begin(store)
    digests = [stored(store, tmp_path, content) for content in ("won", "lost", "shared", "promoted")]
    won, lost, shared, promoted = (tried(store, study, i, artifact=each) for i, each in enumerate(digests))
    elsewhere = tried(store, begin(store, seed=1), 2, artifact=digests[2])
    store.promote(plan(artifact=digests[3]))
    store.drop_losers(study.uid, keep={won.uid})
    assert [trial.artifact for trial in store.trials(study.uid)] == [digests[0], None, None, None]
    assert store.trials(study.uid)[1] == replace(lost, artifact=None)
    assert store.artifacts.digests() == sorted([digests[0], digests[2], digests[3]])
    drop_artifact(store, elsewhere.uid)
    assert not store.artifacts.has(digests[2])
    store.keep_artifact(shared.uid, stored(store, tmp_path, "shared"), kernels=digest("tuned"))
    assert store.trial(shared.uid) == replace(shared, kernels=digest("tuned"))
    store.finish_trial(promoted)
    assert store.trial(promoted.uid).artifact is None


def test_a_plan_is_kept_whole_and_replaced_by_its_key(store: Store, tmp_path: Path) -> None:
    first, second = (stored(store, tmp_path, content) for content in ("first", "second"))
    store.promote(plan("p1", artifact=first))
    assert store.plan("p1") == plan("p1", artifact=first)
    assert store.plan("p1").as_dict() == plan("p1", artifact=first).as_dict()
    store.promote(plan("p2", artifact=second, latency_ms=3.0, created=""))
    assert [found.uid for found in store.plans()] == ["p2"]
    assert store.plan("p2").created.startswith("2026-01-01T00:00:0")
    assert store.artifacts.digests() == [second]
    with pytest.raises(ValueError, match="no plan"):
        store.plan("p1")
    for changes in ({"objective": STRICT}, {"serve_as": "onnx"}, {"weights": digest("x")}, {"device": H100}):
        store.promote(plan(f"p-{next(iter(changes))}", **changes))
    assert len(store.plans()) == 5
    for change in ({"artifact": "../x"}, {"uid": ""}, {"created": "yesterday"}, {"created": "2026-01-01T00:00:00"}):
        with pytest.raises(ValueError, match=r"names no artifact|a uid has|isoformat|time zone"):
            store.promote(replace(plan("p9"), **change))  # type: ignore[arg-type]
    assert len(store.plans()) == 5


def test_a_looser_plan_never_serves_a_stricter_caller(store: Store) -> None:
    def found(objective: Objective, **changes: str) -> str | None:
        answer = store.find_plan(key(objective=objective, **changes))
        return answer.uid if answer else None

    assert found(LOOSE) is None
    store.promote(plan("loose", objective=LOOSE, latency_ms=0.5))
    assert (found(LOOSE), found(OBJECTIVE), found(STRICT)) == ("loose", None, None)
    store.promote(plan("default", latency_ms=1.0))
    store.promote(plan("strict", objective=STRICT, latency_ms=2.0))
    assert (found(LOOSE), found(OBJECTIVE), found(STRICT)) == ("loose", "default", "strict")
    store.promote(plan("strict", objective=STRICT, latency_ms=0.9))
    assert (found(LOOSE), found(OBJECTIVE), found(STRICT)) == ("loose", "strict", "strict")
    gated = Objective(metrics=(Metric(function="m:f", at_most=1.0),))
    assert found(gated) is None
    assert found(OBJECTIVE, serve_as="onnx") is None
    store.promote(plan("onnx", serve_as="onnx", latency_ms=0.8))
    assert (found(OBJECTIVE, serve_as="onnx"), found(OBJECTIVE)) == ("onnx", "onnx")
    assert store.find_plan(key(device_class=H100.device_class, objective=LOOSE)) is None
    assert store.find_plan(key(structure=digest("other"), objective=LOOSE)) is None


def test_a_plan_for_these_weights_comes_before_a_faster_one_for_others(store: Store) -> None:
    store.promote(plan("other", weights=digest("other"), latency_ms=0.5))
    answer = store.find_plan(key(), weights=digest("w"))
    assert answer is not None and answer.uid == "other"
    store.promote(plan("own", latency_ms=1.0))
    for weights, uid in ((digest("w"), "own"), (digest("other"), "other"), (digest("third"), "other"), (None, "other")):
        answer = store.find_plan(key(), weights=weights)
        assert answer is not None and answer.uid == uid


def test_a_rebuilt_artifact_joins_its_plan(store: Store, tmp_path: Path) -> None:
    first, second, third = (stored(store, tmp_path, content) for content in "abc")
    store.promote(plan("p1", artifact=first))
    newer = Toolchain.of({"torch": "2.14.0"})
    changed = store.replace_plan_artifact("p1", second, digest("w"), newer)
    assert changed == plan("p1", artifact=second, toolchain=newer) == store.plan("p1")
    assert store.artifacts.digests() == sorted([second, third])
    copy = store.replace_plan_artifact("p1", third, digest("fine-tuned"), newer)
    assert copy.uid != "p1" and copy == replace(changed, uid=copy.uid, artifact=third, weights=digest("fine-tuned"))
    assert {found.uid for found in store.plans()} == {"p1", copy.uid}
    assert store.replace_plan_artifact("p1", second, digest("w"), newer) == changed
    assert store.artifacts.digests() == sorted([second, third])


def test_plans_of_one_model_in_two_forms_stand_beside_each_other(store: Store, tmp_path: Path) -> None:
    first, second = (stored(store, tmp_path, content) for content in "ab")
    store.promote(plan("old", artifact=first))
    renewed = store.replace_plan_artifact("old", second, digest("w"), TOOLCHAIN, form="one", fingerprint=2)
    assert renewed.uid == "old" and store.plans() == [renewed], "a form that was unknown is found out in place"
    store.promote(plan("fast", form="two", latency_ms=0.5))
    assert [store.find_plan(key(form=form), digest("w")).uid for form in ("one", "two", "")] == ["old", "fast", "fast"]  # type: ignore[union-attr]
    beside = store.replace_plan_artifact("fast", second, digest("w"), TOOLCHAIN, form="three")
    assert beside.uid not in ("old", "fast") and len(store.plans()) == 3


def test_the_nearest_plans_of_a_miss_come_with_what_differs(store: Store) -> None:
    store.promote(plan("loose", objective=LOOSE))
    store.promote(plan("elsewhere", device=H100, objective=LOOSE, serve_as="any"))
    store.promote(plan("former", structure=digest("former"), name="another"))
    store.promote(plan("stranger", structure=digest("stranger"), name="stranger"))
    asked = key(serve_as="onnx")
    near = store.nearest_plans(asked, "resnet50", digest("former"))
    assert [found.uid for found in near] == ["former", "loose", "elsewhere"]
    differences = [(part, wanted, found) for part, wanted, found in near[2].key.differences(asked)]
    assert ("device class", DEVICE.device_class, H100.device_class) in differences
    assert ("constraint signal_error", "0.02", "0.1") in differences
    assert ("serving format", "onnx", "any") in differences


def test_plans_are_listed_by_any_unambiguous_part_of_a_device(store: Store) -> None:
    nvl = replace(DEVICE, name="NVIDIA H200 NVL")
    for uid, device in (("a", DEVICE), ("b", H100), ("c", nvl), ("d", replace(DEVICE, power_limit_w=600))):
        store.promote(plan(uid, device=device))

    def listed(device: str) -> set[str]:
        return {found.uid for found in store.plans(device=device)}

    assert listed("h100") == listed("NVIDIA H100") == listed(H100.device_class) == {"b"}
    assert listed("nvidia-h200") == {"a", "d"} and listed("nvl") == {"c"}
    assert listed(DEVICE.device_class) == {"a"}
    assert listed("a100") == set() == listed("")
    for part in ("h200", "nvidia"):
        with pytest.raises(DeviceError, match="nvidia-h200, nvidia-h200-nvl"):
            store.plans(device=part)
    assert [found.batch for found in store.plans("resnet50", 1, "h100")] == [1]
    assert store.plans("resnet50", 32) == store.plans("absent") == []


def test_equal_demands_are_one_objective() -> None:
    one, other = Metric(function="m:f", at_most=1.0), Metric(function="m:g", at_least=0.5)
    left = Objective(metrics=(one, other), integer_agreement=1)
    right = Objective(metrics=(other, one), integer_agreement=1.0)
    assert objective_content(left) == objective_content(right)
    assert objective_content(left) != objective_content(replace(right, integer_agreement=0.99))


def test_stored_evidence_is_parsed_when_a_field_is_read() -> None:
    stored = StoredEvidence('{"a":[1,2],"study":"s1","rounds":3}', "p1")
    with pytest.raises(AttributeError):
        _ = stored.rounds_of_nobody
    assert (stored.study, stored.rounds, stored.finalists, stored.beside) == ("s1", 3, (), {"a": [1, 2]})
    assert stored == PlanEvidence.from_dict({"a": [1, 2], "study": "s1", "rounds": 3})
    assert repr(StoredEvidence('{"a":[1,2]}', "p1")) == "{'a': [1, 2]}"
    broken = StoredEvidence("{", "p7")
    with pytest.raises(DatabaseError, match=r"Plan p7 .*cannot be read"):
        _ = broken.trial


def test_an_error_of_the_database_is_told_without_a_traceback(store: Store, tmp_path: Path) -> None:
    begin(store)
    with store.writing() as session:
        session.execute(text("ALTER TABLE plan RENAME TO mislaid"))
    with pytest.raises(DatabaseError, match=r"no such table|does not exist"):
        store.plans()
    with pytest.raises(DatabaseError, match=r"no such table|does not exist"):
        store.promote(plan())


@pytest.mark.parametrize("column", ["record", "evidence", "objective"])
@pytest.mark.parametrize("content", ["{", "[1]", "7"])
def test_a_plan_whose_column_is_no_json_is_told(store: Store, column: str, content: str) -> None:
    store.promote(plan("p7"))
    with store.writing() as session:
        session.execute(text(f"UPDATE plan SET {column} = :content"), {"content": content})
    reads = {
        "record": (store.plans, lambda: store.plan("p7"), lambda: store.find_plan(key())),
        "evidence": (lambda: store.plans()[0].evidence.study, lambda: store.plans()[0].as_dict()),
        "objective": (lambda: store.find_plan(key()),),
    }
    for read in reads[column]:
        with pytest.raises(
            DatabaseError, match=r"Plan p7 .*cannot be read\n.*found.*\n.*\n  run next: autotune db check"
        ):
            read()
