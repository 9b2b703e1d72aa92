import errno
import fcntl
import itertools
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from autotune.measure import lock_files, lock_tickets
from autotune.measure.lock import device_lock
from autotune.testing import FakeClock

ROOT = Path(__file__).parents[2]
NOBODY, OTHER = 65534, 54321
PATIENCE_S = 60.0

WAITER = """
import errno, fcntl, json, os, sys, time
sys.path.insert(0, sys.argv[1])
asked = json.loads(sys.argv[2])
from pathlib import Path
from autotune.measure import lock_tickets
from autotune.measure.lock import device_lock
if asked.get("uid"):
    os.setgroups([])
    os.setgid(asked["uid"])
    os.setuid(asked["uid"])
if not asked.get("tickets", True):
    def refuse(descriptor, request, *, test=False):
        raise OSError(errno.EINVAL, "Invalid argument")
    lock_tickets._fcntl = refuse
draw, leave, passed, waits = lock_tickets.draw, lock_tickets.leave, [], []
def draw_slowly(descriptor):
    ticket = draw(descriptor)
    time.sleep(asked.get("pause_s", 0.0))
    return ticket
def leave_noted(descriptor):  # here it has the device, and nobody else can be next yet
    passed.append(time.monotonic())
    leave(descriptor)
lock_tickets.draw, lock_tickets.leave = draw_slowly, leave_noted
print("ready", flush=True)
for line in sys.stdin:
    turn = json.loads(line)
    folders = [Path(folder) for folder in asked["folders"]]
    with device_lock("GPU-1", turn["alone"], folders=folders, on_wait=lambda holders: waits.append(holders.text)):
        begin = time.monotonic()
        time.sleep(turn["hold_s"])
        end = time.monotonic()
    print(json.dumps({"passed": passed[-1], "begin": begin, "end": end, "waits": waits}), flush=True)
"""

OLD = """
import fcntl, sys, time
queue, lock = (open(path, "a") for path in sys.argv[1:])
print("ready", flush=True)
for line in sys.stdin:
    fcntl.flock(queue, fcntl.LOCK_EX)
    print("next", flush=True)
    fcntl.flock(lock, fcntl.LOCK_EX)
    begin = time.monotonic()
    fcntl.flock(queue, fcntl.LOCK_UN)
    time.sleep(0.1)
    end = time.monotonic()
    fcntl.flock(lock, fcntl.LOCK_UN)
    print(begin, end, flush=True)
"""
"""A process of a version without tickets."""

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")


def tickets_exist():
    """Whether this system has locks of open file descriptions, asked without the code that is tested."""
    if not hasattr(fcntl, "F_OFD_SETLK"):
        return False
    with tempfile.TemporaryFile() as file:
        try:
            fcntl.fcntl(file, fcntl.F_OFD_SETLK, struct.pack("@hhqqi0q", fcntl.F_WRLCK, 0, 0, 1, 0))
        except OSError:
            return False
    return True


with_tickets = pytest.mark.skipif(not tickets_exist(), reason="no locks of open file descriptions")


@pytest.fixture
def folders():
    """Two folders of all users; every user can reach them."""
    paths = [Path(tempfile.mkdtemp(prefix="autotune-test-")) for _ in range(2)]
    for path in paths:
        path.chmod(0o1777)
    yield paths
    for path in paths:
        shutil.rmtree(path)


@pytest.fixture
def folder(folders):
    return folders[0]


