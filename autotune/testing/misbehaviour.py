"""Faults that a candidate can really have, each on demand, and a table of steps that have them.

Each takes a folder, in which it writes the id of every process that it starts. Call them in a worker's step only, and
never in a process that matters.
"""

import json
import os
import signal
import socket
import stat
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NoReturn, TypedDict

from autotune.execute.channel import HEADER, MARK, Channel
from autotune.execute.limits import FILE_BYTES, most_processes

PROCESSES = "processes"
BOMB_MORE, BOMB_S = 1000, 20.0
"""A fork bomb ends by itself after that many processes past the limit, or after that time. It does no harm if the limit
fails."""
FORGED = {"result": {"build_s": 0.0, "forged": True}, "identity": "0" * 32}
"""The answer of a forger: a result in the name of another step."""


def error(folder: Path) -> None:
    """Raise."""
    raise RuntimeError("this build fails on purpose")


def segfault(folder: Path) -> None:
    """Die of a segmentation fault."""
    os.kill(os.getpid(), signal.SIGSEGV)


def abort(folder: Path) -> None:
    """Die of a failed assertion, as a C++ library does."""
    os.abort()


def leave(folder: Path) -> None:
    """Leave without an answer."""
    os._exit(3)


def hang(folder: Path) -> NoReturn:
    """Wait forever."""
    while True:
        signal.pause()


def stubborn(folder: Path) -> None:
    """Hang and ignore SIGTERM, with a child in another process group that ignores it too."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _start_child(folder)
    hang(folder)


def orphan(folder: Path) -> None:
    """Succeed, and leave behind a process without a parent, in a process group of its own."""
    if os.fork() == 0:
        _start_child(folder)
        os._exit(0)
    os.wait()


def crowd(folder: Path) -> None:
    """Leave many orphans behind, and die."""
    for _ in range(20):
        orphan(folder)
    segfault(folder)


def closed(folder: Path) -> None:
    """Close the channel and every other descriptor but the output, and keep running."""
    os.closerange(3, 65536)
    hang(folder)


def kill_parent(folder: Path) -> None:
    """Kill the parent process."""
    _start_child(folder)
    os.kill(os.getppid(), signal.SIGKILL)
    hang(folder)


def memory(folder: Path) -> None:
    """Raise the error that Python raises if there is no memory."""
    raise MemoryError("this build wants more memory than there is, on purpose")


def growth(folder: Path) -> None:
    """Take more and more memory, half of it in a child."""
    if os.fork() == 0:
        _record(folder)
    blocks = []
    while True:
        blocks.append(b"x" * 2**24)
        time.sleep(0.01)


def fork_bomb(folder: Path) -> NoReturn:
    """Fork as fast as it can, as does every child, each in a session of its own; the number of processes is bounded."""
    tokens, rest = os.pipe2(os.O_NONBLOCK)
    os.write(rest, bytes(most_processes() + BOMB_MORE))
    end = time.monotonic() + BOMB_S
    while time.monotonic() < end:
        try:
            os.read(tokens, 1)
            if os.fork() == 0:
                os.setsid()
                _record(folder)
        except BlockingIOError:  # no token is left, or the system has no room for another process
            time.sleep(0.1)
    os._exit(0)


def device_memory(folder: Path) -> None:
    """Raise the error that torch raises if the device has no memory."""
    import torch

    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 96.00 GiB, on purpose")


def context_lost(folder: Path) -> None:
    """Raise the error that torch raises after a kernel wrote to an illegal address."""
    import torch

    raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered, on purpose")


def file(folder: Path) -> None:
    """Write a file past the limit (it has a hole, so that the disk does not fill up if the limit fails)."""
    with (folder / "endless").open("wb") as endless:
        endless.seek(FILE_BYTES)
        endless.write(b"x")


def descriptors(folder: Path) -> None:
    """Open files and never close them."""
    open_files = []
    while True:
        open_files.append(os.open(os.devnull, os.O_RDONLY))


def log_flood(folder: Path) -> None:
    """Print without end."""
    line = "nothing to see here " * 4000 + "\n"
    while True:
        sys.stdout.write(line)


def garbage(folder: Path) -> None:
    """Write bytes that are no message into every socket that it has."""
    _write_to_sockets(b"\x00\x01garbage on purpose" * 10)
    hang(folder)


def nested(folder: Path) -> None:
    """Write a message into every socket that is nested too deeply for any parser."""
    data = b"[" * 200_000
    _write_to_sockets(HEADER.pack(MARK, len(data)) + data)
    hang(folder)


def forged(folder: Path) -> None:
    """Send, through every socket that it has, a result in the name of another trial."""
    data = json.dumps(FORGED).encode()
    _write_to_sockets(HEADER.pack(MARK, len(data)) + data)
    hang(folder)


def printed(folder: Path) -> None:
    """Print a result as if standard output were read, and leave."""
    sys.stdout.buffer.write(json.dumps(FORGED).encode() + b"\n")
    leave(folder)


WAYS: Mapping[str, Callable[[Path], None]] = {
    "error": error,
    "segfault": segfault,
    "abort": abort,
    "exit": leave,
    "hang": hang,
    "stubborn": stubborn,
    "orphan": orphan,
    "crowd": crowd,
    "closed": closed,
    "kill_parent": kill_parent,
    "memory": memory,
    "growth": growth,
    "fork_bomb": fork_bomb,
    "device_memory": device_memory,
    "context_lost": context_lost,
    "file": file,
    "descriptors": descriptors,
    "log_flood": log_flood,
    "garbage": garbage,
    "nested": nested,
    "forged": forged,
    "printed": printed,
}


class MisbehaveRequest(TypedDict):
    """The folder for the ids of processes, and the fault."""

    folder: str
    fault: str


def _misbehave(request: MisbehaveRequest, channel: Channel) -> dict[str, object]:
    folder = Path(request["folder"])
    _record(folder)
    WAYS[request["fault"]](folder)
    return {"ended": "well"}


STEPS: Mapping[str, Callable[[MisbehaveRequest, Channel], dict[str, object]]] = {"misbehave": _misbehave}
"""For a :class:`autotune.execute.server.WorkerServer`: one step with the fault that its request names."""


def started(folder: Path) -> list[int]:
    """Return the ids of the processes of a candidate: its own, and those that it started."""
    path = folder / PROCESSES
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def _record(folder: Path) -> None:
    with (folder / PROCESSES).open("a") as processes:
        processes.write(f"{os.getpid()}\n")


def _start_child(folder: Path) -> None:
    """Fork a process that leaves the process group and waits forever; returns when its id is written."""
    reading, writing = os.pipe()
    if os.fork() == 0:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        _record(folder)
        os.write(writing, b".")
        hang(folder)
    os.read(reading, 1)
    os.close(reading)
    os.close(writing)


def _write_to_sockets(data: bytes) -> None:
    for fd in range(3, 256):
        try:
            if stat.S_ISSOCK(os.fstat(fd).st_mode):
                with socket.socket(fileno=os.dup(fd)) as channel:
                    channel.sendall(data)
        except OSError:
            continue
