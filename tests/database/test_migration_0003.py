"""A database from before conditions, kernels and forms were kept: nothing is lost, and each plan is found."""

from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import text

from autotune.database import migrate
from autotune.database.check import check
from autotune.database.engine import engine_at, for_writing
from autotune.database.location import locate
from autotune.database.store import Store
from autotune.records.objective import Metric, Objective
from tests.database.records import begin, configuration, digest, kernel, key, plan, tried
from tests.databases import Databases

STRICT = Objective(signal_error=1e-3, metrics=(Metric(function="m:f", at_most=1.0),))


@pytest.fixture
def former(databases: Databases, tmp_path: Path):
    """The URL of a database of revision 0002 with a study, trials, kernel trials and plans, and what was in it."""
    url = databases.url(tmp_path / "a.db", empty=True)
    with Store.open(url) as store:
        study = begin(store, conditions=None)
        kept = tried(store, study)
        left_out = store.trials.claim(study.uid, configuration(7), digest("toolchain"))
        store.kernels.add([kernel()])
        store.plans.promote(plan("p1"))
        store.plans.promote(plan("p2", objective=STRICT))
        with store.transactions.writing() as session:
            session.execute(text("UPDATE trial SET state = 'pruned' WHERE uid = :uid"), {"uid": left_out.uid})
    engine = engine_at(locate(url))
    with for_writing(engine).begin() as connection:
        migrate.downgrade(connection, "0002")
        records = connection.execute(text("SELECT record FROM plan")).scalars().all()
        assert len(records) == 2 and not any('"form"' in record for record in records)
    engine.dispose()
    return url, study, kept


def test_every_plan_is_found_and_every_row_is_sound(former):
    url, study, kept = former
    with Store.open(url) as store:
        assert check(store, 0.0) == []
        assert store.studies.get(study.uid) == study and study.conditions is None
        assert store.trials.of_study(study.uid) == [kept], "what the budget had ended is no result"
        assert store.plans.find(key(form="of a model")) == plan("p1")
        assert store.plans.find(key(objective=STRICT)) == plan("p2", objective=STRICT)
        assert store.kernels.of(kernel().problem, kernel().device_class, kernel().toolchain) == (kernel(),)


def test_what_it_knows_is_taken_over_by_no_study_that_may_differ(former):
    url, study, kept = former
    with Store.open(url) as store:
        again = begin(store)
        assert again.uid != study.uid, "whether the inputs were these is not known"
        assert store.trials.earlier(again.identity, kept.toolchain, kept.configuration) is None
        assert store.plans.find(replace(again.identity.plan, objective=STRICT)).fingerprint == 1  # type: ignore[union-attr]


def test_a_damaged_plan_does_not_keep_a_database_from_being_brought_up_to_date(former):
    url, _, _ = former
    engine = open_engine_of(url, "0002")
    with for_writing(engine).begin() as connection:
        connection.execute(text("UPDATE plan SET record = '{' WHERE uid = 'p2'"))
    engine.dispose()
    with Store.open(url) as store:
        assert [finding.name for finding in check(store, 0.0)] == ["p2"]
        assert store.plans.get("p1") == plan("p1")


def open_engine_of(url: str, revision: str):
    engine = engine_at(locate(url))
    with for_writing(engine).begin() as connection:
        migrate.downgrade(connection, revision)
    return engine
