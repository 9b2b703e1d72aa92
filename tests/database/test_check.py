import fcntl
import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from autotune.database.check import check, collect_garbage
from autotune.database.reading import PlanReader
from autotune.database.store import Store
from autotune.database.sweep import GRACE_S
from autotune.errors import DatabaseError
from autotune.testing.sample_records import kernel_final
from tests.database.records import (
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
)

NOW = time.time()
LATER = NOW + 2 * GRACE_S
"""When what these tests add is a day old."""
KEY = plan().key


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A plan and a trial that share a file, with an artifact each."""
    with Store.open(str(tmp_path / "a.db")) as store:
        study = begin(store)
        first = store.artifacts.add(folder_with(tmp_path / "first", {"w": b"shared", "code": b"1"}))
        second = store.artifacts.add(folder_with(tmp_path / "second", {"w": b"shared", "code": b"2"}))
        store.artifacts.open(first)
        tried(store, study, 0, artifact=second)
        store.plans.promote(plan(artifact=first))
        store.kernels.add([kernel()])
        store.kernel_finals.add(kernel_final())
        yield store


def found(store: Store, now: float = LATER) -> set[tuple[str, str]]:
    return {(finding.kind, finding.what) for finding in check(store, now)}


def changed(store: Store, *statements: str) -> None:
    """Change rows behind the back of every constraint, as a disk or an editor might."""
    with sqlite3.connect(store.location) as connection:
        connection.execute("PRAGMA ignore_check_constraints = ON")
        for statement in statements:
            assert connection.execute(statement).rowcount > 0, statement
    connection.close()


def plan_file(store: Store, name: str = "code") -> Path:
    (artifact,) = [found.artifact for found in store.plans.list()]
    assert artifact is not None
    return store.artifacts.blob(next(f.sha256 for f in store.artifacts.files(artifact) if f.name == name))


def test_a_sound_database_has_no_findings_and_no_garbage(store: Store) -> None:
    assert check(store, LATER) == []
    assert collect_garbage(store, LATER).size_bytes == 0
    assert check(store, LATER) == []
    assert len(store.artifacts.digests()) == 2


def rewrite(path: Path, content: bytes) -> None:
    path.chmod(0o600)
    path.write_bytes(content)


def manifest(store: Store) -> Path:
    return store.artifacts.manifest(str(store.plans.list()[0].artifact))


DAMAGES: dict[str, tuple[Callable[[Store], object], tuple[str, str]]] = {
    "flipped": (lambda s: rewrite(plan_file(s), b"3"), ("damaged", "blob")),
    "truncated": (lambda s: rewrite(plan_file(s), b""), ("damaged", "blob")),
    "blob gone": (lambda s: plan_file(s).unlink(), ("missing", "blob")),
    "manifest gone": (lambda s: manifest(s).unlink(), ("missing", "artifact")),
    "manifest cut": (lambda s: rewrite(manifest(s), b"[{"), ("damaged", "manifest")),
    "manifest of another": (lambda s: rewrite(manifest(s), b"[]"), ("damaged", "manifest")),
    "stray manifest": (lambda s: (s.artifacts.root / "manifests" / "x.json").write_text("[]"), ("stray", "file")),
    "stray blob": (lambda s: (s.artifacts.root / "blobs" / "x").write_text(""), ("stray", "file")),
    "stray file": (lambda s: (s.artifacts.root / "x").write_text(""), ("stray", "file")),
    "temporary": (lambda s: (s.artifacts.root / "temporary" / "tmpx").write_text("half"), ("leftover", "file")),
    "folder": (
        lambda s: (s.artifacts.root / "folders" / str(s.plans.list()[0].artifact) / "x").write_text(""),
        ("leftover", "file"),
    ),
    "unnamed": (
        lambda s: s.artifacts.add(folder_with(s.artifacts.root.parent / "n", {"n": b"n"})), ("orphaned", "artifact"),
    ),
    "plan no JSON": (lambda s: changed(s, "UPDATE plan SET record = '{'"), ("damaged", "plan row")),
    "plan no plan": (lambda s: changed(s, "UPDATE plan SET record = '[1]'"), ("damaged", "plan row")),
    "plan latency": (lambda s: changed(s, "UPDATE plan SET latency_ms = 0.5"), ("damaged", "plan row")),
    "plan digest": (lambda s: changed(s, f"UPDATE plan SET artifact = '{digest('x')}'"), ("damaged", "plan row")),
    "plan artifact": (lambda s: changed(s, f"UPDATE plan SET artifact = '{digest('x')}'"), ("missing", "artifact")),
    "plan evidence": (lambda s: changed(s, "UPDATE plan SET evidence = '{'"), ("damaged", "plan row")),
    "trial latency": (lambda s: changed(s, "UPDATE trial SET latency_ms = -1"), ("damaged", "trial row")),
    "trial infinite": (lambda s: changed(s, "UPDATE trial SET latency_ms = 9e999"), ("damaged", "trial row")),
    "trial no JSON": (lambda s: changed(s, "UPDATE trial SET configuration = 'x'"), ("damaged", "trial row")),
    "trial state": (lambda s: changed(s, "UPDATE trial SET state = 'x'"), ("damaged", "trial row")),
    "trial artifact": (lambda s: changed(s, f"UPDATE trial SET artifact = '{digest('x')}'"), ("missing", "artifact")),
    "trial backend": (lambda s: changed(s, "UPDATE trial SET backend = 'x'"), ("damaged", "trial row")),
    "samples": (lambda s: changed(s, "UPDATE measurement SET record = '{}'"), ("damaged", "measurement row")),
    "sample moved": (lambda s: changed(s, "UPDATE measurement SET role = 'finals'"), ("damaged", "measurement row")),
    **{
        f"kernel {column}": (
            lambda s, column=column, value=value: changed(s, f"UPDATE kernel_trial SET {column} = {value}"),
            ("damaged", "kernel_trial row"),
        )
        for column, value in {
            "problem": "'x'", "device_class": "'x'", "toolchain": "'x'", "kind": "'x'", "configuration": "'x'",
            "state": "'failed'", "median_us": "9.0", "created": "'x'", "record": "'{'",
        }.items()
    },
    "kernel no trial": (lambda s: changed(s, "UPDATE kernel_trial SET record = '{}'"), ("damaged", "kernel_trial row")),
    **{
        f"kernel final {column}": (
            lambda s, column=column, value=value: changed(s, f"UPDATE kernel_final SET {column} = {value}"),
            ("damaged", "kernel_final row"),
        )
        for column, value in {
            "uid": "'x'", "problem": "'x'", "device_class": "'x'", "best": "'x'", "best_us": "9.0", "created": "'x'",
            "record": "'{}'",
        }.items()
    },
    "no trial": (lambda s: changed(s, "DELETE FROM trial"), ("orphaned", "measurement row")),
    "no study": (lambda s: changed(s, "DELETE FROM study"), ("orphaned", "trial row")),
    "no workload": (lambda s: changed(s, "DELETE FROM workload"), ("orphaned", "study row")),
    "no device": (lambda s: changed(s, "DELETE FROM device"), ("orphaned", "study row")),
    "workload": (lambda s: changed(s, "UPDATE workload SET batch = 7"), ("damaged", "workload row")),
    "device": (lambda s: changed(s, "UPDATE device SET record = '{}'"), ("damaged", "device row")),
    "study seed": (lambda s: changed(s, "UPDATE study SET seed = 9"), ("damaged", "study row")),
    "study date": (lambda s: changed(s, "UPDATE study SET created = 'x'"), ("damaged", "study row")),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGES)
def test_every_damage_is_found(store: Store, name: str) -> None:
    damage, expected = DAMAGES[name]
    damage(store)
    if name == "folder":
        os.utime(store.artifacts.root / "folders" / str(store.plans.list()[0].artifact))
    assert expected in found(store)


def test_what_a_failed_kernel_leaves_out_is_no_damage(store: Store) -> None:
    store.kernels.add([kernel(1, failure=replace(lost("inaccurate"), figure=float("inf")), error=float("nan"))])
    store.kernels.add([kernel(2, failure=lost("inaccurate"), samples_us=(3.0,), error=0.5)])
    assert check(store, LATER) == []


def test_garbage_takes_no_kernel_trial(store: Store) -> None:
    before = store.kernels.problems()
    collect_garbage(store, LATER)
    assert before and store.kernels.problems() == before


def test_one_bad_row_does_not_hide_another(store: Store) -> None:
    study = store.studies.list()[0]
    for level in range(1, 4):
        store.trials.finish(failed(store.trials.claim(study.uid, configuration(level), TOOLCHAIN.digest)))
    changed(store, "UPDATE trial SET configuration = 'x' WHERE number IN (1, 3)")
    assert [(f.kind, f.what) for f in check(store, LATER)].count(("damaged", "trial row")) == 2


def test_garbage_goes_and_what_a_plan_or_trial_needs_stays(store: Store, tmp_path: Path) -> None:
    root, needed = store.artifacts.root, store.artifacts.digests()
    unnamed = store.artifacts.add(folder_with(tmp_path / "third", {"w": b"shared", "code": b"3"}))
    store.artifacts.open(unnamed)
    (root / "temporary" / "half").write_bytes(b"x" * 100)
    (root / "temporary" / "built").mkdir()
    (root / "blobs" / "00").mkdir(exist_ok=True)
    (root / "blobs" / "00" / ("00" + digest("x")[2:])).write_bytes(b"y")
    would = collect_garbage(store, LATER, dry_run=True)
    assert store.artifacts.has(unnamed) and (root / "temporary" / "half").exists()
    gone = collect_garbage(store, LATER)
    assert gone == would
    assert gone.artifacts == (unnamed,) and len(gone.blobs) == 2 and len(gone.leftovers) == 2
    assert gone.size_bytes == 1 + 1 + 100
    assert store.artifacts.digests() == needed
    for each in needed:
        assert (store.artifacts.open(each) / "w").read_bytes() == b"shared"
    assert check(store, LATER) == []
    assert os.listdir(root / "temporary") == [] and os.listdir(root / "folders") != [unnamed]


def test_what_a_study_has_just_added_or_is_writing_stays(store: Store, tmp_path: Path) -> None:
    built = folder_with(tmp_path / "third", {"code": b"3"})
    old = store.artifacts.add(built)
    os.utime(store.artifacts.manifest(old), (1.0, 1.0))
    assert [f.name for f in check(store, NOW)] == [old]
    assert store.artifacts.add(built) == old  # added again, so a study is about to name it
    assert check(store, NOW) == []
    with store.artifacts.scratch() as folder, open(store.artifacts.root / "temporary" / "half", "wb") as half:
        fcntl.flock(half, fcntl.LOCK_EX)
        assert collect_garbage(store, NOW) == collect_garbage(store, NOW, dry_run=True)
        assert folder.is_dir() and (store.artifacts.root / "temporary" / "half").exists()
        assert check(store, NOW) == []
    assert [finding.name for finding in check(store, NOW)] == ["temporary/half"]
    assert store.artifacts.has(old)


def test_a_plan_whose_column_and_record_differ_keeps_both_artifacts(store: Store) -> None:
    changed(store, "UPDATE plan SET artifact = (SELECT artifact FROM trial)", "UPDATE trial SET artifact = NULL")
    assert collect_garbage(store, LATER).artifacts == ()
    assert len(store.artifacts.digests()) == 2


def test_nothing_goes_while_it_is_unknown_what_a_plan_needs(store: Store) -> None:
    rewrite(manifest(store), b"{")
    blobs = [path for path in (store.artifacts.root / "blobs").rglob("*") if path.is_file()]
    assert collect_garbage(store, LATER).blobs == ()
    assert len(blobs) == 3 and all(path.exists() for path in blobs)


def test_a_database_without_artifacts_is_sound(tmp_path: Path) -> None:
    with Store.open(str(tmp_path / "a.db")) as store:
        assert check(store, LATER) == [] and collect_garbage(store, LATER).artifacts == ()
        assert not store.artifacts.root.exists()


@pytest.mark.parametrize("latency", ["-1.0", "0.0", "NaN", "Infinity", "1e999", '"x"'])
def test_a_plan_row_that_holds_no_plan_is_told(store: Store, latency: str) -> None:
    record = json.dumps(store.plans.list()[0].as_dict()).replace('"latency_ms": 1.0', f'"latency_ms": {latency}')
    with sqlite3.connect(store.location) as connection:
        connection.execute("UPDATE plan SET record = ?", (record,))
    connection.close()
    for read in (
        store.plans.list,
        lambda: PlanReader(Path(store.location)).plans.list(),
        lambda: store.plans.find(KEY),
    ):
        with pytest.raises(DatabaseError, match=r"cannot be read\n.*\n.*\n  run next: autotune db check"):
            read()
    assert found(store) == {("damaged", "plan row")}


def test_findings_are_plain_data(store: Store) -> None:
    rewrite(plan_file(store), b"3")
    (finding,) = check(store, LATER)
    assert json.loads(json.dumps(finding.as_dict())) == {
        "kind": "damaged", "what": "blob", "name": plan_file(store).name, "found": finding.found,
        "remedy": "autotune tune STUDY, which builds it again",
    }  # fmt: skip
