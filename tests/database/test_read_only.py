"""Databases and artifact stores that this process may only read."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import make_url, text

from autotune.database import migrate
from autotune.database.artifacts import ArtifactStore
from autotune.database.engine import engine_at, for_writing
from autotune.database.location import locate
from autotune.database.plan_rows import READABLE, REVISIONS
from autotune.database.sqlite_file import ReadOnlyFile, is_read_only
from autotune.database.store import Store
from autotune.errors import DatabaseError
from autotune.programs.reliability.postgresql import Server
from tests.database.records import begin, folder_with, plan, workload
from tests.databases import TEMPLATE
from tests.read_only import ROOT, WAYS, run_python

OLD = REVISIONS[REVISIONS.index(READABLE[0]) - 1]
"""The newest revision that has to be upgraded before it is read."""

LOGS = ("none", "with its index", "without its index")
"""What a process that was killed left beside the file."""

KILLED = """
import os, sys
from autotune.database.store import Store
from tests.database.records import plan, workload
store = Store.open(sys.argv[1])
store.plans.promote(plan("p2", workload("bert-base")))
os._exit(0)
"""

READS = """
import json, sys
from pathlib import Path
from autotune.database.engine import engine_at
from autotune.database.location import locate
from autotune.database.reading import plan_reader
from autotune.database.store import Store
from autotune.errors import AutotuneError
from tests.database.records import begin, plan

def refusal(work):
    try:
        work()
    except AutotuneError as error:
        return [type(error).__name__, str(error)]

url = sys.argv[1]
with plan_reader(url) as reader, Store.open(url) as store:
    asked = plan()
    print(json.dumps({
        "read_only": [store.read_only, locate(url).read_only],
        "plans": [[each.uid for each in source.plans.list()] for source in (reader, store)],
        "found": store.plans.find(asked.key).uid,
        "studies": [study.name for study in store.studies.list()],
        "refused": [refusal(lambda: store.plans.promote(asked)), refusal(lambda: begin(store, "other"))],
    }))
"""


def child(way: str, folder: Path, code: str, *arguments: str) -> Any:
    done = run_python(way, folder, code, *arguments)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("log", LOGS)
@pytest.mark.parametrize("way", WAYS)
def test_a_file_that_nobody_may_write_is_read_with_its_log(tmp_path: Path, way: str, log: str) -> None:
    folder = tmp_path / "frozen"
    file = folder / "a b.db"
    with Store.open(str(file)) as store:
        begin(store)
        store.plans.promote(plan("p1"))
    assert not is_read_only(file)
    if log != "none":
        subprocess.run([sys.executable, "-c", KILLED, str(file)], cwd=ROOT, check=True)
        assert (folder / "a b.db-wal").stat().st_size > 0
    if log == "without its index":
        (folder / "a b.db-shm").unlink()
    seen = child(way, folder, READS, str(file))
    there = ["p1"] if log == "none" else ["p2", "p1"]
    assert seen["plans"] == [there, there] and seen["found"] == "p1" and seen["studies"] == ["resnet50"]
    assert seen["read_only"] == [True, True]
    for kind, message in seen["refused"]:
        assert kind == "DatabaseError"
        assert f"{file} is read-only" in message and "--db PATH" in message


@pytest.mark.parametrize("way", WAYS)
def test_an_old_schema_that_nobody_may_write_names_the_upgrade(tmp_path: Path, way: str) -> None:
    folder = tmp_path / "frozen"
    engine = engine_at(locate(str(folder / "a.db")))
    with for_writing(engine).begin() as connection:
        migrate.downgrade(connection, OLD)
    engine.dispose()
    code = """
import json, sys
from autotune.database.reading import plan_reader
from autotune.database.store import Store
from autotune.errors import DatabaseError
assert plan_reader(sys.argv[1]) is None
try:
    Store.open(sys.argv[1])
except DatabaseError as error:
    print(json.dumps(str(error)))
