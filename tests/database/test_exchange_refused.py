"""Files and rows that an export or a merge must refuse."""

import json
import os
import sqlite3
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autotune.database.exchange import export_studies, merge_file
from autotune.database.store import Store
from autotune.errors import DatabaseError
from autotune.testing.sample_records import kernel_final
from tests.database.records import (
    DEVICE,
    PROBLEM,
    SAMPLES,
    TOOLCHAIN,
    begin,
    configuration,
    digest,
    failed,
    folder_with,
    kernel,
    lost,
    plan,
    tried,
    workload,
)
from tests.databases import Databases

SHARED = (HealthCheck.function_scoped_fixture,)  # every example has paths, and so databases, of its own


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sound")
    with Store.open(str(root / "a.db")) as store:
        artifact = store.artifacts.add(folder_with(root / "built", {"model.so": b"code" * 100}))
        study = begin(store)
        tried(store, study, artifact=artifact)
        second = store.trials.claim(study.uid, configuration(1), TOOLCHAIN.digest)
        store.trials.finish(failed(second, figure=float("nan")))
        store.plans.promote(plan(artifact=artifact))
        store.kernels.add([kernel()])
        store.kernel_finals.add(kernel_final())
        store.kernels.add([kernel(1, failure=replace(lost("non_finite"), figure=float("inf")), error=float("inf"))])
        export_studies(store, ["resnet50"], root / "sound.zip")
    return root / "sound.zip"


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


def rewritten(sound: Path, target: Path, change: Callable[[dict[str, bytes]], None]) -> Path:
    with zipfile.ZipFile(sound) as archive:
        members = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    change(members)
    with zipfile.ZipFile(target, "w") as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    return target


def is_empty(store: Store) -> bool:
    return not (store.studies.list() or store.plans.list() or store.kernels.problems() or store.artifacts.digests())


def refused(databases: Databases, path: Path, tmp_path: Path, match: str = "") -> None:
    database = tmp_path / "refused" / "here.db"
    with Store.open(databases.url(database)) as store:
        with pytest.raises(DatabaseError, match=match):
            merge_file(store, path)
        assert is_empty(store)
    assert {name for name in os.listdir(tmp_path) if name != "refused"} <= {path.name}
    if databases.kind == "sqlite":
        assert {name.split(".db")[0] for name in os.listdir(database.parent)} <= {"here", "here-artifacts"}


def of_final(document: dict[str, Any]) -> dict[str, Any]:
    record: dict[str, Any] = document["kernel_finals"][0]["record"]
    return record


def of_kernel(document: dict[str, Any], state: str) -> dict[str, Any]:
    return next(each for each in document["kernel_trials"] if each["state"] == state)


