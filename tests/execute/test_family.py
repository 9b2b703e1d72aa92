import mmap
import os
import signal
import subprocess
import sys

import psutil
import pytest

from autotune.execute import family
from autotune.reliability.faults import left_after

MIB = 2**20
BELOW = """
import os, signal
for _ in range(3):
    if os.fork() == 0:
        os.setsid()
        break
print("ready", flush=True)
signal.pause()
"""


def waiting(ready, script=BELOW):
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    for _ in range(ready):
        child.stdout.readline()
    return child


@pytest.fixture
def children():
    """Two children of this process, each with three children in other process groups."""
    both = [waiting(4), waiting(4)]
    yield both
    for child in both:
        for one in [child.pid, *(below.pid for below in psutil.Process(child.pid).children() if child.poll() is None)]:
            os.kill(one, signal.SIGKILL)
        child.communicate()


def test_all_that_is_below_ends_and_who_is_spared_does_not(children):
    doomed, spared = children
    everyone = [one.pid for one in family.descendants(doomed.pid)]
    assert len(everyone) == 3
    others = {one.pid for one in family.descendants(os.getpid())} - {doomed.pid, *everyone}
    assert len(family.descendants(os.getpid(), {doomed.pid})) == len(others)
    assert family.end(doomed.pid, lambda: None)
    assert left_after(everyone, 0.0) == 0 and doomed.poll() is None
    assert len(family.descendants(spared.pid)) == 3


def test_pages_that_several_processes_share_count_once():
    size = 64 * MIB
    with mmap.mmap(-1, size) as shared:
        shared.write(b"x" * size)
        pids = []
        for _ in range(3):
            pid = os.fork()
            if pid == 0:
                for page in range(0, size, mmap.PAGESIZE):
                    shared[page]
                signal.pause()
            pids.append(pid)
        try:
            while family.memory_bytes(os.getpid(), 2**60) < 3 * size:
                pass  # they have not looked at each page yet
            assert family.memory_bytes(os.getpid(), 1) < 2.5 * size
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)


def test_of_a_process_that_is_gone_there_is_nothing_below():
    gone = subprocess.Popen(["true"])
    gone.wait()
    assert family.descendants(gone.pid) == [] and family.memory_bytes(gone.pid, 1) == 0
    assert family.end(gone.pid, lambda: None)
