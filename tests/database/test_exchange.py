import json
import os
import sqlite3
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from autotune.database.check import check
from autotune.database.exchange import export_studies, merge_file
from autotune.database.store import Store
from autotune.errors import DatabaseError
from autotune.trial import Measurement
from tests.database.records import (
    DEVICE,
    OBJECTIVE,
    SAMPLES,
    TOOLCHAIN,
    begin,
    configuration,
    digest,
    failed,
    folder_with,
    plan,
    tried,
    workload,
)
from tests.databases import Databases

NAMES = ("resnet50", "bert-base")
SHARED = (HealthCheck.function_scoped_fixture,)  # every example has paths, and so databases, of its own

# What happened on one machine: per study (name, seed) the configurations that were tried, whether each failed, which of
# them were in the finals, and the day on which a plan was promoted (0: none).
attempts = st.dictionaries(st.integers(0, 4), st.tuples(st.booleans(), st.booleans()), max_size=4)
histories = st.dictionaries(
    st.tuples(st.sampled_from(NAMES), st.integers(0, 1)), st.tuples(attempts, st.integers(0, 3)), min_size=1, max_size=3
)
History = dict[tuple[str, int], tuple[dict[int, tuple[bool, bool]], int]]


def live(store: Store, history: History, machine: str, folder: Path) -> None:
    for (name, seed), (levels, day) in history.items():
        study = begin(store, name, seed=seed)
        for level, (fails, finals) in levels.items():
            if fails:
                store.finish_trial(failed(store.claim_trial(study.uid, configuration(level), TOOLCHAIN.digest)))
                continue
            trial = tried(store, study, level, latency_ms=1.0 + level)
            if finals:
                store.add_measurement(trial.uid, "finals", Measurement(samples_ms=((1.0 + level, 2.0),)))
        store.claim_trial(study.uid, configuration(99), TOOLCHAIN.digest)
        store.add_active_time(study.uid, 10.0 * len(levels))
        if day:
            built = folder / f"{machine}-built-{name}-{day}"
            artifact = store.artifacts.add(folder_with(built, {"w": b"shared", name: machine.encode()}))
            created = f"2026-01-0{day}T00:00:00+00:00"
            store.promote(plan(f"{machine}-{name}-{seed}", workload(name), artifact=artifact, created=created))


def content(store: Store) -> dict[str, Any]:
    """The sets that a merge unites; trials that are still running stay at home."""
    identities = {s.uid: (s.name, s.seed, s.structure, s.state, s.active_s) for s in store.studies()}
    ended = {uid: [trial for trial in store.trials(uid) if trial.state != "running"] for uid in identities}
    return {
        "studies": set(identities.values()),
        "trials": {
            (identities[uid], trial.uid, trial.configuration, trial.state, trial.latency_ms, str(trial.failure))
            for uid, trials in ended.items()
            for trial in trials
        },
        "measurements": {
            trial.uid: sorted(json.dumps(m.as_dict()) for m in store.measurements(trial.uid))
            for trials in ended.values()
            for trial in trials
        },
        "plans": {found.uid: found for found in store.plans()},
        "artifacts": store.artifacts.digests(),
    }


def names_in(history: History) -> list[str]:
    return sorted({name for name, _ in history})


