import itertools
import json
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from autotune.errors import WorkError
from autotune.measure import lock, lock_files
from autotune.measure.lock import device_lock
from autotune.testing import FakeClock

ROOT = Path(__file__).parents[2]
NOBODY, OTHER = 65534, 54321
OTHER_USER = "user 54321"

HOLD = """
import json, os, sys, time
sys.path.insert(0, sys.argv[1])
asked = json.loads(sys.argv[2])
from pathlib import Path
from autotune.measure.lock import device_lock
os.umask(asked.get("umask", 0o022))
if asked.get("uid"):
    os.setgroups([])
    os.setgid(asked["uid"])
    os.setuid(asked["uid"])
folders = [Path(folder) for folder in asked["folders"]] if asked.get("folders") else None
waits = []
with device_lock(
    asked["uuid"], asked.get("alone", True), purpose=asked.get("purpose", ""), folders=folders,
    on_wait=lambda holders: waits.append(holders.text),
):
    begin = time.monotonic()
    print(json.dumps({"begin": begin}), flush=True)
    time.sleep(asked["hold_s"])
    end = time.monotonic()
print(json.dumps({"begin": begin, "end": end, "waits": waits}), flush=True)
"""

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user or mount")


class StillHeldError(Exception):
    pass


def give_up_after(clock, sleeps):
    """A sleep that passes a second on the fake clock, and gives up after so many."""
    left = [sleeps]

    def sleep(_):
        left[0] -= 1
        if left[0] < 0:
            raise StillHeldError
        clock.sleep(1.0)

    return sleep


def process(uuid, *, folders=None, env=None, before=(), hold_s=0.3, **asked):
    """A process of its own that holds a device for a while, under an environment of its own."""
    asked = {"uuid": uuid, "folders": [str(folder) for folder in folders or ()], "hold_s": hold_s, **asked}
    command = [*before, sys.executable, "-c", HOLD, str(ROOT), json.dumps(asked)]
    return subprocess.Popen(
        command, env=env, cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def holding(started):
    """Wait until a process holds the device."""
    line = started.stdout.readline()
    assert line, started.stderr.read()
    return json.loads(line)["begin"]


def ended(started):
    """What a process told at its end."""
    out, error = started.communicate(timeout=60)
    assert started.returncode == 0, error
    return json.loads(out.splitlines()[-1])


def apart(*held):
    """Whether nobody held the device before the one before had given it back."""
    ordered = sorted(held, key=lambda one: one["begin"])
    return all(one["end"] <= other["begin"] for one, other in itertools.pairwise(ordered))


def refused(folder, uuid="GPU-1", alone=True):
    """Whether somebody has the device in a folder, seen from this process."""
    clock = FakeClock()
    try:
        with device_lock(uuid, alone, folders=[folder], clock=clock, sleep=give_up_after(clock, 2)):
            return False
    except StillHeldError:
        return True


def told_to_who_waits(folder):
    """What a process that gives up was told of who has the device."""
    waits, clock = [], FakeClock()
    with (
        pytest.raises(StillHeldError),
        device_lock("GPU-1", True, folders=[folder], clock=clock, sleep=give_up_after(clock, 3), on_wait=waits.append),
    ):
        pass
    return waits


def shared_folder():
    path = Path(tempfile.mkdtemp(prefix="autotune-test-"))
    path.chmod(0o1777)
    return path


@pytest.fixture
def folder():
    """A folder of all users, as /run/lock is; every user can reach it."""
    path = shared_folder()
    yield path
    shutil.rmtree(path)


@pytest.fixture
def other_folder():
    path = shared_folder()
    yield path
    shutil.rmtree(path)


@pytest.fixture(autouse=True)
def nobody_was_warned(monkeypatch):
    monkeypatch.setattr(lock, "_warned", set())


@contextmanager
def tmpfs(at, options):
    at.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(at)], capture_output=True)
    if mounted.returncode:
        pytest.skip("nothing can be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", str(at)], check=True)


def test_shared_locks_go_together_and_exclude_an_exclusive_one(folder):
    with device_lock("GPU-1", False, folders=[folder]), device_lock("GPU-1", False, folders=[folder]) as waited_s:
        assert waited_s < 1
        assert refused(folder)
        assert not refused(folder, "GPU-2")
    assert not refused(folder)