@pytest.fixture
def started():
    """Start processes that wait for lines, and end them at last."""
    with ExitStack() as stack:

        def start(command):
            process = stack.enter_context(
                subprocess.Popen(command, cwd="/", stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
            )
            stack.callback(process.kill)
            assert process.stdout.readline() == "ready\n"
            return process

        yield start


@pytest.fixture
def waiters(started):
    """Start processes that take the device's lock once for each line that they get."""

    def start(count, *folders, **asked):
        asked["folders"] = [str(folder) for folder in folders]
        return [started([sys.executable, "-c", WAITER, str(ROOT), json.dumps(asked)]) for _ in range(count)]

    return start


def come(process, *, alone=True, hold_s=0.0):
    process.stdin.write(json.dumps({"alone": alone, "hold_s": hold_s}) + "\n")


def turn(process):
    """Wait until a process has had the device."""
    return json.loads(process.stdout.readline())


def until(condition):
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def tickets(folder):
    """The bytes that are locked in the queue of a folder."""
    descriptor = lock_files.open_lock(folder / "autotune-GPU-1.next")
    try:
        below, drawn = lock_tickets._behind_all(descriptor, 0), []
        for byte in range(below):
            if lock_tickets._locked(descriptor, byte, 1) is not None:
                drawn.append(byte)
        return drawn
    finally:
        os.close(descriptor)


def come_in_order(processes, folder, **asked):
    """Let processes queue, 30 ms or more apart, each when the one before it has its ticket."""
    before = len(tickets(folder))
    for count, process in enumerate(processes, before + 1):
        come(process, **{name: next(values) for name, values in asked.items()})
        time.sleep(0.03)
        until(lambda count=count: len(tickets(folder)) == count)


def in_order(turns, name="passed"):
    return all(first[name] < second[name] for first, second in itertools.pairwise(turns))


def is_lowest(descriptor, ticket):
    return lock_tickets.lowest(descriptor, ticket) == ticket


@contextmanager
def opened(path, *modes):
    descriptors = [os.open(path, mode) for mode in modes]
    try:
        yield descriptors
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


@with_tickets
def test_twelve_pass_in_the_order_in_which_they_came(folder, waiters):
    processes = waiters(12, folder)
    alone = [True, False, False, True, True, False, True, False, False, False, True, False]
    with device_lock("GPU-1", True, folders=[folder], purpose="resnet50 (measure)"):
        come_in_order(processes, folder, alone=iter(alone), hold_s=itertools.repeat(0.05))
        assert tickets(folder) == list(range(12))
        time.sleep(0.2)
    turns = [turn(process) for process in processes]
    assert in_order(turns)
    for (first, second), alones in zip(itertools.pairwise(turns), itertools.pairwise(alone), strict=True):
        assert not any(alones) or first["end"] <= second["begin"]
    assert all("uses it for resnet50 (measure) since" in waited["waits"][0] for waited in turns)
    assert tickets(folder) == [] and (folder / "autotune-GPU-1.next").stat().st_size == 0


@with_tickets
@pytest.mark.parametrize("killed", [{0}, {2}, {0, 1, 3}])
def test_the_others_pass_if_some_are_killed_while_they_wait(folder, waiters, killed):
    processes = waiters(5, folder)
    with device_lock("GPU-1", True, folders=[folder]):
        come_in_order(processes, folder)
        for at in killed:
            processes[at].send_signal(signal.SIGKILL)
            processes[at].wait(PATIENCE_S)
        assert tickets(folder) == [at for at in range(5) if at not in killed]
    assert in_order([turn(process) for at, process in enumerate(processes) if at not in killed])


@with_tickets
def test_one_that_is_stopped_while_it_waits_is_passed_until_it_continues(folder, waiters):
    first, stopped, third, fourth = processes = waiters(4, folder)
    with device_lock("GPU-1", True, folders=[folder]):
        come_in_order(processes, folder)
        stopped.send_signal(signal.SIGSTOP)
    assert turn(first)["passed"] < min(turn(third)["passed"], turn(fourth)["passed"])
    assert tickets(folder) == [1]
    stopped.send_signal(signal.SIGCONT)
    turn(stopped)


@with_tickets
def test_the_first_one_that_waits_long_for_the_device_is_not_passed_when_it_gets_it(tmp_path, monkeypatch):
    """It becomes the user while another one, which saw it first for long, tries whether it stands still."""
    path, clock, take = tmp_path / "queue", FakeClock(), lock_files.take
    path.touch()
    with opened(path, os.O_RDWR, os.O_RDWR, os.O_RDWR) as (first, second, third):
        for descriptor in (first, second, third):
            lock_tickets.draw(descriptor)
        assert take(first, alone=True)
        place = lock_tickets.PlaceInLine(third, 2, lambda: clock.now_ns() / 1e9)
        assert not place.is_next()
        clock.sleep(1.5 * lock_tickets.STANDS_STILL_S)
        assert not place.is_next()  # the first one waits for the device
        clock.sleep(1.5 * lock_tickets.STANDS_STILL_S)

        def leave_then_take(descriptor, *, alone):
            lock_tickets.leave(os.dup(first))
            return take(descriptor, alone=alone)

        monkeypatch.setattr(lock_files, "take", leave_then_take)
        assert not place.is_next()
        assert take(second, alone=True)


@with_tickets
def test_newcomers_at_the_moment_of_a_release_do_not_overtake(folder, waiters):
    """They come while the lock changes hands, when nobody holds the right to be next for a moment."""
    first, second, third, *newcomers = waiters(7, folder)
    for _ in range(5):
        with device_lock("GPU-1", True, folders=[folder]):
            come_in_order([first, second, third], folder)
        for newcomer in newcomers:
            come(newcomer)
            time.sleep(0.01)
        turns = [turn(process) for process in (first, second, third)]
        assert in_order(turns)
        assert all(turns[-1]["passed"] < turn(newcomer)["passed"] for newcomer in newcomers)


@with_tickets
def test_threads_of_one_process_pass_in_their_order(folder):
    passed = []

    def wait(name):
        with device_lock("GPU-1", True, folders=[folder]):
            passed.append(name)

    threads = [threading.Thread(target=wait, args=(name,)) for name in range(6)]
    with device_lock("GPU-1", True, folders=[folder]):
        for count, thread in enumerate(threads, 1):
            thread.start()
            until(lambda count=count: len(tickets(folder)) == count)
    for thread in threads:
        thread.join(PATIENCE_S)
    assert passed == list(range(6))


@as_root
@with_tickets
def test_those_that_may_only_read_the_file_pass_in_their_order(folder, waiters):
    for suffix in ("next", "lock"):
        (folder / f"autotune-GPU-1.{suffix}").touch(mode=0o644)
        os.chown(folder / f"autotune-GPU-1.{suffix}", OTHER, OTHER)
    readers, writers = waiters(4, folder, uid=NOBODY), waiters(2, folder)
    processes = [readers[0], writers[0], readers[1], readers[2], writers[1], readers[3]]
    with device_lock("GPU-1", True, folders=[folder]):
        come_in_order(processes, folder)
    assert in_order([turn(process) for process in processes])
    assert (folder / "autotune-GPU-1.next").stat().st_mode & 0o777 == 0o644


@with_tickets
def test_a_ticket_is_the_byte_behind_the_highest_locked_one(tmp_path):
    path = tmp_path / "queue"
    path.touch()
    modes = (os.O_RDWR, os.O_RDONLY, os.O_RDWR, os.O_RDONLY, os.O_RDWR)
    with opened(path, *modes) as (first, second, third, fourth, fifth):
        drawn = [(descriptor, lock_tickets.draw(descriptor)) for descriptor in (first, second, third)]
        assert [ticket for _, ticket in drawn] == [0, 1, 2]
        assert [is_lowest(*ticket) for ticket in drawn] == [True, False, False]
        lock_tickets.leave(os.dup(second))  # as a parent that leaves while its forked child has the file open
        assert not is_lowest(third, 2)
        lock_tickets.leave(os.dup(first))
        assert is_lowest(third, 2)
        assert lock_tickets.draw(fourth) == 3
        lock_tickets.leave(os.dup(third))
        lock_tickets.leave(os.dup(fourth))
        assert lock_tickets.draw(fifth) == 0


@with_tickets
@pytest.mark.parametrize("mode", [os.O_RDWR, os.O_RDONLY])
def test_who_loses_a_byte_in_a_race_takes_the_next(tmp_path, monkeypatch, mode):
    path = tmp_path / "queue"
    path.touch()
    with opened(path, os.O_RDWR, mode) as (winner, loser):
        search = lock_tickets._behind_all

        def late(descriptor, start):
            """Another draws after the search of this one."""
            free = search(descriptor, start)
            monkeypatch.setattr(lock_tickets, "_behind_all", search)
            assert lock_tickets.draw(winner) == free
            return free

        monkeypatch.setattr(lock_tickets, "_behind_all", late)
        assert lock_tickets.draw(loser) == 1
        assert not is_lowest(loser, 1)


@with_tickets
def test_readers_that_come_at_once_do_not_wait_for_each_other(tmp_path, monkeypatch):
    path = tmp_path / "queue"
    path.touch()
    with opened(path, os.O_RDWR, os.O_RDONLY, os.O_RDONLY) as (before, first, second):
        assert lock_tickets.draw(before) == 0
        assert lock_tickets.draw(first) == 1
        monkeypatch.setattr(lock_tickets, "_behind_all", lambda descriptor, start: max(start, 1))
        assert lock_tickets.draw(second) == 1
        assert not is_lowest(first, 1) and not is_lowest(second, 1)
        lock_tickets.leave(os.dup(before))
        assert is_lowest(first, 1) and is_lowest(second, 1)


@with_tickets
def test_a_foreign_lock_on_all_bytes_leaves_no_tickets_and_stops_nobody(folder, waiters):
    (process,) = waiters(1, folder)
    path = folder / "autotune-GPU-1.next"
    path.touch(mode=0o666)
    with opened(path, os.O_RDWR, os.O_RDWR) as (foreign, queue):
        fcntl.fcntl(foreign, fcntl.F_OFD_SETLK, struct.pack("@hhqqi0q", fcntl.F_WRLCK, 0, 0, 0, 0))
        assert lock_tickets.draw(queue) is None
        come(process)
        assert turn(process)["waits"] == []


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_without_such_locks_nobody_has_a_ticket(tmp_path, monkeypatch, number):
    def refuse(descriptor, command, *rest):
        raise OSError(number, os.strerror(number))

    path = tmp_path / "queue"
    path.touch()
    with opened(path, os.O_RDWR) as (descriptor,):
        monkeypatch.setattr(fcntl, "fcntl", refuse)
        assert lock_tickets.draw(descriptor) is None
        assert is_lowest(descriptor, 7)


def test_on_another_system_nobody_has_a_ticket(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    path = tmp_path / "queue"
    path.touch()
    with opened(path, os.O_RDWR) as (descriptor,):
        assert lock_tickets.draw(descriptor) is None


def test_processes_without_tickets_and_those_with_tickets_exclude_each_other(folder, waiters):
    processes = [*waiters(3, folder, tickets=False), *waiters(3, folder)]
    for _ in range(3):
        with device_lock("GPU-1", True, folders=[folder]):
            for process in processes:
                come(process, hold_s=0.05)
            time.sleep(0.2)
        turns = sorted((turn(process) for process in processes), key=lambda one: one["begin"])
        assert all(first["end"] <= second["begin"] for first, second in itertools.pairwise(turns))


@with_tickets
def test_a_process_of_an_older_version_is_respected_and_respects(folder, waiters, started):
    before, after = waiters(2, folder)
    with device_lock("GPU-1", False, folders=[folder]):
        old = started([sys.executable, "-c", OLD, *(str(folder / f"autotune-GPU-1.{end}") for end in ("next", "lock"))])
        old.stdin.write("\n")
        assert old.stdout.readline() == "next\n"
        come_in_order([after], folder, alone=iter([False]))  # a shared lock is free, but the older process is next
        time.sleep(0.2)
        assert tickets(folder) == [0]
    _, end = map(float, old.stdout.readline().split())
    assert end <= turn(after)["begin"]
    come(before, hold_s=0.3)
    until(lambda: f'"pid": {before.pid},' in (folder / "autotune-GPU-1.lock").read_text())  # it has the device
    old.stdin.write("\n")
    first = turn(before)
    assert old.stdout.readline() == "next\n"
    begin, _ = map(float, old.stdout.readline().split())
    assert first["end"] <= begin


@with_tickets
def test_no_circle_forms_if_processes_use_several_folders(folders, waiters):
    """The first stops behind each draw for longer than the others, so that each of them could draw before it."""
    first, second = folders
    processes = [
        *waiters(1, *folders, pause_s=0.3), *waiters(2, *folders, pause_s=0.05), *waiters(1, first, pause_s=0.1),
        *waiters(1, second, pause_s=0.1),
    ]  # fmt: skip
    for _ in range(4):
        for process in processes:
            come(process, hold_s=0.02)
            time.sleep(0.01)
        turns = [turn(process) for process in processes]
        for ignored in (3, 4):  # those with one folder each exclude all but each other
            ordered = sorted(turns[:ignored] + turns[ignored + 1 :], key=lambda one: one["begin"])
            assert all(before["end"] <= after["begin"] for before, after in itertools.pairwise(ordered))
