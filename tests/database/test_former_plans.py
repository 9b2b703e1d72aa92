"""Plans that others have replaced under another toolchain."""

from pathlib import Path

import pytest
from sqlalchemy import text

from autotune.database.check import check, collect_garbage
from autotune.database.exchange import export_studies, merge_file
from autotune.database.store import Store
from autotune.database.sweep import GRACE_S
from autotune.errors import DatabaseError
from autotune.records.device import Toolchain
from autotune.records.plan import Plan
from autotune.testing.sample_records import NEWER_TOOLCHAIN, TOOLCHAIN
from tests.database.records import begin, digest, folder_with, key, measured, plan
from tests.database.test_read_only import child
from tests.database.test_roofs import former, rewritten
from tests.databases import Databases
from tests.read_only import WAYS


def uids(store: Store) -> tuple[list[str], list[str]]:
    """The plans and the former plans."""
    return [row.uid for row in store.plans.list()], [row.uid for row in store.plans.former()]


def test_of_each_other_toolchain_the_newest_plan_is_kept_and_never_looked_up(
    databases: Databases, tmp_path: Path
) -> None:
    with Store.open(databases.url(tmp_path / "a.db")) as store:
        for uid, torch, day, latency_ms, kept in (
            ("a", "2.11", 1, 5.0, []),
            ("b", "2.11", 2, 5.0, []),
            ("c", "2.12", 3, 9.0, ["b"]),
            ("d", "2.13", 4, 9.0, ["c", "b"]),
            ("e", "2.11", 5, 9.0, ["d", "c"]),
            ("f", "2.13", 6, 9.0, ["e", "c"]),
        ):
            store.plans.promote(measured(uid, torch, day, latency_ms=latency_ms))
            assert uids(store) == ([uid], kept)
        found = store.plans.find(key())
        assert found is not None and found.uid == "f"
        assert store.plans.former()[0] == measured("e", "2.11", 5, latency_ms=9.0)
        assert [row.uid for row in store.plans.nearest(key(structure=digest("x")), "resnet50")] == ["f"]
        with pytest.raises(ValueError, match="no plan 'e'"):
            store.plans.get("e")
        assert check(store, 0.0) == []


def test_plans_of_other_keys_are_kept_apart(tmp_path: Path) -> None:
    with Store.open(str(tmp_path / "a.db")) as store:
        for uid, weights in (("a", "1"), ("b", "2")):
            store.plans.promote(measured(uid, "2.11", 1, weights=digest(weights)))
            store.plans.promote(measured(f"{uid}2", "2.12", 2, weights=digest(weights)))
        assert sorted(uids(store)[1]) == ["a", "b"]


def test_a_plan_that_is_dated_after_its_successor_is_not_kept(tmp_path: Path) -> None:
    with Store.open(str(tmp_path / "a.db")) as store:
        for uid, torch, day in (("a", "2.11", 1), ("b", "2.12", 5), ("c", "2.13", 9)):
            store.plans.promote(measured(uid, torch, day))
        assert uids(store) == (["c"], ["b", "a"])
        store.plans.promote(measured("d", "2.14", 2))
        assert uids(store) == (["d"], ["a"])


def test_no_artifact_is_kept_for_a_former_plan(tmp_path: Path) -> None:
    with Store.open(str(tmp_path / "a.db")) as store:
        artifacts = [store.artifacts.add(folder_with(tmp_path / name, {"w": name.encode()})) for name in "ab"]
        store.plans.promote(measured("a", "2.11", 1, artifact=artifacts[0]))
        store.plans.promote(measured("b", "2.12", 2, artifact=artifacts[1]))
        assert store.plans.former()[0].artifact is None and store.artifacts.digests() == artifacts[1:]
        assert collect_garbage(store, 1e12 + GRACE_S).size_bytes == 0 and check(store, 1e12) == []