# An example makes four databases, so shrinking one would take minutes.
@settings(max_examples=5, deadline=None, phases=(Phase.explicit, Phase.generate), suppress_health_check=SHARED)
@given(histories, histories)
@example({("resnet50", 0): ({0: (False, True), 1: (True, False)}, 1)}, {("resnet50", 0): ({0: (True, False)}, 2)})
@example({("resnet50", 0): ({2: (False, False)}, 3)}, {("resnet50", 1): ({2: (False, False)}, 3)})
def test_merging_unites_in_any_order_and_twice_is_once(databases: Databases, left: History, right: History) -> None:
    with tempfile.TemporaryDirectory() as text:
        root, files = Path(text), []
        for machine, history in (("left", left), ("right", right)):
            with Store.open(databases.url(root / machine / "a.db")) as store:
                live(store, history, machine, root)
                files.append(root / f"{machine}.zip")
                export_studies(store, names_in(history), files[-1])
        results = []
        for order in ((0, 1), (1, 0)):
            with Store.open(databases.url(root / str(order) / "a.db")) as store:
                for each in order:
                    merge_file(store, files[each])
                results.append(content(store))
                if order == (0, 1):
                    again = [merge_file(store, files[each]) for each in order]
                    assert all(found["added"] == 0 for each in again for found in each.values())
                    assert content(store) == results[0]
                for study in store.studies():
                    numbers = [trial.number for trial in store.trials(study.uid)]
                    assert len(set(numbers)) == len(numbers)
        assert results[0] == results[1]
        with Store.open(databases.url(root / "left" / "a.db")) as store:
            before = content(store)
            counts = [merge_file(store, file) for file in (files[0], files[1], files[0])]
            assert all(found["added"] == 0 for found in counts[0].values())
            united = content(store)
        assert {key: united[key] for key in ("trials", "measurements", "plans")} == {
            key: results[0][key] for key in ("trials", "measurements", "plans")
        }
        assert {uid for _, uid, *_ in before["trials"]} <= {uid for _, uid, *_ in united["trials"]}


DELETABLE = ("measurement", "trial", "plan", "study", "workload", "device")


# What is gone or damaged: rows of a table by their place, and files of artifacts by theirs.
@settings(max_examples=4, deadline=None, phases=(Phase.explicit, Phase.generate))
@given(
    histories,
    histories,
    st.lists(st.tuples(st.sampled_from(DELETABLE), st.integers(0, 9)), max_size=6),
    st.lists(st.tuples(st.integers(0, 9), st.booleans()), max_size=3),
)
@example(
    {("resnet50", 0): ({0: (False, True), 1: (True, False)}, 1)},
    {("resnet50", 0): ({0: (True, False)}, 2)},
    [(table, 0) for table in DELETABLE],
    [(0, True), (1, False)],
)
def test_merging_again_restores_what_was_lost_or_damaged_and_doubles_nothing(
    left: History, right: History, rows: list[tuple[str, int]], blobs: list[tuple[int, bool]]
) -> None:
    with tempfile.TemporaryDirectory() as text:
        root, files = Path(text), []
        for machine, history in (("left", left), ("right", right)):
            with Store.open(str(root / machine / "a.db")) as store:
                live(store, history, machine, root / machine)
                files.append(root / f"{machine}.zip")
                export_studies(store, names_in(history), files[-1])
        with Store.open(str(root / "a.db")) as store:
            for file in files:
                merge_file(store, file)
            whole = content(store)
            damage(store, rows, blobs)
            for _ in range(2):
                for file in files:
                    merge_file(store, file)
                assert content(store) == whole
                assert [f for f in check(store, time.time()) if f.kind != "orphaned"] == []


def damage(store: Store, rows: list[tuple[str, int]], blobs: list[tuple[int, bool]]) -> None:
    with sqlite3.connect(store.location) as connection:  # which knows of no foreign keys
        for table, place in rows:
            chosen = f"SELECT rowid FROM {table} ORDER BY rowid LIMIT 1 OFFSET {place}"
            connection.execute(f"DELETE FROM {table} WHERE rowid IN ({chosen})")
    connection.close()
    there = sorted(path for path in (store.artifacts.root / "blobs").rglob("*") if path.is_file())
    for place, is_gone in blobs:
        if place < len(there):
            there[place].unlink(missing_ok=True)
            if not is_gone:
                there[place].write_bytes(b"damaged")


