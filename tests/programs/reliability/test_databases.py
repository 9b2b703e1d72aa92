"""The short forms of the promises about databases, and that each can be broken."""

import sqlite3
from dataclasses import replace

import pytest

from autotune.database.plan_store import PlanStore
from autotune.errors import DatabaseError
from autotune.programs.reliability import look_up, refusals, writers
from autotune.programs.reliability.campaign import Campaign
from tests.databases import need_postgresql


@pytest.fixture
def campaign(databases, tmp_path):
    urls = {databases.kind: databases.url(tmp_path / "campaign.db", empty=True)}
    return Campaign(folder=tmp_path, databases=urls, quick=True)


def test_writers_write_and_insert_by_turns_without_an_error(campaign):
    (outcome,) = writers.check(campaign)
    assert outcome.raw["errors"] == [] and len(outcome.raw["trial_per_s"]) == len(outcome.raw["plain_per_s"]) == 3
    assert outcome.passed == (float(outcome.figure.split()[0]) >= writers.LEAST)


@pytest.mark.parametrize(
    ("slow", "errors", "kept"), [(1.0, (), True), (1.9, (), True), (2.1, (), False), (1.0, ("x",), False)]
)
def test_slow_or_failing_trial_writes_break_the_promise(monkeypatch, tmp_path, slow, errors, kept):
    plain = writers.Turn(started_s=0.0, ended_s=1.0)
    trial = writers.Turn(started_s=5.0, ended_s=5.0 + slow, errors=errors)
    monkeypatch.setattr(writers, "_together", lambda *_: [[plain, trial] * 3] * writers.WRITERS)
    (outcome,) = writers.check(Campaign(folder=tmp_path, databases={"sqlite": ""}, quick=True))
    assert outcome.passed is kept


def test_a_writer_counts_what_fails():
    def write(number):
        if number % 2:
            raise DatabaseError("locked")

    assert writers._turn(write, range(4), 1).errors == ("DatabaseError: locked",) * 4


def test_plans_are_looked_up_right_and_in_time(campaign, monkeypatch):
    monkeypatch.setattr(look_up, "AT_ONCE", 1000)
    warm, cold = look_up.check(campaign)
    assert warm.raw["n"] == 1350 and len(cold.raw["first_ms"]) == 3
    assert warm.passed == (warm.raw["p99"] <= 1.0) and cold.passed == (max(cold.raw["first_ms"]) <= 20.0)


def test_a_wrong_plan_is_no_answer(monkeypatch, tmp_path):
    monkeypatch.setattr(PlanStore, "find", lambda *_: replace(look_up.PLAN, uid="another"))
    with pytest.raises(RuntimeError, match="was asked for"):
        look_up.check(Campaign(folder=tmp_path, databases={"sqlite": ""}, quick=True))


def test_every_refusal_is_clear_and_leaves_the_database_whole(campaign):
    outcomes = refusals.check(campaign)
    assert [outcome.check for outcome in outcomes if not outcome.passed] == []
    told = {outcome.check for outcome in outcomes}
    assert "sqlite" not in campaign.databases or len(told) == len(refusals.CASES)
    assert "sqlite" in campaign.databases or "read-only, postgresql" in told


def test_a_server_whose_disk_is_full_says_so_and_loses_nothing():
    need_postgresql()
    outcomes = refusals._full_server("postgresql")
    if not outcomes:
        pytest.skip("no file system can be mounted here")
    (outcome,) = outcomes
    assert outcome.passed and "No space left" in outcome.raw["message"], outcome


def test_why_no_disk_is_filled_is_said(monkeypatch, caplog):
    monkeypatch.setattr(refusals.os, "geteuid", lambda: 1000)
    assert refusals._full_server("postgresql") == []
    assert "disk full on postgresql was not tried: only root" in caplog.text


@pytest.mark.parametrize(
    "change", [{"error": "OperationalError"}, {"message": "no"}, {"kept": 4}, {"error": "no error", "message": ""}]
)
def test_an_unclear_error_or_a_lost_trial_breaks_the_promise(change):
    sound = refusals.Refusal(error="DatabaseError", message="asked\n  found: x\n  expected: y", kept=3)
    assert refusals._outcome("case", sound, 3, "ok").passed
    assert not refusals._outcome("case", replace(sound, **change), 3, "ok").passed
    assert not refusals._outcome("case", sound, 3, "row 1 missing from index").passed


def test_a_damaged_database_is_seen(tmp_path):
    refusals.Store.open(str(tmp_path / "a.db")).close()
    with sqlite3.connect(tmp_path / "a.db") as connection:
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute("UPDATE sqlite_master SET rootpage = 3 WHERE name = 'ix_plan_artifact'")
    connection.close()
    assert refusals._examined(str(tmp_path / "a.db"))[0] != "ok"
