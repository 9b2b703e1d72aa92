"""Temporary folders end with their user, however it ends."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from autotune import scratch
from autotune.execute.server import WorkerServer
from autotune.scratch import MARK, PREFIX, ScratchFolder, keeping, sweep

ROOT = Path(__file__).parents[1]

USER = """
import sys, time
from pathlib import Path
from autotune.scratch import ScratchFolder
folder = ScratchFolder("study", Path(sys.argv[1]))
(folder.path / "model").mkdir()
(folder.path / "model" / "weights").write_bytes(b"1234")
print(folder.path, flush=True)
time.sleep(600)
"""

COORDINATOR = """
import sys, time
from pathlib import Path
from autotune.execute.server import WorkerServer
from autotune.scratch import ScratchFolder
with ScratchFolder("study", Path(sys.argv[1])) as folder, WorkerServer(folder) as server:
    print(folder, server._process.pid, flush=True)
    time.sleep(600)
"""


def started(code: str, parent: Path) -> tuple[subprocess.Popen[str], list[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(parent)], stdout=subprocess.PIPE, text=True, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert process.stdout is not None
    return process, process.stdout.readline().split()


def killed(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def left(parent: Path) -> list[str]:
    return sorted(os.listdir(parent))


def test_a_folder_is_deleted_at_the_end(tmp_path: Path) -> None:
    with ScratchFolder("bench", tmp_path) as folder:
        assert folder.parent == tmp_path and folder.name.startswith(f"{PREFIX}bench-")
        assert folder.stat().st_mode & 0o777 == 0o700
        (folder / "a" / "b").mkdir(parents=True)
        (folder / "a" / "b" / "file").write_text("text")
        (folder / "link").symlink_to(folder / "a")
    assert left(tmp_path) == []


def test_closing_twice_deletes_nothing_of_another(tmp_path: Path) -> None:
    folder = ScratchFolder("bench", tmp_path)
    folder.close()
    folder.path.mkdir()
    folder.close()
    assert left(tmp_path) == [folder.path.name]


def test_the_folder_of_a_killed_process_is_deleted_by_the_next_one_and_a_live_one_stays(tmp_path: Path) -> None:
    dead, (first,) = started(USER, tmp_path)
    alive, (second,) = started(USER, tmp_path)
    try:
        assert left(tmp_path) == sorted([Path(first).name, Path(second).name])  # nobody deletes what is in use
        killed(dead)
        with ScratchFolder("study", tmp_path) as folder:
            assert left(tmp_path) == sorted([Path(second).name, folder.name])
        assert (Path(second) / "model" / "weights").read_bytes() == b"1234"
    finally:
        killed(alive)
    sweep(tmp_path)
    assert left(tmp_path) == []


def test_what_a_process_left_that_was_killed_meanwhile_is_deleted_at_the_end(tmp_path: Path) -> None:
    process, (folder,) = started(USER, tmp_path)
    with ScratchFolder("study", tmp_path):
        killed(process)
        assert Path(folder).is_dir()
    assert left(tmp_path) == []


def test_workers_keep_the_folder_until_they_have_ended_too(tmp_path: Path) -> None:
    process, (folder, server) = started(COORDINATOR, tmp_path)
    os.kill(int(server), signal.SIGSTOP)  # it outlives its coordinator
    try:
        killed(process)
        sweep(tmp_path)
        assert (Path(folder) / "server.log").is_file()
    finally:
        os.kill(int(server), signal.SIGCONT)
    deadline = time.monotonic() + 60
    while left(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.05)
        sweep(tmp_path)
    assert left(tmp_path) == []


def test_a_server_in_any_other_folder_needs_no_mark(tmp_path: Path) -> None:
    with keeping(tmp_path) as descriptors:
        assert descriptors == ()
    with WorkerServer(tmp_path):
        pass
    assert left(tmp_path) == ["server.log"]


def test_folders_and_links_that_are_not_ours_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere, parent = tmp_path / "elsewhere", tmp_path / "parent"
    elsewhere.mkdir()
    parent.mkdir()
    (elsewhere / MARK).touch()
    (elsewhere / "kept").write_text("text")
    (parent / f"{PREFIX}link").symlink_to(elsewhere)
    (parent / f"{PREFIX}file").write_text("a file")
    (parent / f"{PREFIX}unmarked").mkdir()
    (parent / f"{PREFIX}unmarked" / "results").write_text("by hand")
    linked = parent / f"{PREFIX}mark-is-a-link"
    linked.mkdir()
    (linked / MARK).symlink_to(elsewhere / MARK)
    (parent / "autotune-results").mkdir()
    (parent / "autotune-results" / MARK).touch()
    before = left(parent)
    sweep(parent)
    assert left(parent) == before and left(elsewhere) == [MARK, "kept"]

    (parent / f"{PREFIX}of-another-user").mkdir()
    (parent / f"{PREFIX}of-another-user" / MARK).touch()
    user = os.geteuid()
    monkeypatch.setattr(scratch.os, "geteuid", lambda: user + 1)
    sweep(parent)
    assert f"{PREFIX}of-another-user" in left(parent)
    monkeypatch.undo()
    sweep(parent)
    assert left(parent) == before


def test_what_a_link_in_a_folder_points_to_stays(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").write_text("text")
    with ScratchFolder("study", tmp_path) as folder:
        (folder / "link").symlink_to(tmp_path / "kept")
        (folder / "inside").mkdir()
        (folder / "inside" / "link").symlink_to(tmp_path / "kept")
    assert left(tmp_path) == ["kept"] and left(tmp_path / "kept") == ["file"]


def test_a_deletion_that_was_cut_off_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process, (folder,) = started(USER, tmp_path)
    killed(process)

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(scratch.shutil, "rmtree", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sweep(tmp_path)
    monkeypatch.undo()
    assert (Path(folder) / MARK).is_file()
    sweep(tmp_path)
    assert left(tmp_path) == []


def test_an_empty_folder_of_a_process_that_was_killed_before_it_locked_it_is_deleted(tmp_path: Path) -> None:
    (tmp_path / f"{PREFIX}study-abc").mkdir()
    sweep(tmp_path)
    assert left(tmp_path) == []


def test_a_folder_swept_between_its_making_and_its_lock_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, swept = scratch.tempfile.mkdtemp, []

    def make_and_lose(**how: object) -> str:
        folder = make(**how)
        if not swept:
            swept.append(folder)
            sweep(tmp_path)
            assert not os.path.exists(folder)
        return folder

    monkeypatch.setattr(scratch.tempfile, "mkdtemp", make_and_lose)
    with ScratchFolder("study", tmp_path) as folder:
        assert str(folder) not in swept and (folder / MARK).is_file()


def test_makers_and_sweepers_at_once_never_lose_a_folder_in_use(tmp_path: Path) -> None:
    over, lost = threading.Event(), []

    def sweeping() -> None:
        while not over.is_set():
            sweep(tmp_path)

    def making() -> None:
        for number in range(100):
            with ScratchFolder("study", tmp_path) as folder:
                try:
                    (folder / "file").write_text(str(number))
                    assert (folder / "file").read_text() == str(number) and (folder / MARK).is_file()
                except OSError as error:
                    lost.append(error)

    makers = [threading.Thread(target=making) for _ in range(3)]
    sweepers = [threading.Thread(target=sweeping) for _ in range(2)]
    for thread in (*makers, *sweepers):
        thread.start()
    for thread in makers:
        thread.join()
    over.set()
    for thread in sweepers:
        thread.join()
    assert lost == []
    sweep(tmp_path)
    assert left(tmp_path) == []