def test_a_row_that_cannot_be_read_stops_an_export_and_a_merge_with_its_reason(sound: Path, tmp_path: Path) -> None:
    with Store.open(str(tmp_path / "a.db")) as store:
        merge_file(store, sound)
        with sqlite3.connect(store.location) as connection:
            connection.execute("UPDATE trial SET configuration = '{' WHERE number = 0")
        connection.close()
        before = (tmp_path / "a.db").read_bytes()
        for attempt in (lambda: merge_file(store, sound), lambda: export_studies(store, ["resnet50"], tmp_path / "x")):
            with pytest.raises(DatabaseError, match="row that cannot be read"):
                attempt()
        assert not (tmp_path / "x").exists() and (tmp_path / "a.db").read_bytes() == before


def test_a_machine_goes_on_with_what_another_found(databases: Databases, tmp_path: Path) -> None:
    with Store.open(databases.url(tmp_path / "a.db")) as there, Store.open(databases.url(tmp_path / "b.db")) as here:
        far = [tried(there, begin(there), level) for level in range(3)]
        export_studies(there, ["resnet50"], tmp_path / "file.zip")
        study = begin(here)
        near = tried(here, study, 1, latency_ms=5.0)
        counts = merge_file(here, tmp_path / "file.zip")
        assert counts["studies"] == {"added": 0, "known": 1} and counts["trials"] == {"added": 3, "known": 0}
        found = {trial.uid: trial for trial in here.trials(study.uid)}
        assert set(found) == {near.uid, *(trial.uid for trial in far)}
        assert [found[uid].number for uid in (near.uid, *(trial.uid for trial in far))] == [0, 3, 1, 2]
        assert here.trial_of(study.uid, configuration(1), TOOLCHAIN.digest) == near
        assert here.trial_of(study.uid, configuration(2), TOOLCHAIN.digest) == far[2]
        with pytest.raises(ValueError, match="tried"):
            here.claim_trial(study.uid, configuration(2), TOOLCHAIN.digest)
        assert tried(here, study, 7).number == 4


def test_a_plan_arrives_with_or_without_its_artifact(databases: Databases, tmp_path: Path) -> None:
    with Store.open(databases.url(tmp_path / "a.db")) as there:
        artifact = there.artifacts.add(folder_with(tmp_path / "built", {"model.so": b"code", "data/w": b"weights"}))
        tried(there, begin(there), artifact=artifact)
        there.promote(plan(artifact=artifact))
        with_it = export_studies(there, ["resnet50"], tmp_path / "with.zip")
        without = export_studies(there, ["resnet50"], tmp_path / "without.zip", artifacts=False)
    assert with_it == {"studies": 1, "trials": 1, "measurements": 1, "plans": 1, "artifacts": 1}
    assert without == with_it | {"artifacts": 0}
    with Store.open(databases.url(tmp_path / "b.db")) as here:
        merge_file(here, tmp_path / "without.zip")
        assert here.plan("p1").artifact == artifact and not here.artifacts.has(artifact)
        assert [trial.artifact for trial in here.trials(here.studies()[0].uid)] == [None]
        assert merge_file(here, tmp_path / "with.zip")["artifacts"] == {"added": 1, "known": 0}
        assert (here.artifacts.open(artifact) / "data" / "w").read_bytes() == b"weights"
        assert here.find_plan(workload().structure, DEVICE.device_class, OBJECTIVE) == plan(artifact=artifact)


def test_the_newer_of_two_plans_stays(databases: Databases, tmp_path: Path) -> None:
    with Store.open(databases.url(tmp_path / "a.db")) as there, Store.open(databases.url(tmp_path / "b.db")) as here:
        begin(there)
        there.promote(plan("theirs", created="2026-01-02T00:00:00Z"))
        export_studies(there, ["resnet50"], tmp_path / "file.zip")
        for created, uid in (("2026-01-02T02:30:00+02:00", "theirs"), ("2026-01-02T00:00:01+00:00", "ours")):
            here.promote(plan("ours", created="2026-01-01T23:00:00-05:00" if uid == "ours" else "2026-01-01T00:00:00Z"))
            merge_file(here, tmp_path / "file.zip")
            assert [found.uid for found in here.plans()] == [uid], created


