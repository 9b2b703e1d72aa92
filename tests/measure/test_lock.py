import logging
import subprocess
import sys
import threading

import pytest

from autotune.errors import WorkError
from autotune.measure.lock import device_lock, locks_folder
from autotune.testing import FakeClock

HOLD = """
import sys
from pathlib import Path
from autotune.measure.lock import device_lock
with device_lock("GPU-1", exclusive=True, folder=Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
"""


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


def test_shared_locks_go_together_and_exclude_an_exclusive_one(tmp_path):
    clock = FakeClock()
    folder = tmp_path / "locks"
    with device_lock("GPU-1", False, folder=folder), device_lock("GPU-1", False, folder=folder) as waited_s:
        assert waited_s < 1
        with (
            pytest.raises(StillHeldError),
            device_lock("GPU-1", True, folder=folder, clock=clock, sleep=give_up_after(clock, 3)),
        ):
            pass
        with device_lock("GPU-2", True, folder=folder):
            pass
    with device_lock("GPU-1", True, folder=folder, clock=clock, sleep=give_up_after(clock, 0)):
        pass


def test_it_waits_for_the_holder_and_logs_every_ten_seconds(tmp_path, caplog):
    clock = FakeClock()
    held, release = threading.Event(), threading.Event()

    def hold():
        with device_lock("GPU-1", True, folder=tmp_path / "locks"):
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
        device_lock("GPU-1", True, folder=tmp_path / "locks", clock=clock, sleep=sleep) as waited_s,
    ):
        assert waited_s == pytest.approx(25)
    assert [record.getMessage() for record in caplog.records if "GPU-1" in record.getMessage()] == [
        "waiting for device GPU-1, in use by another process for 10 s so far",
        "waiting for device GPU-1, in use by another process for 20 s so far",
    ]


def test_nobody_overtakes_who_waits_and_it_is_told_once_that_it_waits(tmp_path):
    clock, folder = FakeClock(), tmp_path / "locks"
    waits = []

    def wait():
        with device_lock("GPU-1", True, folder=folder, on_wait=lambda: waits.append("told")):
            waits.append("held")

    with device_lock("GPU-1", False, folder=folder):
        waiter = threading.Thread(target=wait)
        waiter.start()
        while not waits:
            pass
        with (
            pytest.raises(StillHeldError),
            device_lock("GPU-1", False, folder=folder, clock=clock, sleep=give_up_after(clock, 3)),
        ):
            pass
    waiter.join(10)
    assert waits == ["told", "held"]


def test_another_process_excludes_and_its_death_releases(tmp_path):
    folder = tmp_path / "locks"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout.readline() == "held\n"
        clock = FakeClock()
        with (
            pytest.raises(StillHeldError),
            device_lock("GPU-1", True, folder=folder, clock=clock, sleep=give_up_after(clock, 2)),
        ):
            pass
        holder.kill()
    with device_lock("GPU-1", True, folder=folder, clock=clock, sleep=give_up_after(clock, 0)):
        pass


def test_a_hostile_uuid_stays_in_its_folder(tmp_path):
    with device_lock("../../x y/..", True, folder=tmp_path / "locks"):
        pass
    assert sorted(path.name for path in (tmp_path / "locks").iterdir()) == ["_x_y_.lock", "_x_y_.next"]
    with pytest.raises(ValueError, match="uuid"), device_lock("../..", True, folder=tmp_path / "locks"):
        pass


def test_a_folder_that_is_not_ours_is_refused(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "locks").symlink_to(tmp_path / "real")
    with pytest.raises(WorkError, match="not a folder"), device_lock("GPU-1", True, folder=tmp_path / "locks"):
        pass
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkError, match="run next"), device_lock("GPU-1", True, folder=tmp_path / "file" / "locks"):
        pass


def test_the_folder_follows_the_runtime_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert locks_folder().parent.parent == tmp_path
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "absent"))
    assert tmp_path not in locks_folder().parents