def test_a_plan_that_is_built_again_for_another_toolchain_is_no_new_measurement(tmp_path: Path) -> None:
    with Store.open(str(tmp_path / "a.db")) as store:
        artifact = store.artifacts.add(folder_with(tmp_path / "built", {"w": b"1"}))
        for stored in (measured("a", "2.11", 1), plan("old", weights=digest("old"))):
            store.plans.promote(stored)
            again = store.plans.replace_artifact(stored.uid, artifact, stored.weights, NEWER_TOOLCHAIN, kernels="")
            assert (again.uid, again.created, again.toolchain) == (stored.uid, stored.created, NEWER_TOOLCHAIN)
        assert store.plans.former() == []
        other = store.plans.replace_artifact("a", artifact, digest("other"), NEWER_TOOLCHAIN)
        assert other.uid != "a" and store.plans.former() == []


def test_new_figures_under_another_toolchain_are_those_of_a_new_plan(tmp_path: Path) -> None:
    with Store.open(str(tmp_path / "a.db")) as store:
        artifact = store.artifacts.add(folder_with(tmp_path / "built", {"w": b"1"}))
        first = measured("a", "2.11", 1)
        store.plans.promote(first)

        def timed_again(uid: str, torch: str, latency_ms: float) -> Plan:
            changes = {"latency_ms": latency_ms, "evidence": measured("x", torch, 1).evidence}
            return store.plans.replace_artifact(uid, artifact, first.weights, NEWER_TOOLCHAIN, **changes)

        assert timed_again("a", "2.11", 0.95).uid == "a" and store.plans.former() == []
        again = timed_again("a", "2.12", 1.05)
        assert again.uid != "a" and again.created > first.created
        assert [(row.uid, row.latency_ms) for row in store.plans.former()] == [("a", 0.95)]
        assert store.plans.list() == [again]


def test_evidence_without_versions_was_measured_under_those_that_the_plan_depends_on(tmp_path: Path) -> None:
    assert plan().measured_under == TOOLCHAIN
    assert measured("a", "2.11", 1).measured_under == Toolchain.of({"python": "3.11", "torch": "2.11"})
    with Store.open(str(tmp_path / "a.db")) as store:
        store.plans.promote(plan("a"))
        store.plans.promote(plan("b", toolchain=NEWER_TOOLCHAIN, created="2026-02-01T00:00:00+00:00"))
        assert uids(store) == (["b"], ["a"])


def test_a_damaged_plan_does_not_refuse_its_successor(tmp_path: Path) -> None:
    with Store.open(str(tmp_path / "a.db")) as store:
        store.plans.promote(measured("a", "2.11", 1))
        with store.transactions.writing() as session:
            session.execute(text("UPDATE plan SET evidence = '{'"))
        store.plans.promote(measured("b", "2.12", 2))
        assert uids(store) == (["b"], [])


def exported(folder: Path, name: str, *plans: Plan) -> Path:
    """The file of a database with these plans."""
    with Store.open(str(folder / f"{name}.db")) as store:
        begin(store)
        for promoted in plans:
            store.plans.promote(promoted)
        export_studies(store, ["resnet50"], folder / f"{name}.zip")
    return folder / f"{name}.zip"


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_hosts_of_several_versions_are_together_after_a_merge_in_any_order(
    databases: Databases, tmp_path: Path, order: tuple[int, ...]
) -> None:
    files = [
        exported(tmp_path, "x", measured("a", "2.11", 1), measured("b", "2.12", 3)),
        exported(tmp_path, "y", measured("c", "2.11", 2)),
        exported(tmp_path, "z", measured("d", "2.12", 1), measured("e", "2.13", 2)),
    ]
    with Store.open(databases.url(tmp_path / "all.db")) as store:
        for file in (files[number] for number in order):
            merge_file(store, file)
        assert uids(store) == (["b"], ["c", "e"])
        for file in files:
            assert merge_file(store, file)["former_plans"]["added"] == 0
        assert uids(store) == (["b"], ["c", "e"]) and check(store, 0.0) == []


def test_a_former_plan_that_loses_against_nothing_here_waits_for_its_successor(tmp_path: Path) -> None:
    file = exported(tmp_path, "x", measured("a", "2.11", 1), measured("b", "2.12", 3))
    with Store.open(str(tmp_path / "all.db")) as store:
        assert merge_file(store, rewritten(file, plans=[]))["former_plans"] == {"added": 1, "known": 0}
        assert uids(store) == ([], ["a"]) and store.plans.find(key()) is None
        merge_file(store, file)
        assert uids(store) == (["b"], ["a"])


