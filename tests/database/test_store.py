"""The store on SQLite and on PostgreSQL, and what only a look behind it shows."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import text

from autotune.database.plan_rows import StoredEvidence
from autotune.database.store import Store
from autotune.errors import DatabaseError
from autotune.records.evidence import PlanEvidence
from autotune.records.identity import objective_content
from autotune.records.objective import Metric, Objective
from autotune.testing.store_conformance import StoreConformance
from tests.database.records import begin, key, plan, tried
from tests.databases import Databases


class TestStore(StoreConformance):
    @pytest.fixture
    def url(self, tmp_path: Path, databases: Databases) -> str:
        return databases.url(tmp_path / "a.db")


@pytest.fixture
def store(tmp_path: Path, databases: Databases) -> Iterator[Store]:
    with Store.open(databases.url(tmp_path / "a.db")) as opened:
        yield opened


@pytest.mark.parametrize("value", ["-1", "0", "1e300", "NULL"])
def test_the_database_itself_refuses_a_false_latency(store: Store, value: str) -> None:
    tried(store, begin(store))
    store.plans.promote(plan())
    for table in ("trial", "plan"):
        with pytest.raises(DatabaseError, match="constraint"), store.transactions.writing() as session:
            session.execute(text(f"UPDATE {table} SET latency_ms = {value}"))


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
    with store.transactions.writing() as session:
        session.execute(text("ALTER TABLE plan RENAME TO mislaid"))
    with pytest.raises(DatabaseError, match=r"no such table|does not exist"):
        store.plans.list()
    with pytest.raises(DatabaseError, match=r"no such table|does not exist"):
        store.plans.promote(plan())


@pytest.mark.parametrize("column", ["record", "evidence", "objective"])
@pytest.mark.parametrize("content", ["{", "[1]", "7"])
def test_a_plan_whose_column_is_no_json_is_reported(store: Store, column: str, content: str) -> None:
    store.plans.promote(plan("p7"))
    with store.transactions.writing() as session:
        session.execute(text(f"UPDATE plan SET {column} = :content"), {"content": content})
    reads = {
        "record": (store.plans.list, lambda: store.plans.get("p7"), lambda: store.plans.find(key())),
        "evidence": (lambda: store.plans.list()[0].evidence.study, lambda: store.plans.list()[0].as_dict()),
        "objective": (lambda: store.plans.find(key()),),
    }
    for read in reads[column]:
        with pytest.raises(
            DatabaseError, match=r"Plan p7 .*cannot be read\n.*found.*\n.*\n  run next: autotune db check"
        ):
            read()