START = {"kernel_trials": 0, "other_kernel_trials": 0, "model_trials": 0, "trials": 60, "budget_s": 180.0}
CURVE = {
    "unit": "ms", "searched_s": 9.0, "baseline": 2.0, "points": [{"seconds": 1.0, "best": 1.0, "backend": "eager"}],
}  # fmt: skip
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
    "study start": lambda d: d["studies"][0]["timings"].update(start={"kernel_trials": 0}),
    "study start negative": lambda d: d["studies"][0]["timings"].update(start={**START, "model_trials": -1}),
    "study start budget": lambda d: d["studies"][0]["timings"].update(start={**START, "budget_s": 0}),
    "study moment": lambda d: d["studies"][0]["timings"].update(ended_s={"a": "soon"}),
    "study moment negative": lambda d: d["studies"][0]["timings"].update(ended_s={"a": -1.0}),
    "study moments": lambda d: d["studies"][0]["timings"].update(ended_s=[1.0]),
    "study curve": lambda d: d["studies"][0]["timings"].update(curve={**CURVE, "points": []}),
    "study curve rises": lambda d: d["studies"][0]["timings"].update(curve={**CURVE, "baseline": 0.5}),
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
    "twin kernel": lambda d: d["kernel_trials"].append(d["kernel_trials"][0]),
    "kernel state": lambda d: of_kernel(d, "complete").update(state="running"),
    "kernel sample NaN": lambda d: of_kernel(d, "complete").update(samples_us=[float("nan")]),
    "kernel sample zero": lambda d: of_kernel(d, "complete").update(samples_us=[0.0]),
    "kernel sample text": lambda d: of_kernel(d, "complete").update(samples_us=["1"]),
    "kernel sample absent": lambda d: of_kernel(d, "complete").update(samples_us=[]),
    "kernel sample huge": lambda d: of_kernel(d, "complete").update(samples_us=[1e305]),
    "kernel error": lambda d: of_kernel(d, "complete").update(error=-1.0),
    "kernel problem": lambda d: of_kernel(d, "complete")["problem"].update(m=0),
    "kernel problem key": lambda d: of_kernel(d, "complete")["problem"].update(surprise=1),
    "kernel configuration": lambda d: of_kernel(d, "complete")["configuration"].update(backend="../x"),
    "kernel made": lambda d: of_kernel(d, "complete")["made"].update(registers="168"),
    "kernel conditions": lambda d: of_kernel(d, "complete")["conditions"].update(x=float("nan")),
    "kernel class": lambda d: of_kernel(d, "complete").update(device_class="\x1b[2J"),
    "kernel toolchain": lambda d: of_kernel(d, "complete").update(toolchain="a\x00b"),
    "kernel date": lambda d: of_kernel(d, "complete").update(created="now"),
    "final of one": lambda d: of_final(d).update(finalists=of_final(d)["finalists"][:1]),
    "final of twins": lambda d: of_final(d).update(finalists=of_final(d)["finalists"][:1] * 2),
    "final schema": lambda d: of_final(d).update(schema=2),
    "final without rounds": lambda d: of_final(d)["finalists"][0].update(rounds_us=[]),
    "final with fewer rounds": lambda d: of_final(d)["finalists"][0].update(rounds_us=[[1.0]]),
    "final round empty": lambda d: of_final(d)["finalists"][0].update(rounds_us=[[1.0], []]),
    "final sample zero": lambda d: of_final(d)["finalists"][0].update(rounds_us=[[1.0], [0.0]]),
    "final sample text": lambda d: of_final(d)["finalists"][0].update(rounds_us=[[1.0], ["1"]]),
    "final samples huge": lambda d: of_final(d).update(
        finalists=[{**each, "rounds_us": [[1e305]]} for each in of_final(d)["finalists"]]
    ),
    "final toolchain": lambda d: of_final(d)["finalists"][0].update(toolchain="a\x00b"),
    "final configuration": lambda d: of_final(d)["finalists"][0]["configuration"].update(backend="../x"),
    "final class": lambda d: of_final(d).update(device_class="\x1b[2J"),
    "final class no text": lambda d: of_final(d).update(device_class=7),
    "final problem": lambda d: of_final(d)["problem"].update(m=0),
    "final conditions": lambda d: of_final(d)["conditions"].update(x=float("nan")),
    "final date": lambda d: d["kernel_finals"][0].update(created="now"),
    "final key": lambda d: d["kernel_finals"][0].update(surprise=1),
    "kernel failure": lambda d: of_kernel(d, "failed").update(failure=None),
    "kernel failure kind": lambda d: of_kernel(d, "failed")["failure"].update(kind="boredom"),
    "kernel failure key": lambda d: of_kernel(d, "failed")["failure"].update(surprise=1),
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
    "plan start": lambda d: d["plans"][0]["evidence"].update(known_at_start={**START, "kernel_trials": "none"}),
    "evidence": lambda d: d["plans"][0].update(evidence=[1]),
    "artifact size": lambda d: next(iter(d["artifacts"].values()))[0].update(size_bytes=10**12),
    "artifact name": lambda d: next(iter(d["artifacts"].values()))[0].update(name="../../x"),
    "artifact bytes": lambda d: next(iter(d["artifacts"].values()))[0].update(sha256=digest("x")),
    "artifact digest": lambda d: d["artifacts"].update({"../x": []}),
    "artifact empty": lambda d: d["artifacts"].update({digest("x"): []}),
}


def test_a_file_whose_study_has_a_start_and_a_curve_is_merged(
    databases: Databases, sound: Path, tmp_path: Path
) -> None:
    def change(members: dict[str, bytes]) -> None:
        document = json.loads(members["records.json"])
        document["studies"][0]["timings"].update(start=START, curve=CURVE, ended_s={"a": 1.0})
        members["records.json"] = json.dumps(document).encode()

    with Store.open(databases.url(tmp_path / "here.db")) as store:
        merge_file(store, rewritten(sound, tmp_path / "good.zip", change))
        (study,) = store.studies.list()
        assert study.start is not None and study.start.as_dict() == START
        assert study.curve is not None and study.curve.as_dict() == CURVE


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
                assert [found.as_dict() for found in store.plans.list()] == [
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
        store.plans.promote(plan("p1", workload("another")))
        with pytest.raises(DatabaseError, match="plan p1, which is something else"):
            merge_file(store, sound)
        assert [found.name for found in store.plans.list()] == ["another"]
        assert store.studies.list() == [] and store.artifacts.digests() == []


def test_the_samples_arrive_as_they_were(databases: Databases, sound: Path, tmp_path: Path) -> None:
    with Store.open(databases.url(tmp_path / "a.db")) as store:
        merge_file(store, sound)
        first, second = store.trials.of_study(store.studies.list()[0].uid)
        assert store.trials.measurements(first.uid) == [SAMPLES]
        assert second.failure is not None and str(second.failure.figure) == "nan"
        done, refused = store.kernels.of(PROBLEM, DEVICE.device_class, TOOLCHAIN.digest)
        assert done == kernel()
        assert refused.failure is not None and str(refused.failure.figure) == "inf"
