"""Kernel trials in the tuning database, on both kinds of database."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from autotune.database import migrate
from autotune.database.check import check
from autotune.database.engine import engine_at, for_writing
from autotune.database.exchange import export_studies, merge_file
from autotune.database.leases import Owner
from autotune.database.location import locate
from autotune.database.store import Store
from autotune.database.trials import QUARANTINE
from autotune.errors import DatabaseError, DeviceError
from autotune.records.configuration import Configuration
from autotune.records.device import Toolchain
from autotune.records.kernel_trial import KernelTrial
from tests.database.records import DEVICE, PROBLEM, TOOLCHAIN, begin, kernel, kernel_content, lost, tried
from tests.databases import Databases

CLASS, TOOLS = DEVICE.device_class, TOOLCHAIN.digest
OTHER = replace(PROBLEM, m=1)
NEWER = Toolchain.of({"torch": "2.14.0"}).digest
LIBRARY = Configuration.of("cublaslt", {"rank": 0})


@pytest.fixture
def store(tmp_path: Path, databases: Databases) -> Iterator[Store]:
    with Store.open(databases.url(tmp_path / "a.db")) as opened:
        yield opened


def here(store: Store) -> tuple[KernelTrial, ...]:
    return store.kernels.of(PROBLEM, CLASS, TOOLS)


def test_what_was_added_comes_back_the_fastest_first(store: Store) -> None:
    slow, quick, wrong = kernel(1, 20.0), kernel(2, 5.0), kernel(3, failure=lost("inaccurate"), error=0.5)
    elsewhere = [kernel(1, problem=OTHER), kernel(1, device_class="other"), kernel(1, toolchain=NEWER)]
    assert store.kernels.add([slow, wrong, quick, *elsewhere]) == 6
    assert here(store) == (quick, slow, wrong)
    assert store.kernels.of(OTHER, CLASS, TOOLS) == (elsewhere[0],)
    assert store.kernels.of(OTHER, CLASS, NEWER) == ()


def test_an_error_that_is_no_number_is_left_to_the_failure(store: Store) -> None:
    store.kernels.add([kernel(failure=replace(lost("non_finite"), figure=float("nan")), error=float("nan"))])
    (found,) = here(store)
    assert found.error is None and found.failure is not None and str(found.failure.figure) == "nan"


@pytest.mark.parametrize(
    "bad",
    [
        kernel(1, error=float("nan")),
        kernel(1, error=float("inf")),
        kernel(1, error=-1.0),
        kernel(1, failure=lost(), error=-1.0),
        kernel(1, made={"registers": float("nan")}),
        kernel(1, conditions={"clock": object()}),
    ],
)
def test_what_cannot_be_true_is_refused_and_nothing_is_half_written(store: Store, bad: KernelTrial) -> None:
    with pytest.raises(ValueError):
        store.kernels.add([kernel(), bad])
    assert here(store) == ()


def test_of_several_in_one_call_all_or_none_are_written(store: Store) -> None:
    with pytest.raises(DatabaseError):
        store.kernels.add([kernel(), kernel(1, 1e305)])
    assert here(store) == ()


@pytest.mark.parametrize("kind", ["crash", "timeout", "out_of_memory", "log_flood", "protocol", "error", "inaccurate"])
def test_only_what_was_lost_with_its_worker_may_complete_later(store: Store, kind: str) -> None:
    first, again, done = kernel(failure=lost(kind)), kernel(failure=lost("error")), kernel()  # type: ignore[arg-type]
    assert [store.kernels.add([each]) for each in (first, again)] == [1, 0]
    assert here(store) == (first,)
    replaced = kind in QUARANTINE
    assert store.kernels.add([done]) == replaced
    assert here(store) == ((done,) if replaced else (first,))


def test_what_is_complete_stays(store: Store) -> None:
    first = kernel()
    assert store.kernels.add([first, kernel(median_us=5.0), kernel(failure=lost())]) == 1
    assert store.kernels.add([kernel(median_us=5.0)]) == 0
    assert here(store) == (first,)


def test_the_best_is_complete_and_the_fastest_of_its_problem(store: Store) -> None:
    best, other = kernel(2, 5.0), kernel(1, 7.0, problem=OTHER)
    failed = kernel(3, failure=lost("inaccurate"), samples_us=(1.0,))
    store.kernels.add([kernel(1, 20.0), best, failed, other, kernel(4, 1.0, device_class="other")])
    store.kernels.add([kernel(1, 1.0, toolchain=NEWER), kernel(failure=lost(), problem=replace(PROBLEM, m=2))])
    assert store.kernels.best(CLASS, TOOLS) == {PROBLEM.digest: best, OTHER.digest: other}
    assert store.kernels.best(CLASS, TOOLS, [OTHER, replace(PROBLEM, m=2)]) == {OTHER.digest: other}
    assert store.kernels.best(CLASS, TOOLS, []) == {} == store.kernels.best("absent", TOOLS)


def test_of_two_that_are_equally_fast_the_best_is_always_the_same(store: Store) -> None:
    alike = [kernel(stage) for stage in range(8)]
    store.kernels.add(alike)
    found = {store.kernels.best(CLASS, TOOLS)[PROBLEM.digest].configuration.digest for _ in range(3)}
    assert len(found) == 1
    assert [row.best.configuration.digest for row in store.kernels.problems() if row.best] == list(found)


def test_problems_are_counted_with_the_best_and_the_best_of_the_libraries(store: Store) -> None:
    best, library = kernel(1, 5.0), kernel(configuration=LIBRARY, median_us=8.0)
    slower = kernel(configuration=Configuration.of("torch", {}), median_us=9.0)
    broken = kernel(configuration=Configuration.of("torch", {"out": True}), failure=lost(), samples_us=(1.0,))
    store.kernels.add([kernel(0, 20.0), best, library, slower, broken, kernel(2, failure=lost("inaccurate"))])
    store.kernels.add([kernel(0, failure=lost(), problem=OTHER), kernel(1, device_class="nvidia-l40s/whole/350w")])
    rows = {(row.problem, row.device_class): row for row in store.kernels.problems()}
    assert len(rows) == 3
    first = rows[PROBLEM, CLASS]
    assert (first.trials, first.failed, first.best, first.library_us) == (6, 2, best, 8.0)
    second = rows[OTHER, CLASS]
    assert (second.trials, second.failed, second.best, second.library_us) == (1, 1, None, None)
    assert [row.problem for row in store.kernels.problems(CLASS)] == [OTHER, PROBLEM]
    assert {row.device_class for row in store.kernels.problems("l40s")} == {"nvidia-l40s/whole/350w"}
    assert store.kernels.problems("absent") == []
    with pytest.raises(DeviceError, match="several"):
        store.kernels.problems("nvidia")


def test_hints_are_what_was_best_elsewhere_the_nearest_first(tmp_path: Path, databases: Databases) -> None:
    with Store.open(databases.url(tmp_path / "a.db")) as store:
        store.kernels.add([kernel(9, 1.0, device_class="nvidia-l40s/whole/350w")])
        store.kernels.add([kernel(8, 1.0, device_class="nvidia-h100/whole/700w")])
        store.kernels.add([kernel(7, 1.0, device_class="nvidia-h200/whole/600w")])
        store.kernels.add([kernel(5, 1.0, toolchain="0" * 64), kernel(4, 2.0, toolchain="0" * 64)])
        store.kernels.add([kernel(6, 1.0, toolchain=NEWER), kernel(configuration=LIBRARY, toolchain=NEWER)])
        store.kernels.add([kernel(0, 0.5), kernel(1, 1.0, problem=OTHER), kernel(2, failure=lost(), toolchain="x")])
        store.kernels.add([kernel(6, 1.0, device_class="amd")])
        found = store.kernels.hints(PROBLEM, CLASS, TOOLS)
    assert [hint["stages"] for hint in found] == [6, 5, 7, 8, 9], "newer first, then the SKU, then its series"


def test_anybody_may_add_whatever_became_of_a_lease(store: Store) -> None:
    study = begin(store)
    held = store.under(store.leases.take(study.uid, Owner.this_process()))
    with store.transactions.writing() as session:
        session.execute(text("UPDATE lease SET fence = fence + 1, token = 'theirs'"))
    assert held.kernels.add([kernel()]) == 1


def test_several_processes_add_at_once(databases: Databases, tmp_path: Path) -> None:
    program = """