"""
    message = child(way, folder, code, str(folder / "a.db"))
    assert "read-only" in message and f"schema {OLD}" in message and "autotune db upgrade" in message


def test_while_another_process_may_write_its_log_is_heeded(tmp_path: Path) -> None:
    """And without a log the file is taken for one that nobody changes, or no index could be made beside it."""
    file = tmp_path / "a.db"
    with Store.open(str(file)) as store:
        begin(store)
        assert ReadOnlyFile(file).uri.endswith("a.db?mode=ro")
    assert ReadOnlyFile(file).uri.endswith("a.db?mode=ro&immutable=1")


def test_a_log_that_cannot_be_copied_names_the_folder_for_temporary_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.db").write_bytes(b"")
    (tmp_path / "a.db-wal").write_bytes(b"log")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "absent"))
    with pytest.raises(DatabaseError, match="TMPDIR"):
        ReadOnlyFile(tmp_path / "a.db")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    source = ReadOnlyFile(tmp_path / "a.db")
    assert len(list(tmp_path.glob("autotune-scratch-database-*"))) == 1
    source.close()
    assert list(tmp_path.glob("autotune-scratch-database-*")) == []


ARTIFACTS = """
import json, sys
from pathlib import Path
from autotune.database.artifacts import ArtifactStore, stored
from autotune.errors import ArtifactError

def content(folder):
    return {p.relative_to(folder).as_posix(): p.read_text() for p in sorted(folder.rglob("*")) if p.is_file()}

def refusal(work):
    try:
        work()
    except ArtifactError as error:
        return str(error)

def take(digest):
    with store.verified(digest) as folder:
        return content(folder)

root, built, opened, fresh, damaged = sys.argv[1:]
store = ArtifactStore(Path(root))
again = store.open(fresh)
with stored(again) as own, stored(store.open(opened)) as other:
    loaded = [content(own), content(other)]
document = {
    "read_only": store.read_only,
    "has": [store.has(opened), store.has(fresh), store.has("0" * 64)],
    "files": [file.name for file in store.files(fresh)],
    "taken": [take(opened), take(fresh)],
    "opened": [content(store.open(opened)), content(again)],
    "loaded": loaded,
    "inside": [store.open(opened).is_relative_to(store.root), again.is_relative_to(store.root)],
    "damaged": [refusal(lambda: take(damaged)), refusal(lambda: store.open(damaged))],
    "refused": [refusal(lambda: store.add(Path(built))), refusal(lambda: store.remove(fresh))],
}
store.close()
print(json.dumps({**document, "left": again.exists()}))
"""


@pytest.mark.parametrize("way", WAYS)
def test_an_artifact_store_that_nobody_may_write_gives_verified_files(tmp_path: Path, way: str) -> None:
    folder = tmp_path / "frozen"
    folder.mkdir()
    store = ArtifactStore(folder / "a-artifacts")
    assert not store.read_only
    files: dict[str, dict[str, bytes]] = {
        "opened": {"model.so": b"1", "data/w": b"shared"},
        "fresh": {"model.so": b"2", "data/w": b"shared"},
        "damaged": {"model.so": b"3"},
    }
    digests = [store.add(folder_with(tmp_path / name, content)) for name, content in files.items()]
    store.open(digests[0])
    blob = store.blob(store.files(digests[2])[0].sha256)
    blob.chmod(0o600)
    blob.write_bytes(b"4")
    seen = child(way, folder, ARTIFACTS, str(store.root), str(tmp_path / "opened"), *digests)
    texts = [{name: content.decode() for name, content in sorted(files[key].items())} for key in ("opened", "fresh")]
    assert seen["taken"] == seen["opened"] == texts and seen["loaded"] == texts[::-1]
    assert seen["read_only"] and seen["has"] == [True, True, False] and seen["files"] == ["data/w", "model.so"]
    assert seen["inside"] == [True, False] and not seen["left"]
    assert all("model.so is missing or does not match its SHA-256" in each for each in seen["damaged"])
    assert all("cannot be used" in each for each in seen["refused"])


def test_an_artifact_store_that_this_user_may_not_enter_says_so(tmp_path: Path) -> None:
    folder = tmp_path / "frozen"
    folder.mkdir()
    store = ArtifactStore(folder / "a-artifacts")
    digest = store.add(folder_with(tmp_path / "built", {"model.so": b"1"}))
    code = """