def test_a_file_of_an_older_version_is_merged_and_one_with_malformed_plans_refused(tmp_path: Path) -> None:
    file = exported(tmp_path, "x", measured("a", "2.11", 1), measured("b", "2.12", 3))
    with Store.open(str(tmp_path / "all.db")) as store:
        good = measured("a", "2.11", 1).as_dict()
        for change in ({"artifact": digest("x")}, {"created": "yesterday"}, {"uid": ""}, {"structure": "x"},
                       {"name": "a\x00b"}, {"evidence": {"toolchain": {"torch": {}}}},
                       {"evidence": {"toolchain": ["torch"]}}):  # fmt: skip
            with pytest.raises(DatabaseError, match="cannot be merged"):
                merge_file(store, rewritten(file, former_plans=[{**good, **change}]))
        assert uids(store) == ([], [])
        older = rewritten(file, former_plans=None, schema_revision="0004")
        assert merge_file(store, older)["former_plans"] == {"added": 0, "known": 0} and uids(store) == (["b"], [])


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("record = '{}'", "no record"),
        ("evidence = '{'", "no record"),
        (f"measured = '{digest('x')}'", "measured is"),
        ("created = '2026-01-05T00:00:00.000000+00:00'", "created is"),
        (f'record = replace(record, \'"artifact":null\', \'"artifact":"{digest("x")}"\')', "kept for nobody"),
    ],
)
def test_a_damaged_row_is_named_by_check(tmp_path: Path, damage: str, reason: str) -> None:
    with Store.open(str(tmp_path / "a.db")) as store:
        store.plans.promote(measured("a", "2.11", 1))
        store.plans.promote(measured("b", "2.12", 2))
        with store.transactions.writing() as session:
            session.connection().exec_driver_sql(f"UPDATE former_plan SET {damage}")
        (finding,) = check(store, 0.0)
        assert finding.what == "former_plan row" and reason in finding.found


@pytest.mark.parametrize("revision", ["0003", "0004"])
def test_an_earlier_database_is_brought_up_to_date_with_all_that_it_has(
    databases: Databases, tmp_path: Path, revision: str
) -> None:
    url = databases.url(tmp_path / "a.db")
    with Store.open(url) as store:
        store.plans.promote(measured("a", "2.11", 1))
        store.plans.promote(measured("b", "2.12", 2))
    former(url, revision)
    with Store.open(url) as store:
        assert uids(store) == (["b"], []) and check(store, 0.0) == []
        store.plans.promote(measured("c", "2.13", 3))
        assert uids(store) == (["c"], ["b"])


READS = """
import json, sys, time
from pathlib import Path
from autotune.database.check import check
from autotune.database.exchange import export_studies
from autotune.database.store import Store
with Store.open(sys.argv[1], create=False) as store:
    print(json.dumps({
        "plans": [row.uid for row in store.plans.list()], "former": [row.uid for row in store.plans.former()],
        "findings": [finding.found for finding in check(store, time.time())],
        "exported": export_studies(store, ["resnet50"], Path(sys.argv[2]))["former_plans"],
    }))
"""


@pytest.mark.parametrize(("revision", "there"), [("0003", []), ("0004", []), ("0005", ["a"])])
@pytest.mark.parametrize("way", WAYS)
def test_a_database_that_nobody_may_write_is_read_without_an_upgrade(
    tmp_path: Path, way: str, revision: str, there: list[str]
) -> None:
    file = tmp_path / "frozen" / "a.db"
    with Store.open(str(file)) as store:
        begin(store)
        store.plans.promote(measured("a", "2.11", 1))
        store.plans.promote(measured("b", "2.12", 2))
    former(str(file), revision)
    seen = child(way, file.parent, READS, str(file), str(tmp_path / "out.zip"))
    assert seen == {"plans": ["b"], "former": there, "findings": [], "exported": len(there)}