import multiprocessing
import sys
from autotune.database.store import Store
from tests.database.records import kernel

def work(number):
    with Store.open(url) as store:
        start.wait()
        for turn in range(10):
            store.kernels.add([kernel(turn, 1.0 + number), kernel(100 + 10 * number + turn)])

url = sys.stdin.read()
fork = multiprocessing.get_context("fork")
start = fork.Barrier(6)
processes = [fork.Process(target=work, args=(number,)) for number in range(6)]
for process in processes:
    process.start()
for process in processes:
    process.join()
assert [process.exitcode for process in processes] == [0] * 6
"""
    url, root = databases.url(tmp_path / "a.db"), Path(__file__).parents[2]
    Store.open(url).close()
    done = subprocess.run(
        [sys.executable, "-c", program], input=url, capture_output=True, text=True, cwd=root, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    with Store.open(url, create=False) as store:
        stages = sorted(trial.configuration["stages"] for trial in here(store))
        assert stages == [*range(10), *range(100, 160)], "each once, whoever was first"


def test_a_database_from_before_kernel_trials_keeps_its_rows_on_the_way_up_and_down(
    databases: Databases, tmp_path: Path
) -> None:
    url = databases.url(tmp_path / "a.db", empty=True)
    with Store.open(url) as store:
        study = begin(store, conditions=None)
        tried(store, study)
        store.kernels.add([kernel()])
        before = store.trials.of_study(study.uid)
    engine = engine_at(locate(url))
    with for_writing(engine).begin() as connection:
        migrate.downgrade(connection, "0001")
    engine.dispose()
    with Store.open(url) as store:
        assert store.trials.of_study(study.uid) == before and here(store) == ()
        assert store.kernels.add([kernel()]) == 1 and check(store, 0.0) == []


# Between databases


def test_another_machines_trial_stands_beside_ones_own(databases: Databases, tmp_path: Path) -> None:
    with Store.open(databases.url(tmp_path / "a.db")) as there:
        there.kernels.add([kernel(0, 5.0), kernel(1)])
        assert export_studies(there, [], tmp_path / "file.zip")["kernel_trials"] == 2
    with Store.open(databases.url(tmp_path / "b.db")) as store:
        own = kernel(0, 7.0)
        store.kernels.add([own])
        assert merge_file(store, tmp_path / "file.zip")["kernel_trials"] == {"added": 2, "known": 0}
        assert merge_file(store, tmp_path / "file.zip")["kernel_trials"] == {"added": 0, "known": 2}
        assert here(store) == (kernel(0, 5.0), own, kernel(1))
        mine = kernel(1, 3.0)
        assert store.kernels.add([mine, kernel(0, 1.0)]) == 1, "what was only heard of is tried here all the same"
        assert here(store) == (mine, kernel(0, 5.0), own, kernel(1))


def test_studies_take_along_the_kernels_of_their_device_classes(databases: Databases, tmp_path: Path) -> None:
    with Store.open(databases.url(tmp_path / "a.db")) as store:
        with pytest.raises(DatabaseError, match="no study without a name"):
            export_studies(store, [], tmp_path / "nothing.zip")
        begin(store)
        store.kernels.add([kernel(), kernel(device_class="other")])
        assert export_studies(store, ["resnet50"], tmp_path / "study.zip")["kernel_trials"] == 1
        alone = export_studies(store, [], tmp_path / "all.zip")
    assert alone == {"studies": 0, "trials": 0, "measurements": 0, "kernel_trials": 2, "kernel_finals": 0, "roofs": 0,
                     "plans": 0, "former_plans": 0, "artifacts": 0}  # fmt: skip


def test_a_uid_that_means_another_kernel_here_is_refused(databases: Databases, tmp_path: Path) -> None:
    with Store.open(databases.url(tmp_path / "a.db")) as there, Store.open(databases.url(tmp_path / "b.db")) as store:
        there.kernels.add([kernel(0)])
        store.kernels.add([kernel(1)])
        export_studies(there, [], tmp_path / "file.zip")
        uid = next(iter(kernel_content(there)))
        with store.transactions.writing() as session:
            session.execute(text("UPDATE kernel_trial SET uid = :uid"), {"uid": uid})
        with pytest.raises(DatabaseError, match=f"kernel trial {uid}, which is something else"):
            merge_file(store, tmp_path / "file.zip")
        assert here(store) == (kernel(1),)


# What two machines did: kernels by their number and what became of them, in calls one after another.
outcomes = st.sampled_from(["complete", "crash", "inaccurate"])
calls = st.lists(st.lists(st.tuples(st.integers(0, 2), outcomes), max_size=3), min_size=1, max_size=2)
machines = st.lists(calls, min_size=2, max_size=2)


def outcome(number: int, became: str) -> KernelTrial:
    return kernel(number, failure=None if became == "complete" else lost(became))  # type: ignore[arg-type]


# An example makes several databases, so shrinking one would take minutes.
@settings(
    max_examples=5,
    deadline=None,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=(HealthCheck.function_scoped_fixture,),
)
@given(machines)
@example([[[(0, "crash"), (1, "inaccurate")], [(0, "complete"), (1, "complete")]], [[(0, "complete"), (2, "crash")]]])
def test_merging_loses_and_doubles_nothing_in_whatever_order(
    databases: Databases, history: list[list[list[tuple[int, str]]]]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root, files, whole = Path(folder), [], {}
        for machine, batches in enumerate(history):
            with Store.open(databases.url(root / f"{machine}.db")) as store:
                for turn, batch in enumerate(batches):
                    store.kernels.add([outcome(*each) for each in batch])
                    if kernel_content(store):
                        files.append(root / f"{machine}-{turn}.zip")
                        export_studies(store, [], files[-1])
                whole |= kernel_content(store)
        for turn, order in enumerate(list(permutations(files))[:: max(1, len(files))]):
            with Store.open(databases.url(root / f"united-{turn}.db")) as store:
                for file in order:
                    merge_file(store, file)
                assert kernel_content(store) == whole
                for file in order:
                    assert merge_file(store, file)["kernel_trials"]["added"] == 0
                assert kernel_content(store) == whole and check(store, 0.0) == []
        with Store.open(databases.url(root / "0.db")) as store:  # a machine with what it did itself
            for file in files:
                merge_file(store, file)
            assert kernel_content(store) == whole


COMMITTED = Path(__file__).parents[2] / "studies" / "kernels" / "nvidia-h200-tuned.zip"


def test_every_committed_kernel_trial_is_found_by_its_problem(databases: Databases, tmp_path: Path) -> None:
    with Store.open(databases.url(tmp_path / "a.db")) as store:
        assert merge_file(store, COMMITTED)["kernel_trials"] == {"added": 1603, "known": 0}
        problems = store.kernels.problems("h200")
        (place,) = {(row.device_class, row.best.toolchain) for row in problems if row.best is not None}
        found = [trial for row in problems for trial in store.kernels.of(row.problem, *place)]
        assert len(found) == 1603 and {trial.problem for trial in found} == {row.problem for row in problems}
        best = store.kernels.best(*place)
        assert all(best[row.problem.digest] == row.best for row in problems if row.best is not None)