import json, os, sys
from pathlib import Path
from autotune.database.artifacts import ArtifactStore
from autotune.errors import ArtifactError
store, digest = ArtifactStore(Path(sys.argv[1])), sys.argv[2]
os.chmod(store.root, 0)
messages = []
for ask in (store.has, store.files, store.open, lambda digest: store.verified(digest).__enter__()):
    try:
        ask(digest)
    except ArtifactError as error:
        messages.append(str(error))
print(json.dumps(messages))
"""
    messages = child("permissions", folder, code, str(store.root), digest)
    assert len(messages) == 4
    assert all("Permission denied" in each and f"chmod -R go+rX {store.root}" in each for each in messages)


@pytest.mark.parametrize("way", WAYS)
def test_check_reads_what_nobody_may_write_and_gc_refuses(tmp_path: Path, way: str) -> None:
    folder = tmp_path / "frozen"
    with Store.open(str(folder / "a.db")) as store:
        store.plans.promote(plan("p1", artifact=store.artifacts.add(folder_with(tmp_path / "built", {"w": b"1"}))))
        orphan = store.artifacts.add(folder_with(tmp_path / "orphan", {"w": b"2"}))
    code = """
import json, sys, time
from autotune.database.check import check, collect_garbage
from autotune.database.store import Store
from autotune.errors import DatabaseError
later = time.time() + 1e6
with Store.open(sys.argv[1]) as store:
    found = [finding.name for finding in check(store, later) if finding.what == "artifact"]
    would = collect_garbage(store, later, dry_run=True).artifacts
    try:
        collect_garbage(store, later)
    except DatabaseError as error:
        print(json.dumps([found, would, str(error)]))
"""
    found, would, message = child(way, folder, code, str(folder / "a.db"))
    assert found == would == [orphan] and "read-only" in message


@pytest.mark.parametrize("how", ["may only select", "read-only transactions"])
def test_a_role_that_may_only_read_looks_plans_up(postgresql: Server, how: str) -> None:
    name = f"reading_{'select' if how == 'may only select' else 'transactions'}"
    url = postgresql.create(name, TEMPLATE)
    with Store.open(url) as store:
        begin(store)
        store.plans.promote(plan("p1"))
        assert not store.read_only
    engine = engine_at(locate(url))
    rights = "SELECT" if how == "may only select" else "ALL"
    with for_writing(engine).begin() as connection:
        connection.execute(text(f"CREATE ROLE {name} LOGIN PASSWORD 'secret'"))
        connection.execute(text(f"GRANT {rights} ON ALL TABLES IN SCHEMA public TO {name}"))
        if rights == "ALL":
            connection.execute(text(f"ALTER ROLE {name} SET default_transaction_read_only = on"))
    reader = make_url(url).set(username=name, password="secret").render_as_string(hide_password=False)
    with Store.open(reader, create=False) as store:
        assert store.read_only
        assert [each.uid for each in store.plans.list()] == ["p1"] and store.studies.list()
        assert store.plans.find(plan().key) == store.plans.get("p1")
        with pytest.raises(DatabaseError, match=r"is read-only\n(.*\n)*.*--db PATH"):
            store.plans.promote(plan("p2", workload("bert-base")))
    with for_writing(engine).begin() as connection:
        migrate.downgrade(connection, OLD)
    with pytest.raises(DatabaseError, match="read-only") as caught:
        Store.open(reader)
    assert "autotune db upgrade" in str(caught.value)
    with for_writing(engine).begin() as connection:
        connection.execute(text(f"DROP OWNED BY {name}"))
        connection.execute(text(f"DROP ROLE {name}"))
    engine.dispose()
    postgresql.drop(name)
