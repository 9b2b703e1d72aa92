import json
import os
import sqlite3
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from autotune.database.check import check
from autotune.database.exchange import export_studies, merge_file
from autotune.database.rows import StudyLimits
from autotune.database.store import Store
from autotune.errors import DatabaseError
from autotune.records.search_curve import CurvePoint, SearchCurve
from autotune.records.trial import Measurement
from tests.database.records import (
    TOOLCHAIN,
    begin,
    configuration,
    failed,
    folder_with,
    kernel,
    kernel_content,
    key,
    lost,
    measured,
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
                store.trials.finish(failed(store.trials.claim(study.uid, configuration(level), TOOLCHAIN.digest)))
                continue
            trial = tried(store, study, level, latency_ms=1.0 + level)
            if finals:
                store.trials.add_measurement(trial.uid, "finals", Measurement(samples_ms=((1.0 + level, 2.0),)))
        store.trials.claim(study.uid, configuration(99), TOOLCHAIN.digest)
        store.studies.add_active_time(study.uid, 10.0 * len(levels))
        store.kernels.add([kernel(level, failure=lost() if fails else None) for level, (fails, _) in levels.items()])
        if day:
            built = folder / f"{machine}-built-{name}-{day}"
            artifact = store.artifacts.add(folder_with(built, {"w": b"shared", name: machine.encode()}))
            promoted = measured(f"{machine}-{name}-{seed}", f"2.{(day + seed) % 2}", day, model=workload(name))
            store.plans.promote(replace(promoted, artifact=artifact))


def content(store: Store) -> dict[str, Any]:
    """The sets that a merge unites; trials that are still running stay at home."""
    identities = {s.uid: (s.name, s.seed, s.structure, s.state, s.active_s) for s in store.studies.list()}
    ended = {uid: [trial for trial in store.trials.of_study(uid) if trial.state != "running"] for uid in identities}
    return {
        "studies": set(identities.values()),
        "trials": {
            (identities[uid], trial.uid, trial.configuration, trial.state, trial.latency_ms, str(trial.failure))
            for uid, trials in ended.items()
            for trial in trials
        },
        "measurements": {
            trial.uid: sorted(json.dumps(m.as_dict()) for m in store.trials.measurements(trial.uid))
            for trials in ended.values()
            for trial in trials
        },
        "kernels": kernel_content(store),
        "plans": {found.uid: found for found in store.plans.list()},
        "former_plans": {found.uid: found for found in store.plans.former()},
        "artifacts": store.artifacts.digests(),
    }


def test_what_was_known_at_the_start_and_the_curve_travel_with_a_study(tmp_path: Path) -> None:
    limits = StudyLimits(trials=60, budget_s=180.0)
    with Store.open(str(tmp_path / "a.db")) as home, Store.open(str(tmp_path / "b.db")) as away:
        study = begin(home, limits=limits)
        trial = tried(home, study)
        home.studies.add_active_time(study.uid, 5.0, {trial.uid: 4.0})
        point = CurvePoint(seconds=4.0, best=1.0, backend="inductor")
        home.studies.note_curve(study.uid, SearchCurve.of([point], baseline=2.0, searched_s=5.0, unit="ms"))
        export_studies(home, ["resnet50"], tmp_path / "a.zip")
        begin(away, limits=StudyLimits(trials=1, budget_s=1.0))  # of the same identity, with less search
        merge_file(away, tmp_path / "a.zip")
        (here,), there = away.studies.list(), home.studies.get(study.uid)
        assert (here.start, here.curve, here.ended_s) == (there.start, there.curve, there.ended_s)
        assert here.start is not None and here.curve is not None and here.ended_s == {trial.uid: 4.0}


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
                for study in store.studies.list():
                    numbers = [trial.number for trial in store.trials.of_study(study.uid)]
                    assert len(set(numbers)) == len(numbers)
        assert results[0] == results[1]
        with Store.open(databases.url(root / "left" / "a.db")) as store:
            before = content(store)
            counts = [merge_file(store, file) for file in (files[0], files[1], files[0])]
            assert all(found["added"] == 0 for found in counts[0].values())
            united = content(store)
        same = ("trials", "measurements", "kernels", "plans", "former_plans")
        assert {key: united[key] for key in same} == {key: results[0][key] for key in same}
        assert {uid for _, uid, *_ in before["trials"]} <= {uid for _, uid, *_ in united["trials"]}


DELETABLE = ("measurement", "trial", "kernel_trial", "plan", "former_plan", "study", "workload", "device")


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


def test_a_machine_goes_on_with_what_another_found(databases: Databases, tmp_path: Path) -> None:
    with Store.open(databases.url(tmp_path / "a.db")) as there, Store.open(databases.url(tmp_path / "b.db")) as here:
        far = [tried(there, begin(there), level) for level in range(3)]
        export_studies(there, ["resnet50"], tmp_path / "file.zip")
        study = begin(here)
        near = tried(here, study, 1, latency_ms=5.0)
        counts = merge_file(here, tmp_path / "file.zip")
        assert counts["studies"] == {"added": 0, "known": 1} and counts["trials"] == {"added": 3, "known": 0}
        found = {trial.uid: trial for trial in here.trials.of_study(study.uid)}
        assert set(found) == {near.uid, *(trial.uid for trial in far)}
        assert [found[uid].number for uid in (near.uid, *(trial.uid for trial in far))] == [0, 3, 1, 2]
        with pytest.raises(ValueError, match="tried"):
            here.trials.claim(study.uid, configuration(2), TOOLCHAIN.digest)
        assert tried(here, study, 7).number == 4


def test_a_plan_arrives_with_or_without_its_artifact(databases: Databases, tmp_path: Path) -> None:
    with Store.open(databases.url(tmp_path / "a.db")) as there:
        artifact = there.artifacts.add(folder_with(tmp_path / "built", {"model.so": b"code", "data/w": b"weights"}))
        tried(there, begin(there), artifact=artifact)
        there.plans.promote(plan(artifact=artifact))
        with_it = export_studies(there, ["resnet50"], tmp_path / "with.zip")
        without = export_studies(there, ["resnet50"], tmp_path / "without.zip", artifacts=False)
    assert with_it == {"studies": 1, "trials": 1, "measurements": 1, "kernel_trials": 0, "kernel_finals": 0, "roofs": 0,
                       "plans": 1, "former_plans": 0, "artifacts": 1}  # fmt: skip
    assert without == with_it | {"artifacts": 0}
    with Store.open(databases.url(tmp_path / "b.db")) as here:
        merge_file(here, tmp_path / "without.zip")
        assert here.plans.get("p1").artifact == artifact and not here.artifacts.has(artifact)
        assert [trial.artifact for trial in here.trials.of_study(here.studies.list()[0].uid)] == [None]
        assert merge_file(here, tmp_path / "with.zip")["artifacts"] == {"added": 1, "known": 0}
        assert (here.artifacts.open(artifact) / "data" / "w").read_bytes() == b"weights"
        assert here.plans.find(key()) == plan(artifact=artifact)


def test_the_newer_of_two_plans_stays(databases: Databases, tmp_path: Path) -> None:
    with Store.open(databases.url(tmp_path / "a.db")) as there, Store.open(databases.url(tmp_path / "b.db")) as here:
        begin(there)
        there.plans.promote(plan("theirs", created="2026-01-02T00:00:00Z"))
        export_studies(there, ["resnet50"], tmp_path / "file.zip")
        for created, uid in (("2026-01-02T02:30:00+02:00", "theirs"), ("2026-01-02T00:00:01+00:00", "ours")):
            here.plans.promote(
                plan("ours", created="2026-01-01T23:00:00-05:00" if uid == "ours" else "2026-01-01T00:00:00Z")
            )
            merge_file(here, tmp_path / "file.zip")
            assert [found.uid for found in here.plans.list()] == [uid], created


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