def test_it_waits_for_the_holder_and_logs_for_whom_every_ten_seconds(folder, caplog):
    clock = FakeClock()
    held, release = threading.Event(), threading.Event()

    def hold():
        with device_lock("GPU-1", True, folders=[folder], purpose="resnet50 (measure)"):
            held.set()
            release.wait(10)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(10)
    sleeps = [0]

    def sleep(_):
        sleeps[0] += 1
        if sleeps[0] <= 25:
            clock.sleep(1.0)
        else:
            release.set()
            holder.join(10)

    with (
        caplog.at_level(logging.INFO),
        device_lock("GPU-1", True, folders=[folder], clock=clock, sleep=sleep) as waited_s,
    ):
        assert waited_s == pytest.approx(25)
    said = [record.getMessage() for record in caplog.records if "GPU-1" in record.getMessage()]
    assert [line.partition(":")[0] for line in said] == [
        "waiting for device GPU-1 for 11 s so far",
        "waiting for device GPU-1 for 21 s so far",
    ]
    assert all("uses it for resnet50 (measure) since" in line for line in said)


def test_nobody_overtakes_who_waits_and_it_is_told_once_for_whom(folder):
    waits = []

    def wait():
        with device_lock("GPU-1", True, folders=[folder], on_wait=lambda holders: waits.append(holders)):
            waits.append("held")

    with device_lock("GPU-1", False, folders=[folder], purpose="builds"):
        waiter = threading.Thread(target=wait)
        waiter.start()
        while not waits:
            time.sleep(0.01)
        assert refused(folder, alone=False)
        time.sleep(2 * lock.LOOK_EVERY_S)
    waiter.join(10)
    assert [one if one == "held" else one.pids for one in waits] == [(os.getpid(),), "held"]
    assert waits[0].text.startswith(f"this process ({os.getpid()})") and "for builds since" in waits[0].text


@pytest.mark.parametrize(("share", "reported"), [(0.5, False), (1.5, True)])
def test_a_wait_is_reported_only_if_it_lasts(folder, share, reported):
    waits, clock = [], FakeClock()

    def sleep(seconds):
        clock.sleep(seconds)
        if clock.now_ns() > since_ns + share * lock.UNREPORTED_S * 1e9:
            raise StillHeldError

    with device_lock("GPU-1", True, folders=[folder]), pytest.raises(StillHeldError):
        since_ns = clock.now_ns()
        with device_lock("GPU-1", True, folders=[folder], clock=clock, sleep=sleep, on_wait=waits.append):
            pass
    assert bool(waits) == reported


def test_processes_with_any_environment_never_hold_a_device_at_once(tmp_path):
    """A login shell, cron, a service with a temporary folder of its own, and nothing at all: the real folders."""
    uuid = f"test-{os.getpid()}-{time.time_ns()}"
    runtime, private = tmp_path / "runtime", tmp_path / "private"
    runtime.mkdir(mode=0o700)
    private.mkdir(mode=0o700)
    started = [
        process(uuid, env={**os.environ, "XDG_RUNTIME_DIR": str(runtime)}),
        process(uuid, env={name: value for name, value in os.environ.items() if name != "XDG_RUNTIME_DIR"}),
        process(uuid, env={**os.environ, "TMPDIR": str(private)}),
        process(uuid, env={}, before=["env", "-i"]),
    ]
    if os.geteuid() == 0:
        started += [process(uuid, uid=NOBODY, umask=0o077), process(uuid, uid=OTHER, umask=0o077)]
        if not any(path.is_relative_to("/tmp") for path in (ROOT, Path(sys.executable))):  # they would be hidden
            mounts = 'mount -t tmpfs none /tmp && mount -t tmpfs none /var/tmp && exec "$@"'
            started.append(process(uuid, before=["unshare", "-m", "sh", "-c", mounts, "sh"]))
    try:
        held = [ended(one) for one in started]
    finally:
        for base in lock_files.FOLDERS:
            for path in base.glob(f"autotune-{uuid}.*"):
                path.unlink()
    assert len(held) >= 4 and apart(*held)


@as_root
def test_who_waits_learns_which_user_has_the_device_for_what(folder):
    with process("GPU-1", folders=[folder], uid=OTHER, purpose="resnet50 (measure)", hold_s=3.0) as holder:
        begin = holding(holder)
        waiter = process("GPU-1", folders=[folder], uid=NOBODY)
        held = ended(waiter)
        assert held["begin"] > begin + 2
        (text,) = held["waits"]
    told = rf"process {holder.pid} of {OTHER_USER} uses it for resnet50 \(measure\) since [\d-]*\s?\d\d:\d\d:\d\d"
    assert re.fullmatch(told, text)


