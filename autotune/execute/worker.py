"""The worker's side: a server that has imported torch once and forks a fresh process for every step.

``python -m autotune.execute.worker FD`` serves one coordinator over the inherited socket FD. Each step runs in a child
of its own session, with its output in a log file and its answer on a private channel. The server itself never starts a
thread pool of torch and never touches a GPU, so that its children begin clean; where an import did begin with CUDA,
children are started afresh instead of forked (slower, and safe). When the coordinator goes, every child goes.
"""

import contextlib
import ctypes
import faulthandler
import importlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autotune.execute.channel import Channel

PR_SET_PDEATHSIG = 1
CUDA_ERROR_NOT_INITIALIZED = 3
_OUT_OF_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "failed to allocate",
    "bad_alloc",
    "cudaerrormemoryallocation",
)


@dataclass(slots=True)
class _State:
    """The children that live, by process, and the import that began with CUDA, if one did."""

    children: dict[int, int] = field(default_factory=dict)
    began_cuda: str | None = None


def serve(control: socket.socket) -> None:
    """Fork children on request until the coordinator's end closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the coordinator decides what Ctrl-C means
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
                _reap(control, state.children)
            elif not _serve_one(control, state, (read_end, write_end)):
                for pid in state.children:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(pid, signal.SIGKILL)
                return


def _serve_one(control: socket.socket, state: _State, pipe: tuple[int, int]) -> bool:
    data, fds, _, _ = socket.recv_fds(control, 65536, 1)
    if not data:
        return False
    message = json.loads(data)
    if message["op"] == "preload":
        state.began_cuda = _preload(message["modules"]) or state.began_cuda
        return True
    if state.began_cuda is not None or _cuda_has_begun():
        pid = _start_afresh(fds[0], message["log"], message["step"])
    else:
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            for fd in (*pipe, control.fileno()):
                os.close(fd)
            _child(fds[0], message["log"], message["step"])
    os.close(fds[0])
    state.children[pid] = message["id"]
    _tell(control, {"op": "started", "id": message["id"], "pid": pid, "began_cuda": state.began_cuda})
    return True


def _tell(control: socket.socket, message: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):
        control.send(json.dumps(message).encode())


def _reap(control: socket.socket, children: dict[int, int]) -> None:
    while children:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        if pid in children:
            code = os.waitstatus_to_exitcode(status)
            _tell(control, {"op": "exited", "id": children.pop(pid), "code": code})


def _preload(modules: list[str]) -> str | None:
    """Import what children will need, and return the first module whose import begins with CUDA.

    What cannot be imported here will be told where it is needed.
    """
    begun, culprit = _cuda_has_begun(), None
    for name in modules:
        with contextlib.suppress(Exception):
            importlib.import_module(name)
        if not begun and _cuda_has_begun():
            begun, culprit = True, name
    return culprit


def _cuda_has_begun() -> bool:
    """Whether CUDA is initialised in this process: a forked child could not use the GPU any more.

    CUDA's driver is asked, where it is loaded at all. Open device files tell nothing: NVML, which imports use to count
    GPUs and which survives a fork, opens the same ones.
    """
    try:
        driver = ctypes.CDLL("libcuda.so.1", mode=os.RTLD_NOLOAD)
    except OSError:
        return False
    return bool(driver.cuDeviceGetCount(ctypes.byref(ctypes.c_int())) != CUDA_ERROR_NOT_INITIALIZED)


def _start_afresh(fd: int, log: str, step: str) -> int:
    command = [sys.executable, "-m", "autotune.execute.worker", str(fd), step, log]
    return subprocess.Popen(command, pass_fds=(fd,)).pid


def _child(fd: int, log: str, step: str) -> None:
    """Run one step and leave by ``_exit``, whatever the libraries it loaded would do at exit."""
    os.setsid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("900")  # rather this process than the coordinator
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(source, target)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    faulthandler.enable()  # a crash leaves its stack in the log
    faulthandler.register(signal.SIGUSR1, all_threads=True)  # and so does a step that is out of time
    channel = Channel.from_fd(fd)
    code = 0
    try:
        from autotune.execute import steps

        request = channel.receive()
        if request is not None:
            channel.send({"result": steps.STEPS[step](request, channel)})
    except BaseException as error:  # the worker's border: whatever it was is told and recorded
        code = 1
        traceback.print_exc()
        with contextlib.suppress(Exception):
            channel.send({"error": _explain(error)})
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _explain(error: BaseException) -> dict[str, Any]:
    from autotune.errors import AutotuneError

    text = f"{type(error).__name__}: {error}" if not isinstance(error, AutotuneError) else str(error)
    memory = isinstance(error, MemoryError) or any(sign in text.lower() for sign in _OUT_OF_MEMORY)
    explained: dict[str, Any] = {"kind": "out_of_memory" if memory else "error", "detail": text[:4000]}
    if isinstance(error, AutotuneError):
        explained["raised"] = [type(error).__name__, error.asked, error.found, error.expected, error.run]
    return explained


def main(arguments: list[str]) -> None:
    """Serve on a descriptor, or run the one step named after it."""
    if len(arguments) == 3:
        _child(int(arguments[0]), arguments[2], arguments[1])
    serve(socket.socket(fileno=int(arguments[0])))


if __name__ == "__main__":
    main(sys.argv[1:])
