"""The worker's side: a server that has imported torch once and forks a fresh process for every step.

``python -m autotune.execute.worker FD STEPS`` serves one coordinator over the inherited socket FD, with the table of
steps of the module STEPS. Each step runs in a process of its own below a keeper of its own. The server itself never
starts a thread pool of torch and never touches a GPU, so that its children begin clean. If an import did initialise
CUDA, children are started afresh instead of forked (slower, and safe). When the coordinator ends, every child ends.
"""

import contextlib
import ctypes
import importlib
import json
import os
import selectors
import signal
import socket
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from autotune.execute import child, family
from autotune.execute.keeper import keep
from autotune.execute.limits import Limits, adopt_orphans

CUDA_ERROR_NOT_INITIALIZED = 3
KEEPERS_END_S = 3.0
"""The time that keepers get to end their steps when the coordinator is gone; then they are killed with them."""


@dataclass(slots=True)
class _State:
    """The steps' numbers by their living keepers, processes that imports started, and the import that began CUDA."""

    keepers: dict[int, int] = field(default_factory=dict)
    own: set[int] = field(default_factory=set)
    began_cuda: str | None = None


def serve(control: socket.socket, steps: str) -> None:
    """Fork children on request until the coordinator's end closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the coordinator decides what Ctrl-C means
    adopt_orphans()  # of a keeper that was killed
    read_end, write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(write_end)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    selector = selectors.DefaultSelector()
    selector.register(control, selectors.EVENT_READ)
    selector.register(read_end, selectors.EVENT_READ)
    state = _State()
    while True:
        for key, _ in selector.select():
            if key.fd == read_end:
                with contextlib.suppress(BlockingIOError):
                    os.read(read_end, 4096)
                _reap(control, state)
            elif not _serve_one(control, state, (read_end, write_end, selector.fileno()), steps):
                _end_all(control, state)
                return


def _serve_one(control: socket.socket, state: _State, own_fds: tuple[int, ...], steps: str) -> bool:
    data, fds, _, _ = socket.recv_fds(control, 65536, 1)
    if not data:
        return False
    message = json.loads(data)
    if message["op"] == "preload":
        state.began_cuda = _preload(message["modules"]) or state.began_cuda
        state.own |= set(family.members(os.getpid(), state.keepers))
        return True
    server, afresh = os.getpid(), state.began_cuda is not None or _cuda_has_begun()
    limits, log = Limits.from_dict(message["limits"]), Path(message["log"])

    def start(keeper: int, output: int) -> NoReturn:
        child.confine(keeper, output, limits, log.parent)
        if not afresh:
            child.run(fds[0], steps)
        os.set_inheritable(fds[0], True)
        os.execv(sys.executable, [sys.executable, "-m", "autotune.execute.worker", str(fds[0]), steps, "step"])

    pid = os.fork()
    if pid == 0:
        signal.set_wakeup_fd(-1)
        for fd in own_fds:
            os.close(fd)
        keep(control, server, fds[0], start, log, limits, {"id": message["id"], "began_cuda": state.began_cuda})
    os.close(fds[0])
    state.keepers[pid] = message["id"]
    return True


def _reap(control: socket.socket, state: _State) -> None:
    """Note which processes have ended; if a keeper ended with an error, end its step and all processes below it."""
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            state.own.discard(ended[0])
            number = state.keepers.pop(ended[0], None)
            if number is not None and ended[1] != 0:
                family.end(os.getpid(), lambda: None, {*state.keepers, *state.own})
                code = os.waitstatus_to_exitcode(ended[1])
                report = {"op": "exited", "id": number, "code": code, "kind": None, "detail": ""}
                with contextlib.suppress(OSError):
                    control.send(json.dumps(report).encode())


def _end_all(control: socket.socket, state: _State) -> None:
    for keeper in state.keepers:
        with contextlib.suppress(ProcessLookupError):
            os.kill(keeper, signal.SIGTERM)
    deadline = time.monotonic() + KEEPERS_END_S
    while state.keepers and time.monotonic() < deadline:
        _reap(control, state)
        time.sleep(family.PAUSE_S)
    family.end(os.getpid(), lambda: _reap(control, _State()))


def _preload(modules: list[str]) -> str | None:
    """Import modules that children will need, and return the first whose import initialises CUDA.

    A module that cannot be imported here is an error of the step that needs it.
    """
    begun, culprit = _cuda_has_begun(), None
    for name in modules:
        with contextlib.suppress(Exception):
            importlib.import_module(name)
        if not begun and _cuda_has_begun():
            begun, culprit = True, name
    return culprit


def _cuda_has_begun() -> bool:
    """Return whether CUDA is initialised in this process: a forked child could not use the GPU any more."""
    # CUDA's driver is asked, if it is loaded at all. Open device files say nothing: NVML, which imports use to count
    # GPUs and which survives a fork, opens the same ones.
    try:
        driver = ctypes.CDLL("libcuda.so.1", mode=os.RTLD_NOLOAD)
    except OSError:
        return False
    return bool(driver.cuDeviceGetCount(ctypes.byref(ctypes.c_int())) != CUDA_ERROR_NOT_INITIALIZED)


def main(arguments: list[str]) -> None:
    """Serve on a descriptor, or run one step on it."""
    fd, steps, *step = arguments
    if step:
        child.run(int(fd), steps)
    serve(socket.socket(fileno=int(fd)), steps)


if __name__ == "__main__":
    main(sys.argv[1:])
