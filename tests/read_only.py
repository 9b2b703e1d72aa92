"""Folders that may not be written, and programs that this holds back even where the tests run as root."""

import contextlib
import ctypes
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from autotune.scratch import PREFIX

ROOT = Path(__file__).parents[1]
WAYS = ("permissions", "mount")
"""How writing is forbidden: by the permissions of every folder and file, or by mounting the folder read-only."""
_PR_CAPBSET_DROP, _CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH = 24, 1, 2
_MOUNT = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"'


def run_python(way: str, folder: Path, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a program that may not write a folder; what it leaves there, or of it among temporary files, is a failure."""
    scratch = folder.parent / f"{folder.name}-temporary"
    scratch.mkdir()
    command: Sequence[str] = [sys.executable, "-c", code, *arguments]
    prepare: Callable[[], None] | None = None
    with contextlib.ExitStack() as stack:
        if way == "mount":
            command = _on_a_read_only_mount(folder, command)
        else:
            stack.enter_context(_without_permissions(folder))
            prepare = _prepared()
        before = _content(folder)
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=ROOT, preexec_fn=prepare, timeout=300, check=False,
            env={**os.environ, "TMPDIR": str(scratch)},
        )  # fmt: skip
        assert _content(folder) == before
    assert [name for name in os.listdir(scratch) if name.startswith(PREFIX)] == []
    shutil.rmtree(scratch)
    return done


def _on_a_read_only_mount(folder: Path, command: Sequence[str]) -> list[str]:
    if shutil.which("unshare") is None:
        pytest.skip("unshare, which gives a program mounts of its own, is not installed")
    unshared = ["unshare", "--mount", "sh", "-c", _MOUNT, str(folder)]
    tried = subprocess.run([*unshared, "true"], capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"this user may not mount: {tried.stderr.strip()}")
    return [*unshared, *command]


@contextlib.contextmanager
def _without_permissions(folder: Path) -> Iterator[None]:
    paths = [folder, *folder.rglob("*")]
    modes = {path: path.stat().st_mode for path in paths}
    for path, mode in reversed(modes.items()):
        path.chmod(mode & ~0o222)
    try:
        yield
    finally:
        for path, mode in modes.items():
            path.chmod(mode)


def _prepared() -> Callable[[], None] | None:
    """What takes from root's program the privilege to ignore permissions; another user's needs nothing."""
    if os.geteuid() != 0:
        return None
    library = ctypes.CDLL(None, use_errno=True)

    def drop() -> None:
        for capability in (_CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH):
            if library.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0):
                raise OSError(ctypes.get_errno(), "prctl")

    try:
        subprocess.run(["true"], preexec_fn=drop, check=True)
    except subprocess.SubprocessError as error:
        pytest.skip(f"root's privileges cannot be dropped: {error}")
    return drop


def _content(folder: Path) -> dict[str, tuple[int, int]]:
    """What changes if something is written: names, sizes and times of all files and folders."""
    found = {str(path): path.lstat() for path in (folder, *folder.rglob("*"))}
    return {name: (status.st_size, status.st_mtime_ns) for name, status in found.items()}