@as_root
def test_a_lock_file_that_may_only_be_read_locks_all_the_same(folder):
    """Its maker was killed before it gave everybody the right to write; who holds it is known from the system."""
    for suffix in ("next", "lock"):
        (folder / f"autotune-GPU-1.{suffix}").touch(mode=0o644)
        os.chown(folder / f"autotune-GPU-1.{suffix}", OTHER, OTHER)
    with process("GPU-1", folders=[folder], uid=NOBODY, purpose="unwritten", hold_s=3.0) as holder:
        holding(holder)
        waits = []
        with device_lock("GPU-1", True, folders=[folder], on_wait=waits.append):
            pass
        assert waits[0].pids == (holder.pid,)
        assert waits[0].text.startswith(f"process {holder.pid} of nobody uses it (python")
    ended(process("GPU-1", folders=[folder], uid=OTHER))  # the owner mends the mode
    assert (folder / "autotune-GPU-1.lock").stat().st_mode & 0o777 == 0o666


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_the_files_are_for_every_user_whatever_the_umask(folder, umask):
    ended(process("GPU-1", folders=[folder], umask=umask, hold_s=0.0))
    found = {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()}
    assert found == {"autotune-GPU-1.lock": 0o666, "autotune-GPU-1.next": 0o666}


def test_a_killed_holder_frees_the_device_at_once_and_is_not_named_any_more(folder):
    with process("GPU-1", folders=[folder], purpose="killed", hold_s=60.0) as holder:
        holding(holder)
        assert refused(folder)
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait(10)
    path = folder / "autotune-GPU-1.lock"
    stale = path.read_text()
    assert "killed" in stale
    clock = FakeClock()
    with device_lock("GPU-1", True, folders=[folder], purpose="next", clock=clock, sleep=give_up_after(clock, 0)):
        own = path.read_text()
        for notes, words in ((own, "next"), (f'{{"pid": 1}}\n[rubbish\n{own}{stale}', "next"), (stale, "python")):
            path.write_text(notes)
            (told,) = told_to_who_waits(folder)
            assert told.pids == (os.getpid(),)
            assert words in told.text and "killed" not in told.text
    assert path.read_text() == ""


def test_what_others_wrote_is_shown_without_what_a_terminal_acts_on(folder):
    with device_lock("GPU-1", True, folders=[folder], purpose="a\x1b[2Jb\nc" + 1000 * "x"):
        (told,) = told_to_who_waits(folder)
    assert told.text.isprintable() and "for a[2Jbcxxx" in told.text and len(told.text) < 400


def test_what_cannot_be_checked_is_told_as_such(folder, monkeypatch):
    """A holder in another container: the kernel does not list it here, and its process ids mean nothing."""
    monkeypatch.setattr("autotune.measure.lock_holders.LOCKS", folder / "absent")
    with device_lock("GPU-1", True, folders=[folder], purpose="resnet50 (measure)"):
        (told,) = told_to_who_waits(folder)
        assert told.text == "a process that cannot be seen from here uses it"
        monkeypatch.setattr("autotune.measure.lock_holders._pid_space", lambda: 7)
        (told,) = told_to_who_waits(folder)
        assert told.pids == () and "uses it for resnet50 (measure) since" in told.text
        assert told.text.startswith(f"process {os.getpid()} of ")
        assert told.text.endswith("by its own account from another container")


def test_several_builds_are_counted(folder):
    with (
        process("GPU-1", folders=[folder], alone=False, purpose="one", hold_s=2.0) as first,
        process("GPU-1", folders=[folder], alone=False, purpose="two", hold_s=2.0) as second,
    ):
        holding(first), holding(second)
        waits = []
        with device_lock("GPU-1", True, folders=[folder], on_wait=waits.append):
            pass
        assert set(waits[0].pids) == {first.pid, second.pid} and waits[0].text.endswith("(and 1 more)")
        assert f"process {min(first.pid, second.pid)} of" in waits[0].text


def test_processes_that_share_one_folder_exclude_each_other(folder, other_folder):
    """One can use the first, one the second, one both: whoever shares a folder waits, and none waits for ever."""
    for own in ([folder], [other_folder]):
        both = [process("GPU-1", folders=[folder, other_folder]) for _ in range(2)]
        single = [process("GPU-1", folders=own) for _ in range(2)]
        assert apart(*map(ended, [*both, *single]))


def test_one_folder_by_two_names_is_no_reason_to_wait_for_oneself(folder):
    clock = FakeClock()
    again = folder / ".." / folder.name
    with device_lock("GPU-1", True, folders=[folder, again], clock=clock, sleep=give_up_after(clock, 0)):
        assert refused(folder)
    assert not refused(folder)