def test_only_known_studies_are_exported_and_nothing_is_half_written(databases: Databases, tmp_path: Path) -> None:
    with Store.open(databases.url(tmp_path / "a.db")) as store:
        with pytest.raises(DatabaseError, match="there is none yet"):
            export_studies(store, ["resnet50"], tmp_path / "file.zip")
        begin(store)
        with pytest.raises(DatabaseError, match="no study absent\n  expected: resnet50"):
            export_studies(store, ["resnet50", "absent"], tmp_path / "file.zip")
        with pytest.raises(DatabaseError, match="cannot be written"):
            export_studies(store, ["resnet50"], tmp_path / "absent" / "file.zip")
        (tmp_path / "file.zip").mkdir()
        with pytest.raises(DatabaseError, match="cannot be written"):
            export_studies(store, ["resnet50"], tmp_path / "file.zip")
    assert {name for name in os.listdir(tmp_path) if not name.startswith("a.db")} == {"file.zip"}


# Bad files


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sound")
    with Store.open(str(root / "a.db")) as store:
        artifact = store.artifacts.add(folder_with(root / "built", {"model.so": b"code" * 100}))
        study = begin(store)
        tried(store, study, artifact=artifact)
        second = store.claim_trial(study.uid, configuration(1), TOOLCHAIN.digest)
        store.finish_trial(failed(second, figure=float("nan")))
        store.promote(plan(artifact=artifact))
        export_studies(store, ["resnet50"], root / "sound.zip")
    return root / "sound.zip"


def rewritten(sound: Path, target: Path, change: Callable[[dict[str, bytes]], None]) -> Path:
    with zipfile.ZipFile(sound) as archive:
        members = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    change(members)
    with zipfile.ZipFile(target, "w") as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    return target


def is_empty(store: Store) -> bool:
    return not (store.studies() or store.plans() or store.artifacts.digests())


def refused(databases: Databases, path: Path, tmp_path: Path, match: str = "") -> None:
    database = tmp_path / "refused" / "here.db"
    with Store.open(databases.url(database)) as store:
        with pytest.raises(DatabaseError, match=match):
            merge_file(store, path)
        assert is_empty(store)
    assert {name for name in os.listdir(tmp_path) if name != "refused"} <= {path.name}
    if databases.kind == "sqlite":
        assert {name.split(".db")[0] for name in os.listdir(database.parent)} <= {"here", "here-artifacts"}


