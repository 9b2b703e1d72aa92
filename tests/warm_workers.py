"""Worker servers that have torch when they begin: they are forked from one process that has imported it.

The import takes seconds of CPU, and every study and every proof starts a server of its own. A server in a test differs
from a real one only in that: it has the environment, the path, the descriptors and the session of one that was started.
Tests that run alone start theirs from nothing (tests/groups.py).
"""

import atexit
import contextlib
import functools
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from autotune.execute import worker
from autotune.execute.executor import PRELOAD
from autotune.execute.server import STEPS

READ_BY_IMPORTS = ("AUTOTUNE_TESTS", "CUDA", "GOMP", "KMP", "LD_", "MKL", "OMP", "OPENBLAS", "PYTHONHASH", "TORCH")
"""The beginnings of variables that an import reads: a server with others is started from nothing."""


TABLES = (STEPS, "autotune.kernels.steps")
"""The tables of steps that need torch; limits of memory in tests of others are for processes without it."""


class ForkedServer:
    """A process that another one has forked, as ``subprocess.Popen`` offers one."""

    def __init__(self, pid: int, descriptor: int) -> None:
        self.pid, self._descriptor = pid, descriptor

    def __del__(self) -> None:
        os.close(self._descriptor)

    def poll(self) -> int | None:
        """Return 0 if it has ended, however; None if it has not."""
        return 0 if select.select([self._descriptor], [], [], 0)[0] else None

    def wait(self, timeout: float | None = None) -> int:
        if not select.select([self._descriptor], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired("worker", timeout or 0.0)
        return 0

    def kill(self) -> None:
        if self.poll() is None:
            signal.pidfd_send_signal(self._descriptor, signal.SIGKILL)


def fork_servers(patch: pytest.MonkeyPatch) -> None:
    """Let worker servers of this process be forked, until the patch is undone."""
    from autotune.execute import server

    names = {name: getattr(subprocess, name) for name in ("DEVNULL", "TimeoutExpired")}
    patch.setattr(server, "subprocess", SimpleNamespace(Popen=_start, **names))


def _start(command, *, pass_fds, stdout, env, **options):
    *_, descriptor, steps = command
    path = env["PYTHONPATH"].split(os.pathsep)
    ours = Path(__file__).with_name("child_processes")
    customized = next((entry for entry in path if Path(entry, "sitecustomize.py").exists()), None)
    if steps not in TABLES or customized != str(ours):
        return subprocess.Popen(command, pass_fds=pass_fds, stdout=stdout, env=env, **options)
    variables = {name: value for name, value in env.items() if name.startswith(READ_BY_IMPORTS)}
    warm = _warm(json.dumps(variables, sort_keys=True))
    if not warm.ready():
        return subprocess.Popen(command, pass_fds=pass_fds, stdout=stdout, env=env, **options)
    order = {"environment": env, "path": path, "folder": os.getcwd(), "steps": steps}
    return warm.fork(order, [int(descriptor), stdout.fileno(), *(each for each in pass_fds if each != int(descriptor))])


class Warm:
    """The end of the socket at which servers are ordered from a process that imports, then forks."""

    def __init__(self, control: socket.socket) -> None:
        self._control, self._ready, self._lock = control, False, threading.Lock()

    def ready(self) -> bool:
        """Report whether it has imported everything; a server is started from nothing rather than waits for that."""
        with self._lock:
            if not self._ready and select.select([self._control], [], [], 0)[0]:
                self._ready = bool(self._control.recv(64))
            return self._ready

    def fork(self, order, descriptors) -> ForkedServer:
        with self._lock:
            socket.send_fds(self._control, [json.dumps(order).encode()], descriptors)
            pid, (process,), _, _ = socket.recv_fds(self._control, 64, 1)
        return ForkedServer(int(pid), process)


@functools.cache
def _warm(variables: str) -> Warm:
    """Start the process that forks servers with these variables; it ends with this process."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(READ_BY_IMPORTS)}
    environment = {**kept, **json.loads(variables), "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
    code = f"from tests import warm_workers; warm_workers.serve({theirs.fileno()})"
    process = subprocess.Popen(
        [sys.executable, "-c", code], pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, env=environment
    )
    atexit.register(process.wait)
    atexit.register(ours.close)  # at which it ends
    theirs.close()
    return Warm(ours)


def serve(descriptor: int) -> None:
    """Fork a server for each order, and answer with its process id and a descriptor of the process."""
    control = socket.socket(fileno=descriptor)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, _reap)
    for module in PRELOAD:
        importlib.import_module(module)
    control.send(b"ready")
    while True:
        data, descriptors, _, _ = socket.recv_fds(control, 1 << 17, 16)
        if not data:
            return
        pid = os.fork()
        if not pid:
            control.close()
            _become_server(json.loads(data), descriptors)
        process = os.pidfd_open(pid)
        socket.send_fds(control, [str(pid).encode()], [process])
        for each in (process, *descriptors):
            os.close(each)


def _reap(*_: object) -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _become_server(order, descriptors) -> None:
    control, log, *_ = descriptors  # the others only stay open
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.chdir(order["folder"])
    os.environ.clear()
    os.environ.update(order["environment"])
    sys.path[:] = [*order["path"], *(entry for entry in sys.path if entry not in order["path"])]
    importlib.invalidate_caches()
    try:
        worker.main([str(control), order["steps"]])
    finally:
        os._exit(0)
