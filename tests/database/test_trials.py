"""Attempts that were cut off, and configurations in quarantine."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from autotune.database.rows import StudyRow
from autotune.database.store import Store
from autotune.database.trials import MOST_ATTEMPTS, QUARANTINE
from autotune.records.device import Toolchain
from autotune.records.trial import Trial
from tests.database.records import TOOLCHAIN, begin, configuration, failed, workload
from tests.databases import Databases

NEWER = Toolchain.of({"torch": "2.14.0"}).digest


@pytest.fixture
def store(tmp_path: Path, databases: Databases) -> Iterator[Store]:
    with Store.open(databases.url(tmp_path / "a.db")) as opened:
        yield opened


def claim(store: Store, study: StudyRow, toolchain: str = TOOLCHAIN.digest) -> Trial:
    return store.trials.claim(study.uid, configuration(), toolchain)


def test_a_trial_whose_coordinator_dies_again_and_again_has_failed(store: Store) -> None:
    study = begin(store)
    attempts = [claim(store, study) for _ in range(MOST_ATTEMPTS)]
    assert [(trial.attempt, trial.state) for trial in attempts] == [(n, "running") for n in range(1, MOST_ATTEMPTS + 1)]
    given_up = claim(store, study)
    assert (given_up.state, given_up.number, given_up.attempt) == ("failed", 0, MOST_ATTEMPTS)
    assert given_up.failure is not None and given_up.failure.kind == "crash"
    assert f"given up: in {MOST_ATTEMPTS} attempts the coordinator, or its host, died" in given_up.failure.detail
    assert store.trials.of_study(study.uid, failed=True) == [given_up]
    with pytest.raises(ValueError, match="tried"):
        claim(store, study)


def test_an_attempt_that_was_stopped_in_good_order_does_not_count(store: Store) -> None:
    study = begin(store)
    for attempt in range(1, 2 * MOST_ATTEMPTS):
        trial = claim(store, study)
        assert (trial.attempt, trial.state) == (attempt, "running")
        store.trials.hand_back([trial])
    for _ in range(MOST_ATTEMPTS):
        last = claim(store, study)
        assert last.state == "running"
        store.trials.hand_back([replace(last, attempt=last.attempt - 1)])  # not the attempt that runs
    assert claim(store, study).state == "failed"


def test_a_newer_toolchain_forgives_every_attempt(store: Store) -> None:
    study = begin(store)
    for _ in range(MOST_ATTEMPTS):
        claim(store, study)
    assert [claim(store, study, NEWER).state for _ in range(MOST_ATTEMPTS)] == ["running"] * MOST_ATTEMPTS
    assert claim(store, study, NEWER).state == "failed"
    assert claim(store, study).state == "running", "a toolchain under which it was not given up"


@pytest.mark.parametrize("kind", ["crash", "timeout", "out_of_memory", "log_flood", "protocol", "error", "inaccurate"])
def test_what_takes_a_worker_down_is_in_quarantine(store: Store, kind: str) -> None:
    study, fine_tuned = begin(store), begin(store, workload=workload(weights="fine-tuned"))
    where = (study.structure, study.device_class)
    assert store.trials.quarantined_by(*where, TOOLCHAIN.digest, configuration()) is None
    ended = failed(claim(store, study), kind=kind)
    store.trials.finish(ended)
    found = store.trials.quarantined_by(
        fine_tuned.structure, fine_tuned.device_class, TOOLCHAIN.digest, configuration()
    )
    assert found == ((study, ended) if kind in QUARANTINE else None)
    assert (store.trials.earlier(study.identity, TOOLCHAIN.digest, configuration()) is None) == (kind in QUARANTINE)
    assert store.trials.quarantined_by(*where, NEWER, configuration()) is None
    assert store.trials.quarantined_by(*where, TOOLCHAIN.digest, configuration(1)) is None
    assert store.trials.quarantined_by("other", where[1], TOOLCHAIN.digest, configuration()) is None
    assert store.trials.quarantined_by(where[0], "other", TOOLCHAIN.digest, configuration()) is None