RECORD_CHANGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "format": lambda d: d.update(format="another"),
    "newer schema": lambda d: d.update(schema_revision="9999"),
    "unknown key": lambda d: d.update(surprise=1),
    "missing key": lambda d: d.pop("plans"),
    "no workload": lambda d: d["workloads"].clear(),
    "no device": lambda d: d["devices"].clear(),
    "no study": lambda d: d["studies"].clear(),
    "no trial": lambda d: d["trials"].clear(),
    "twin trial": lambda d: d["trials"].append(d["trials"][0]),
    "bad fingerprint": lambda d: d["workloads"][0].update(structure="x"),
    "bad device": lambda d: d["devices"][0].update(kind="tpu"),
    "bad objective": lambda d: d["studies"][0]["objective"].update(signal_error=7),
    "study NaN": lambda d: d["studies"][0].update(active_s=float("nan")),
    "study negative": lambda d: d["studies"][0].update(active_s=-1.0),
    "settings NaN": lambda d: d["studies"][0]["settings"].update(x=float("nan")),
    "study no date": lambda d: d["studies"][0].update(created="now"),
    "study name": lambda d: d["studies"][0].update(name="a\x00b"),
    "seed": lambda d: d["studies"][0].update(seed=2**70),
    "latency NaN": lambda d: d["trials"][0].update(latency_ms=float("nan")),
    "latency infinite": lambda d: d["trials"][0].update(latency_ms=float("inf")),
    "latency zero": lambda d: d["trials"][0].update(latency_ms=0.0),
    "latency negative": lambda d: d["trials"][0].update(latency_ms=-1.0),
    "latency text": lambda d: d["trials"][0].update(latency_ms="1.0"),
    "latency absent": lambda d: d["trials"][0].update(latency_ms=None),
    "running": lambda d: d["trials"][0].update(state="running"),
    "number": lambda d: d["trials"][0].update(number=-1),
    "configuration": lambda d: d["trials"][0]["configuration"].update(backend="../x"),
    "configuration value": lambda d: d["trials"][0]["configuration"].update(level=[1]),
    "configuration NaN": lambda d: d["trials"][0]["configuration"].update(level=float("nan")),
    "failure kind": lambda d: d["trials"][1]["failure"].update(kind="boredom"),
    "failure key": lambda d: d["trials"][1]["failure"].update(surprise=1),
    "failure absent": lambda d: d["trials"][1].update(failure=None),
    "trial artifact": lambda d: d["trials"][0].update(artifact="../../etc/passwd"),
    "sample NaN": lambda d: d["measurements"][0]["record"].update(samples_ms=[[float("nan")]]),
    "no sample": lambda d: d["measurements"][0]["record"].update(samples_ms=[]),
    "samples text": lambda d: d["measurements"][0]["record"].update(samples_ms="12"),
    "conditions infinite": lambda d: d["measurements"][0]["record"]["conditions"].update(x=float("inf")),
    "role": lambda d: d["measurements"][0].update(role="rehearsal"),
    "plan latency": lambda d: d["plans"][0].update(latency_ms=-1.0),
    "plan structure": lambda d: d["plans"][0].update(structure="x"),
    "plan artifact": lambda d: d["plans"][0].update(artifact="../x"),
    "plan name": lambda d: d["plans"][0].update(name=["x"]),
    "plan newline": lambda d: d["plans"][0].update(name="a\nb,=1"),
    "workload newline": lambda d: d["workloads"][0].update(name="a\r\nb"),
    "study escape": lambda d: d["studies"][0].update(name="\x1b[2J"),
    "plan batch": lambda d: d["plans"][0].update(batch="1"),
    "plan date": lambda d: d["plans"][0].update(created=""),
    "plan key": lambda d: d["plans"][0].pop("objective"),
    "plan device": lambda d: d["plans"][0].update(device=None),
    "evidence": lambda d: d["plans"][0].update(evidence=[1]),
    "artifact size": lambda d: next(iter(d["artifacts"].values()))[0].update(size_bytes=10**12),
    "artifact name": lambda d: next(iter(d["artifacts"].values()))[0].update(name="../../x"),
    "artifact bytes": lambda d: next(iter(d["artifacts"].values()))[0].update(sha256=digest("x")),
    "artifact digest": lambda d: d["artifacts"].update({"../x": []}),
    "artifact empty": lambda d: d["artifacts"].update({digest("x"): []}),
}


@pytest.mark.parametrize("name", RECORD_CHANGES)
def test_a_file_with_one_bad_record_is_refused_whole(
    databases: Databases, sound: Path, tmp_path: Path, name: str
) -> None:
    def change(members: dict[str, bytes]) -> None:
        document = json.loads(members["records.json"])
        RECORD_CHANGES[name](document)
        members["records.json"] = json.dumps(document).encode()

    refused(databases, rewritten(sound, tmp_path / "bad.zip", change), tmp_path, "cannot be merged")


def _artifact(members: dict[str, bytes]) -> str:
    return next(name for name in members if name.startswith("artifacts/"))


