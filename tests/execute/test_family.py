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


SHARING = """
import mmap, os, signal
size = 64 * 2**20
shared = mmap.mmap(-1, size)
shared.write(b"x" * size)
for _ in range(3):
    if os.fork() == 0:
        for page in range(0, size, mmap.PAGESIZE):
            shared[page]
        break
print("ready", flush=True)
signal.pause()
"""


def test_pages_that_several_processes_share_count_once():
    # Not of this process itself: what a whole test run has loaded by now would hide the 64 MiB.
    child = waiting(4, SHARING)
    pids = [child.pid, *(below.pid for below in psutil.Process(child.pid).children())]
    try:
        assert family.memory_bytes(child.pid, 2**60) > 3 * 64 * MIB
        assert 0.7 * 64 * MIB < family.memory_bytes(child.pid, 1) < 2 * 64 * MIB  # a quarter is the parent's
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        child.communicate()
