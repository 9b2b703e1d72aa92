"""The short form of the campaigns of kills, and what they look like where something is lost or doubled."""

import json
from dataclasses import replace

import pytest

from autotune.programs.reliability import kills
from autotune.programs.reliability.campaign import Campaign
from autotune.programs.reliability.simulated import Journal, latency_ms
from autotune.records.trial import Failure
from tests.database.records import begin, complete, configuration


@pytest.fixture
def campaign(tmp_path):
    return Campaign(folder=tmp_path, databases={"sqlite": "sqlite:///unused"}, quick=True, seed=1)


def test_no_kill_loses_or_doubles_a_trial(campaign):
    rows = kills.check(campaign)
    assert [row.passed for row in rows] == [True, True, True], json.dumps([row.as_dict() for row in rows])
    killed, stopped, eight = (row.raw for row in rows)
    assert sum(killed["kills"].values()) == 6 and sum(killed["states"].values()) == 12
    assert stopped["exit_codes"] == [1, 0] and eight["rivals"] == 8


def test_a_trial_that_is_missing_or_there_twice_is_noticed(campaign, monkeypatch):
    stored_by = kills._stored

    def mislaid(part):
        study, trials, samples = stored_by(part)
        return study, trials[1:], samples[1:]

    monkeypatch.setattr(kills, "_stored", mislaid)
    with kills._place(campaign, "sqlite", "kills") as part:
        row = kills._survives(campaign, "sqlite", part)
    assert not row.passed and row.raw["lost"] == 2  # it was reported as finished, and there is one too few


def test_the_audit_names_each_error(tmp_path):
    from autotune.database.store import Store

    with Store.open(str(tmp_path / "a.db")) as store:
        study = begin(store)
        trials = [
            complete(
                store.trials.claim(study.uid, configuration(level), "toolchain"),
                latency_ms=latency_ms(configuration(level)),
            )
            for level in range(3)
        ]
    study = replace(study, state="finished")
    journal = Journal(tmp_path / "journal")
    for trial in trials:
        journal.write(
            what="finished", study=study.name, configuration=trial.configuration.digest, uid=trial.uid,
            state="complete", latency_ms=trial.latency_ms,
        )  # fmt: skip

    def audit(found, samples=(1, 1, 1), row=study):
        return {name: count for name, count in kills._audit(journal, row, found, list(samples), 3).items() if count}

    assert audit(trials) == {}
    failed = replace(trials[0], state="failed", failure=Failure(stage="build", kind="crash", detail="x"))
    assert audit([failed, *trials[1:]], (0, 1, 1)) == {"lost": 1}
    assert audit([replace(trials[0], state="running"), *trials[1:]], (0, 1, 1)) == {"lost": 2}
    assert audit([*trials[:2], replace(trials[0], number=2)], (1, 1, 1)) == {"lost": 1, "doubled": 1}
    assert audit(trials, (2, 1, 1)) == {"doubled": 1, "without_samples": 1}
    assert audit(trials, row=replace(study, state="running")) == {"not_finished": 1}
    assert audit([replace(trials[0], latency_ms=9.0), *trials[1:]]) == {"lost": 1, "mixed_up": 1}
    journal.write(
        what="finished", study=study.name, configuration=trials[0].configuration.digest, uid=trials[0].uid,
        state="complete", latency_ms=trials[0].latency_ms,
    )  # fmt: skip
    assert audit(trials) == {"doubled": 1}
