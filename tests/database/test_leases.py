import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autotune.database import leases
from autotune.database.leases import LIMIT_S, Held, Lease, Owner
from autotune.database.store import Store
from autotune.errors import StudyHeldError, StudyTakenOverError
from tests.database.records import TOOLCHAIN, begin, configuration, digest
from tests.databases import Databases

ELSEWHERE = Owner(host="elsewhere", place="another boot", pid=4711, started=1, token="theirs")


class SetClock:
    """A clock that is set, also backwards."""

    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, tzinfo=timezone.utc)

    def __call__(self) -> datetime:
        return self.now

    def move(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


@pytest.fixture
def clock() -> SetClock:
    return SetClock()


@pytest.fixture
def store(tmp_path: Path, clock: SetClock, databases: Databases) -> Iterator[Store]:
    with Store.open(databases.url(tmp_path / "a.db"), clock=clock) as opened:
        yield opened


def mine() -> Owner:
    return Owner.this_process()


def test_a_second_coordinator_is_told_of_the_first_and_what_to_do(store: Store, clock: SetClock) -> None:
    study = begin(store)
    assert store.leases.holder(study.uid) is None
    lease = store.leases.take(study.uid, mine())
    clock.move(7)
    for other in (mine(), ELSEWHERE):
        with pytest.raises(StudyHeldError) as refused:
            store.leases.take(study.uid, other)
    for part in (str(os.getpid()), os.uname().nodename, "7 s ago", f"kill {os.getpid()}", "resnet50 at batch 1"):
        assert part in str(refused.value)
    clock.move(-3600)
    with pytest.raises(StudyHeldError, match="3593 s in the future: a clock has jumped"):
        store.leases.take(study.uid, ELSEWHERE)
    assert refused.value.exit_code == 2
    store.leases.release(lease)
    assert store.leases.holder(study.uid) is None
    assert store.leases.take(study.uid, ELSEWHERE).fence == lease.fence + 1
    assert store.leases.take(begin(store, seed=1).uid, mine()).fence == 1, "another study is another lease"


def test_the_owner_of_a_process_that_is_gone_is_replaced_at_once(store: Store) -> None:
    study = begin(store)
    with subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE) as process:
        owner = replace(mine(), pid=process.pid, started=leases._started(process.pid) or 0)
        store.leases.take(study.uid, owner)
        with pytest.raises(StudyHeldError):
            store.leases.take(study.uid, mine())
        process.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead, and not reaped
        assert owner.is_gone
        assert not replace(owner, place="another container").is_gone, "its processes are not seen from here"
        assert store.leases.take(study.uid, mine()).fence == 2
    assert owner.is_gone
    assert replace(mine(), started=1).is_gone, "a number that was given to another process"
    assert not mine().is_gone


@pytest.mark.parametrize("jump_s", [LIMIT_S + 1, -1.0, -1e6, 1e6])
def test_a_silent_owner_is_replaced_only_after_it_was_watched(store: Store, clock: SetClock, jump_s: float) -> None:
    study = begin(store)
    theirs = store.leases.take(study.uid, ELSEWHERE)
    clock.move(jump_s)
    watched = store.leases.holder(study.uid)
    assert watched is not None and watched.silent
    with pytest.raises(StudyHeldError):
        store.leases.take(study.uid, mine())
    store.leases.renew(theirs)  # it lives: only a clock had jumped
    with pytest.raises(StudyHeldError):
        store.leases.take(study.uid, mine(), watched)
    clock.move(jump_s)
    with pytest.raises(StudyHeldError):
        store.leases.take(study.uid, mine(), watched)
    assert store.leases.take(study.uid, mine(), store.leases.holder(study.uid)).fence == theirs.fence + 1
    with pytest.raises(StudyTakenOverError):
        store.leases.renew(theirs)


def test_an_owner_who_is_heard_of_is_not_replaced_however_long_it_was_watched(store: Store, clock: SetClock) -> None:
    study = begin(store)
    store.leases.take(study.uid, ELSEWHERE)
    clock.move(LIMIT_S)
    with pytest.raises(StudyHeldError):
        store.leases.take(study.uid, mine(), store.leases.holder(study.uid))


def test_a_lease_given_back_is_no_right_to_write(store: Store) -> None:
    study = begin(store)
    lease = store.leases.take(study.uid, mine())
    store.leases.release(lease)
    with pytest.raises(StudyTakenOverError, match="nobody: it was released"):
        store.under(lease).trials.claim(study.uid, configuration(), TOOLCHAIN.digest)
    again = store.leases.take(study.uid, mine())
    store.leases.release(lease)  # of a former lease: takes nothing from the one that is held
    assert store.leases.holder(study.uid) is not None
    store.under(again).trials.claim(study.uid, configuration(), TOOLCHAIN.digest)


# What two coordinators may do in any order: each acts as itself, and the clock goes any way.
OWNERS = st.integers(0, 1)
STEPS = st.one_of(
    st.tuples(st.sampled_from(["take", "look", "renew", "release", "write", "write"]), OWNERS),
    st.tuples(st.just("clock"), st.sampled_from([1.0, LIMIT_S + 1, -5.0, -1e5, 1e5])),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(STEPS, max_size=25))
def test_no_order_of_events_lets_a_stale_coordinator_write(
    databases: Databases, tmp_path: Path, steps: list[tuple[str, float]]
) -> None:
    clock = SetClock()
    with Store.open(databases.url(tmp_path / "a.db"), clock=clock) as store:
        study = begin(store, name=f"study {len(store.studies.list())}")
        owners = [replace(ELSEWHERE, host=f"host-{who}", token=f"token-{who}") for who in range(2)]
        held: list[Lease | None] = [None, None]
        looks: list[Held | None] = [None, None]
        holder: int | None = None
        fences: list[int] = []
        written = 0.0

        def spend(lease: Lease) -> None:
            store.under(lease).studies.add_active_time(study.uid, 1.0)

        for what, argument in steps:
            who = int(argument) if what != "clock" else 0
            lease = held[who]
            if what == "clock":
                clock.move(argument)
            elif what == "look":
                looks[who] = store.leases.holder(study.uid)
            elif what == "take":
                now = store.leases.holder(study.uid)
                may = now is None or (now.silent and now.same_beat(looks[who]))
                try:
                    held[who] = lease = store.leases.take(study.uid, owners[who], looks[who])
                except StudyHeldError:
                    assert not may
                    continue
                assert may
                fences.append(lease.fence)
                holder = who
            elif lease is not None and what == "release":
                store.leases.release(lease)
                holder = None if holder == who and lease.fence == fences[-1] else holder
                held[who] = None
            elif lease is not None:
                act = store.leases.renew if what == "renew" else spend
                if holder == who and lease.fence == fences[-1]:
                    act(lease)
                    written += what == "write"
                else:
                    with pytest.raises(StudyTakenOverError):
                        act(lease)
        assert fences == sorted(set(fences)), "a fencing number was given twice"
        assert store.studies.get(study.uid).active_s == written


def test_a_merge_needs_no_lease_and_takes_none_along(store: Store, tmp_path: Path) -> None:
    from autotune.database.exchange import export_studies, merge_file

    study = begin(store)
    store.under(store.leases.take(study.uid, mine()))
    export_studies(store, ["resnet50"], tmp_path / "x.zip")
    merge_file(store, tmp_path / "x.zip")
    with Store.open(str(tmp_path / "b.db")) as other:
        merge_file(other, tmp_path / "x.zip")
        assert other.leases.holder(study.uid) is None and digest("space") == other.studies.get(study.uid).space_digest
