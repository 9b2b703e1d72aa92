"""The tests that a tuning database of every kind must pass: StoreConformance, which needs pytest.

A test module inherits the class and overrides one fixture, which returns the URL of an empty database::

    class TestOnSqlite(StoreConformance):
        @pytest.fixture
        def url(self, tmp_path):
            return str(tmp_path / "a.db")

For messages that show values, put a call of ``pytest.register_assert_rewrite`` into ``conftest.py``, with the names of
this module, ``autotune.testing.trial_conformance`` and ``autotune.testing.plan_conformance``.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from autotune.database.leases import LIMIT_S, Lease, Owner
from autotune.database.rows import StudyLimits, StudyRow
from autotune.database.store import Store
from autotune.errors import DatabaseError, DeviceError, StudyHeldError, StudyTakenOverError
from autotune.records.objective import Objective
from autotune.records.search_curve import CurvePoint, SearchCurve
from autotune.records.trial import Failure
from autotune.testing.plan_conformance import PlanConformance
from autotune.testing.sample_records import (
    DEVICE,
    OBJECTIVE,
    OTHER_DEVICE,
    PLAN,
    PROBLEM,
    SCREENING,
    STRICT,
    TOOLCHAIN,
    begin,
    complete,
    configuration,
    digest,
    kernel_final,
    kernel_trial,
    sample_roofs,
    sample_workload,
    stored,
    tried,
)
from autotune.testing.trial_conformance import TrialConformance

ELSEWHERE = Owner(host="elsewhere", place="another boot", pid=4711, started=1, token="theirs")


class SteppingClock:
    """A clock on which a second passes between any two readings, and which can be set."""

    def __init__(self) -> None:
        self.moment = datetime(2026, 1, 1, tzinfo=timezone.utc)

    def __call__(self) -> datetime:
        """Return the time, a second later than the last."""
        self.moment += timedelta(seconds=1)
        return self.moment

    def move(self, seconds: float) -> None:
        """Set the clock forward, or back if the number is negative."""
        self.moment += timedelta(seconds=seconds)


class StoreConformance(TrialConformance, PlanConformance):
    """Inherit this class, override the fixture ``url``, and pytest runs its tests on that database."""

    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        """Return the URL of an empty database; override it."""
        raise NotImplementedError("override the fixture `url`: it returns the URL of an empty tuning database")

    @pytest.fixture
    def clock(self) -> SteppingClock:
        """Return the clock of the store."""
        return SteppingClock()

    @pytest.fixture
    def store(self, url: str, clock: SteppingClock) -> Iterator[Store]:
        """Open the database."""
        with Store.open(url, clock=clock) as opened:
            yield opened

    # Studies

    def test_a_study_is_found_again_by_its_identity(self, store: Store) -> None:
        """Beginning it again returns it; whatever decides its results makes another one."""
        first = begin(store)
        assert (first.name, first.batch, first.state, first.active_s) == ("resnet50", 1, "running", 0.0)
        assert first.device_class == DEVICE.device_class and first.objective == OBJECTIVE
        assert begin(store, settings={"trials": 90}) == first
        store.studies.describe(first.uid, {"trials": 90})
        assert begin(store) == store.studies.get(first.uid) == replace(first, settings={"trials": 90})
        assert begin(store, objective=Objective(integer_agreement=0.99, signal_error=0.02)).uid == first.uid
        others = [
            begin(store, workload=sample_workload(batch=32)),
            begin(store, workload=sample_workload(weights="other")),
            begin(store, device=OTHER_DEVICE),
            begin(store, objective=STRICT),
            begin(store, serve_as="onnx"),
            begin(store, space_digest=digest("other")),
            begin(store, seed=1),
        ]
        assert len({study.uid for study in [first, *others]}) == 8
        assert [study.uid for study in store.studies.list()] == [study.uid for study in [first, *others]]
        assert [study.uid for study in store.studies.list("resnet50", 32)] == [others[0].uid]
        assert store.studies.list("absent") == []
        assert store.studies.workload(first.uid) == sample_workload()
        assert store.studies.device(OTHER_DEVICE.device_class) == OTHER_DEVICE

    def test_the_work_of_a_workload_is_added_when_its_study_is_begun_again(self, store: Store) -> None:
        """A workload that was stored before its work was counted stays the same workload of the same study."""
        study = begin(store)
        counted = replace(sample_workload(), flops=8, traffic_bytes=24)
        assert begin(store, workload=counted) == study
        assert store.studies.workload(study.uid) == counted
        assert begin(store, workload=replace(counted, flops=9)) == begin(store) == study
        assert store.studies.workload(study.uid) == counted
        begin(store, workload=sample_workload(batch=32))
        assert set(store.studies.workloads()) == {counted, sample_workload(batch=32)}

    def test_search_time_adds_up_and_a_study_can_be_finished_and_reopened(self, store: Store) -> None:
        """Finishing and reopening leave its time and its timings as they are."""
        study = begin(store)
        store.studies.add_active_time(study.uid, 1.5)
        store.studies.add_active_time(study.uid, 2.0)
        store.studies.finish(study.uid, {"build_s": 3.0})
        finished = store.studies.get(study.uid)
        assert (finished.state, finished.active_s, finished.timings) == ("finished", 3.5, {"build_s": 3.0})
        assert begin(store).state == "finished"
        store.studies.reopen(study.uid)
        assert store.studies.get(study.uid) == replace(finished, state="running")
        store.studies.note_undecided(study.uid, "the host was busy")
        assert store.studies.get(study.uid).timings == {"build_s": 3.0, "undecided": "the host was busy"}
        for seconds in (-1.0, float("nan"), float("inf")):
            with pytest.raises(ValueError, match="number of seconds"):
                store.studies.add_active_time(study.uid, seconds)
        with pytest.raises(ValueError, match="no study"):
            store.studies.finish("absent", {})

    def test_a_study_keeps_what_the_database_knew_at_its_start_and_the_curve_of_its_search(self, store: Store) -> None:
        """They belong to all its runs; a study that was begun without limits has no start, which is not zero trials."""
        tried(store, begin(store, seed=1))
        store.trials.claim(begin(store, seed=1).uid, configuration(1), TOOLCHAIN.digest)  # it has not ended
        tried(store, begin(store, "bert-base", seed=1))
        assert begin(store).start is None
        limits = StudyLimits(trials=60, budget_s=180.0)
        study = begin(store, seed=2, limits=limits)
        expected = {"kernel_trials": 0, "other_kernel_trials": 0, "model_trials": 1, **limits}
        assert study.start is not None and study.start.as_dict() == expected
        assert (study.ended_s, study.curve) == ({}, None)
        tried(store, study)
        later = begin(store, seed=2, limits=StudyLimits(trials=1, budget_s=1.0))
        assert later.start == study.start, "only the first run counts"
        point = CurvePoint(seconds=2.0, best=1.5, backend="inductor")
        curve = SearchCurve.of([point], baseline=3.0, searched_s=4.5, unit="ms")
        store.studies.add_active_time(study.uid, 2.5, {"a": 2.0})
        store.studies.add_active_time(study.uid, 2.0, {"b": 4.5})
        store.studies.note_curve(study.uid, curve)
        store.studies.note_continued(study.uid, StudyLimits(trials=90, budget_s=600.0))
        store.studies.finish(study.uid, {"build_s": 3.0})
        finished = store.studies.get(study.uid)
        assert (finished.ended_s, finished.curve, finished.active_s) == ({"a": 2.0, "b": 4.5}, curve, 4.5)
        continued = {**expected, "continued_trials": 90, "continued_budget_s": 600.0}
        assert finished.start is not None and finished.start.as_dict() == continued
        assert finished.timings["build_s"] == 3.0
        store.studies.note_curve(study.uid, None)
        assert store.studies.get(study.uid).curve is None
        other = begin(store)
        store.studies.note_continued(other.uid, limits)
        assert store.studies.get(other.uid) == other
        with pytest.raises(ValueError, match="number of seconds"):
            store.studies.add_active_time(study.uid, 1.0, {"c": float("nan")})

    def test_a_name_is_only_ever_a_name(self, store: Store) -> None:
        """No text of a record reaches the database as a statement."""
        name = "x'; DROP TABLE study; --\n\"\\"
        study = begin(store, name)
        assert store.studies.list(name) == [study]
        promoted = store.plans.promote(replace(PLAN, name=name, created=""))
        assert promoted.created and store.plans.list(name) == [promoted] and promoted.name == name

    # Leases

    def test_one_process_coordinates_a_study(self, store: Store, clock: SteppingClock) -> None:
        """Another is refused, until the lease is released; each lease has the next fencing number."""
        study = begin(store)
        assert store.leases.holder(study.uid) is None
        lease = store.leases.take(study.uid, Owner.this_process())
        clock.move(LIMIT_S - 10)
        store.leases.renew(lease)
        clock.move(LIMIT_S - 10)
        with pytest.raises(StudyHeldError, match="resnet50 at batch 1"):
            store.leases.take(study.uid, ELSEWHERE, store.leases.holder(study.uid))
        store.leases.release(lease)
        assert store.leases.holder(study.uid) is None
        assert store.leases.take(study.uid, ELSEWHERE).fence == lease.fence + 1
        assert store.leases.take(begin(store, seed=1).uid, ELSEWHERE).fence == 1

    @pytest.mark.parametrize("jump_s", [LIMIT_S + 1, -1e6, 1e6])
    def test_a_silent_owner_is_replaced_after_it_was_watched(
        self, store: Store, clock: SteppingClock, jump_s: float
    ) -> None:
        """A jump of the clock alone takes nothing from an owner that renews its lease."""
        study = begin(store)
        theirs = store.leases.take(study.uid, ELSEWHERE)
        clock.move(jump_s)
        watched = store.leases.holder(study.uid)
        assert watched is not None and watched.silent
        store.leases.renew(theirs)
        for look in (None, watched):
            with pytest.raises(StudyHeldError):
                store.leases.take(study.uid, Owner.this_process(), look)
        clock.move(jump_s)
        watched = store.leases.holder(study.uid)
        assert store.leases.take(study.uid, Owner.this_process(), watched).fence == theirs.fence + 1
        with pytest.raises(StudyTakenOverError):
            store.leases.renew(theirs)

    def test_a_coordinator_that_lost_its_lease_can_write_nothing(
        self, store: Store, clock: SteppingClock, tmp_path: Path
    ) -> None:
        """Every part of the store checks the lease, except for kernels and roofs, which belong to no study."""
        study = begin(store)
        stale = store.under(store.leases.take(study.uid, ELSEWHERE))
        claimed = stale.trials.claim(study.uid, configuration(), TOOLCHAIN.digest)
        store.plans.promote(PLAN)
        artifact = stored(store, tmp_path, "built")
        _overtake(store, clock, study)
        before = _content(store, study)
        writes: list[Callable[[], object]] = [
            lambda: begin(stale, seed=9),
            lambda: stale.studies.describe(study.uid, {}),
            lambda: stale.studies.add_active_time(study.uid, 1.0),
            lambda: stale.studies.finish(study.uid, {}),
            lambda: stale.studies.reopen(study.uid),
            lambda: stale.studies.note_undecided(study.uid, "busy"),
            lambda: stale.trials.claim(study.uid, configuration(1), TOOLCHAIN.digest),
            lambda: stale.trials.claim(study.uid, configuration(), TOOLCHAIN.digest),
            lambda: stale.trials.finish(complete(claimed), {"screening": SCREENING}),
            lambda: stale.trials.add_measurement(claimed.uid, "finals", SCREENING),
            lambda: stale.trials.hand_back([claimed]),
            lambda: stale.trials.withdraw(claimed),
            lambda: stale.trials.keep_artifact(claimed.uid, artifact, kernels=""),
            lambda: stale.trials.drop_unnamed(artifact),
            lambda: stale.trials.drop_losers(study.uid, set()),
            lambda: stale.plans.promote(PLAN),
            lambda: stale.plans.replace_artifact(PLAN.uid, artifact, PLAN.weights, TOOLCHAIN),
        ]
        for write in writes:
            with pytest.raises(StudyTakenOverError, match=r"under number 1, now 2 is held by process \d+"):
                write()
        assert _content(store, study) == before and store.artifacts.has(artifact)
        assert stale.kernels.add([kernel_trial()]) == 1 and stale.roofs.put(sample_roofs())
        assert stale.kernel_finals.add(kernel_final())

    # Kernels

    def test_kernel_trials_are_stored_once_and_the_best_is_the_fastest(self, store: Store) -> None:
        """A trial that was lost with its worker may complete later; any other result stays."""
        crash = Failure(stage="measure", kind="crash", detail="signal 11")
        wrong = Failure(stage="check", kind="inaccurate", detail="0.3 > 0.02")
        slow, quick = kernel_trial(1, 20.0), kernel_trial(2, 5.0)
        other = kernel_trial(1, 7.0, problem=replace(PROBLEM, m=1))
        batch = [slow, kernel_trial(3, failure=wrong), quick, kernel_trial(4, failure=crash), other]
        assert store.kernels.add(batch) == 5
        assert store.kernels.add([kernel_trial(1, 1.0), kernel_trial(3), kernel_trial(4, 9.0)]) == 1
        rows = store.kernels.of(PROBLEM, DEVICE.device_class, TOOLCHAIN.digest)
        assert rows == (quick, kernel_trial(4, 9.0), slow, kernel_trial(3, failure=wrong))
        best = store.kernels.best(DEVICE.device_class, TOOLCHAIN.digest)
        assert best == {PROBLEM.digest: quick, other.problem.digest: other}
        problems = {row.problem: (row.trials, row.failed, row.best) for row in store.kernels.problems("h200")}
        assert problems == {PROBLEM: (4, 1, quick), other.problem: (1, 0, other)}
        elsewhere = store.kernels.hints(PROBLEM, OTHER_DEVICE.device_class, TOOLCHAIN.digest)
        assert elsewhere == (quick.configuration,)

    def test_of_several_kernel_trials_in_one_call_all_or_none_are_written(self, store: Store) -> None:
        """The database itself refuses a figure that no kernel can have."""
        with pytest.raises(DatabaseError):
            store.kernels.add([kernel_trial(), kernel_trial(1, 1e305)])
        assert store.kernels.of(PROBLEM, DEVICE.device_class, TOOLCHAIN.digest) == ()

    def test_finals_of_kernels_are_stored_once_and_the_newest_is_first(self, store: Store) -> None:
        """A final is the same by its content; each of another problem or device class stands alone."""
        other = replace(PROBLEM, m=1)
        assert store.kernel_finals.of([PROBLEM, other], DEVICE.device_class) == {}
        older, newer, alone = kernel_final(), kernel_final((5.0, 6.0, 7.0)), kernel_final(problem=other)
        assert [store.kernel_finals.add(final) for final in (older, newer, alone, older)] == [True, True, True, False]
        by_problem = store.kernel_finals.of([PROBLEM, other], DEVICE.device_class)
        assert by_problem == {PROBLEM.digest: (newer, older), other.digest: (alone,)}
        assert store.kernel_finals.of([other], DEVICE.device_class) == {other.digest: (alone,)}
        assert store.kernel_finals.of([PROBLEM], OTHER_DEVICE.device_class) == {}
        with pytest.raises(ValueError, match="less than"):
            store.kernel_finals.add(kernel_final((1e305, 1e305)))

    def test_a_problem_is_listed_with_the_newest_final_of_its_best_kernel(self, store: Store) -> None:
        """Neither a final of another toolchain decides, nor one in which the best kernel took no part."""
        store.kernels.add([kernel_trial(1, 5.0), kernel_trial(2, 6.0)])
        store.kernel_finals.add(kernel_final((5.0,) * 3, toolchain="other"))
        (row,) = store.kernels.problems()
        assert row.final is None
        for final in (kernel_final((6.0, 5.0)), kernel_final((5.0, 6.0, 7.0)), kernel_final((1.0,) * 3, toolchain="x")):
            store.kernel_finals.add(final)
        (row,) = store.kernels.problems()
        assert row.final == kernel_final((5.0, 6.0, 7.0)) and row.best == kernel_trial(1, 5.0)
        store.kernels.add([kernel_trial(7, 1.0)])
        (row,) = store.kernels.problems()
        assert row.final is None

    # Roofs

    def test_the_newest_roofs_of_a_device_class_stay(self, store: Store) -> None:
        """Roofs that are as old, or older, change nothing; other device classes keep theirs."""
        assert store.roofs.list() == []
        old = sample_roofs(created="2026-01-01T01:00:00+01:00")
        new = sample_roofs(created="2026-01-01T00:00:01Z", launch_us=6.0)
        other = sample_roofs(OTHER_DEVICE)
        assert store.roofs.put(old) and not store.roofs.put(old)
        assert store.roofs.put(new) and not store.roofs.put(old)
        assert store.roofs.put(other)
        assert store.roofs.list() == [other, new]
        assert store.roofs.list("h200") == store.roofs.list(DEVICE.device_class) == [new]
        assert store.roofs.list("l4") == []
        with pytest.raises(DeviceError, match="could be several"):
            store.roofs.list("nvidia")
        with pytest.raises(ValueError, match="time zone"):
            store.roofs.put(replace(new, created="2026-01-02"))


def _overtake(store: Store, clock: SteppingClock, study: StudyRow) -> Lease:
    """Take the lease of an owner that has been silent for too long."""
    clock.move(LIMIT_S + 1)
    return store.leases.take(study.uid, Owner.this_process(), store.leases.holder(study.uid))


def _content(store: Store, study: StudyRow) -> tuple[object, ...]:
    trials = store.trials.of_study(study.uid)
    measurements = [store.trials.measurements(trial.uid) for trial in trials]
    return store.studies.list(), trials, measurements, store.plans.list()