def test_a_hostile_uuid_stays_in_its_folder(folder):
    with device_lock("../../x y/..", True, folders=[folder]):
        pass
    assert sorted(path.name for path in folder.iterdir()) == ["autotune-_x_y_.lock", "autotune-_x_y_.next"]
    with pytest.raises(ValueError, match="uuid"), device_lock("../..", True, folders=[folder]):
        pass


def test_only_a_folder_of_all_users_will_do_whoever_asks(folder, tmp_path):
    own, plain, link = tmp_path / "own", tmp_path / "file", tmp_path / "link"
    own.mkdir(mode=0o755)
    plain.write_text("")
    link.symlink_to(folder)
    unsuitable = [tmp_path / "absent", own, plain, link]
    with device_lock("GPU-1", True, folders=[*unsuitable, folder]):
        assert refused(folder)
    assert not list(own.iterdir())
    with pytest.raises(WorkError) as caught, device_lock("GPU-1", True, folders=unsuitable):
        pass
    told = str(caught.value)
    for words in ("absent: No such file", "own: its mode is drwxr-xr-x", "file: no folder", "link: no folder"):
        assert words in told
    assert "run next" in told


def in_the_way(path, what):
    """Put something that is no lock file at a path."""
    if what == "link":
        path.symlink_to(path.with_name("target"))
        path.with_name("target").write_text("untouched")
    elif what == "hard link":
        path.with_name("target").write_text("untouched")
        os.link(path.with_name("target"), path)
    elif what == "pipe":
        os.mkfifo(path, 0o666)
    elif what == "socket":
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(str(path))
    else:
        path.mkdir()


@pytest.mark.parametrize("what", ["link", "hard link", "pipe", "socket", "folder"])
@pytest.mark.parametrize("suffix", ["lock", "next"])
def test_what_is_no_lock_file_is_left_alone_and_the_other_folder_is_used(folder, other_folder, caplog, what, suffix):
    in_the_way(folder / f"autotune-GPU-1.{suffix}", what)
    for _ in range(2):
        with device_lock("GPU-1", True, folders=[folder, other_folder]):
            assert refused(other_folder)
    warned = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warned) == 1 and str(folder) in warned[0] and "GPU-1" in warned[0]
    if (folder / "target").exists():
        assert (folder / "target").read_text() == "untouched"
    with pytest.raises(WorkError, match="run next"), device_lock("GPU-1", True, folders=[folder]):
        pass


@as_root
def test_a_file_that_its_user_keeps_for_himself_is_gone_around(folder, other_folder):
    for suffix in ("lock", "next"):
        path = folder / f"autotune-GPU-1.{suffix}"
        path.touch()
        path.chmod(0o600)
        os.chown(path, OTHER, OTHER)
    alone = process("GPU-1", folders=[folder], uid=NOBODY)
    _, error = alone.communicate(timeout=60)
    assert alone.returncode == 1 and "Permission denied" in error and "run next" in error
    started = [process("GPU-1", folders=[folder, other_folder], uid=uid) for uid in (NOBODY, OTHER)]
    assert apart(*map(ended, started))


@as_root
def test_a_folder_that_is_mounted_to_be_read_is_used_if_the_files_are_there(tmp_path, other_folder):
    mounted = tmp_path / "mounted"
    with tmpfs(mounted, "mode=1777"):
        with device_lock("GPU-1", True, folders=[mounted]):
            pass
        subprocess.run(["mount", "-o", "remount,ro", str(mounted)], check=True)
        with device_lock("GPU-1", True, folders=[mounted]):
            assert refused(mounted)
        with device_lock("GPU-2", True, folders=[mounted, other_folder]):
            assert refused(other_folder, "GPU-2")
        with pytest.raises(WorkError, match="Read-only"), device_lock("GPU-2", True, folders=[mounted]):
            pass


@as_root
def test_a_full_folder_holds_the_lock_of_a_file_that_is_there(tmp_path, other_folder):
    mounted = tmp_path / "mounted"
    with tmpfs(mounted, "mode=1777,size=16k,nr_inodes=4"):
        with device_lock("GPU-1", True, folders=[mounted]):
            pass
        with (mounted / "filling").open("wb") as filling, pytest.raises(OSError, match="No space"):
            filling.write(bytes(1 << 20))
            filling.flush()
        with device_lock("GPU-1", True, folders=[mounted], purpose="unwritten"):
            assert refused(mounted)
        with device_lock("GPU-2", True, folders=[mounted, other_folder]):
            assert refused(other_folder, "GPU-2")
        with pytest.raises(WorkError, match="No space"), device_lock("GPU-2", True, folders=[mounted]):
            pass