MEMBER_CHANGES: dict[str, Callable[[dict[str, bytes]], object]] = {
    "no records": lambda m: m.pop("records.json"),
    "records are no JSON": lambda m: m.update({"records.json": b"{"}),
    "records are deep": lambda m: m.update({"records.json": b'{"plans":' + b"[" * 200_000}),
    "records are no text": lambda m: m.update({"records.json": b"\xff\xfe"}),
    "surrogate": lambda m: m.update({"records.json": m["records.json"].replace(b'"resnet50"', b'"\\ud800"')}),
    "a flipped byte": lambda m: m.update({_artifact(m): b"Code" + m[_artifact(m)][4:]}),
    "truncated artifact": lambda m: m.update({_artifact(m): m[_artifact(m)][:-1]}),
    "longer artifact": lambda m: m.update({_artifact(m): m[_artifact(m)] + b"x"}),
    "absent artifact": lambda m: m.pop(_artifact(m)),
    "stray file": lambda m: m.update({"../../evil": b"x"}),
    "absolute file": lambda m: m.update({"/tmp/evil": b"x"}),
}


@pytest.mark.parametrize("name", MEMBER_CHANGES)
def test_a_file_with_a_bad_member_is_refused_whole(
    databases: Databases, sound: Path, tmp_path: Path, name: str
) -> None:
    path = rewritten(sound, tmp_path / "bad.zip", lambda members: (MEMBER_CHANGES[name](members), None)[1])
    refused(databases, path, tmp_path, "cannot be merged")


def test_a_file_that_is_no_zip_or_is_cut_off_is_refused(databases: Databases, sound: Path, tmp_path: Path) -> None:
    data = sound.read_bytes()
    for size in (0, 10, len(data) // 2, len(data) - 1):
        (tmp_path / "bad.zip").write_bytes(data[:size])
        refused(databases, tmp_path / "bad.zip", tmp_path, "cannot be merged")
    (tmp_path / "bad.zip").unlink()
    refused(databases, tmp_path / "bad.zip", tmp_path, "cannot be read")
    (tmp_path / "bad.zip").mkdir()
    refused(databases, tmp_path / "bad.zip", tmp_path, "cannot be read")


@settings(max_examples=25, deadline=None, suppress_health_check=SHARED)
@given(st.data())
def test_a_file_with_any_byte_changed_is_refused_or_harmless(
    databases: Databases, sound: Path, data: st.DataObject
) -> None:
    original = sound.read_bytes()
    place = data.draw(st.integers(0, len(original) - 1))
    changed = original[:place] + bytes([original[place] ^ data.draw(st.integers(1, 255))]) + original[place + 1 :]
    with tempfile.TemporaryDirectory() as text:
        (Path(text) / "bad.zip").write_bytes(changed)
        with Store.open(databases.url(Path(text) / "a.db")) as store:
            try:
                merge_file(store, Path(text) / "bad.zip")
            except DatabaseError:
                assert is_empty(store)
            else:  # a byte that nobody reads, such as the date of an entry
                assert [found.as_dict() for found in store.plans()] == [
                    plan(artifact=store.artifacts.digests()[0]).as_dict()
                ]


def test_compressed_artifacts_could_be_bombs_and_are_refused(databases: Databases, sound: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(sound) as archive:
        members = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content_ in members.items():
            archive.writestr(name, content_)
    refused(databases, tmp_path / "bomb.zip", tmp_path, "form and size")


def test_a_uid_that_means_something_else_here_is_refused(databases: Databases, sound: Path, tmp_path: Path) -> None:
    with Store.open(databases.url(tmp_path / "a.db")) as store:
        store.promote(plan("p1", workload("another")))
        with pytest.raises(DatabaseError, match="plan p1, which is something else"):
            merge_file(store, sound)
        assert [found.name for found in store.plans()] == ["another"]
        assert store.studies() == [] and store.artifacts.digests() == []


def test_the_samples_arrive_as_they_were(databases: Databases, sound: Path, tmp_path: Path) -> None:
    with Store.open(databases.url(tmp_path / "a.db")) as store:
        merge_file(store, sound)
        first, second = store.trials(store.studies()[0].uid)
        assert store.measurements(first.uid) == [SAMPLES]
        assert second.failure is not None and str(second.failure.figure) == "nan"
