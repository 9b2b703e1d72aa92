import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from autotune.execute import family
from autotune.programs.reliability.faults import left_after

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
    everyone = family.members(doomed.pid)
    assert len(everyone) == 3
    others = set(family.members(os.getpid())) - {doomed.pid, *everyone}
    assert len(family.members(os.getpid(), {doomed.pid})) == len(others)
    assert family.end(doomed.pid, lambda: None)
    assert left_after(everyone, 0.0) == 0 and doomed.poll() is None
    assert len(family.members(spared.pid)) == 3


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
        assert family.memory_bytes(family.members(child.pid), 2**60) > 3 * 64 * MIB
        assert (
            0.7 * 64 * MIB < family.memory_bytes(family.members(child.pid), 1) < 2 * 64 * MIB
        )  # a quarter is the parent's
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        child.communicate()


BOMB = """
import os, sys, time
kind, end = sys.argv[1], time.monotonic() + 15
tokens, rest = os.pipe2(os.O_NONBLOCK)
os.write(rest, bytes(500))
print("ready", flush=True)
while time.monotonic() < end:
    try:
        if kind != "relay":
            os.read(tokens, 1)
        started = os.fork()
        if started == 0 and kind != "plain":
            os.setsid()
        elif started and kind == "relay":
            os._exit(0)
    except BlockingIOError:
        time.sleep(0.1)
os._exit(0)
"""

ENDER = """
import os, subprocess, sys, time
from autotune.execute import family
from autotune.execute.limits import adopt_orphans

def reap():
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass

adopt_orphans()
bomb, kind = sys.argv[1:]
child = subprocess.Popen([sys.executable, "-c", bomb, kind], stdout=subprocess.PIPE)
child.stdout.readline()
while kind != "relay" and len(family.members(os.getpid())) < 40:
    time.sleep(0.001)
print(family.end(os.getpid(), reap, limit_s=30), len(family.members(os.getpid())))
"""


@pytest.mark.parametrize("kind", ["plain", "sessions", "relay"])
def test_who_forks_without_end_ends_as_well(kind):
    """Processes that all start others, in sessions of their own too, or one that hands on to another and ends."""
    ran = subprocess.run([sys.executable, "-c", ENDER, BOMB, kind], capture_output=True, text=True, timeout=60)
    assert ran.stdout == "True 0\n", ran.stderr


def test_to_read_the_memory_of_many_processes_can_be_stopped(children, monkeypatch):
    monkeypatch.setattr(family, "ASK_EVERY", 1)
    asked = []
    some = family.memory_bytes(family.members(children[0].pid), 1, lambda: asked.append(1) or len(asked) == 2)
    assert len(asked) == 2 and 0 < some < family.memory_bytes(family.members(children[0].pid), 1)


def test_who_is_ended_and_not_yet_waited_for_is_ending():
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert not family.is_ending(process.pid)
    process.kill()
    deadline = time.monotonic() + 10
    while not family.is_ending(process.pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert family.is_ending(process.pid)
    process.communicate()
    assert not family.is_ending(process.pid)
