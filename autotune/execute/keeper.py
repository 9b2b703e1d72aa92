"""The process between the worker server and one step: it keeps the step's family, output and memory, and outlives them.

Every process that a step starts, in whatever session and however orphaned, stays below its keeper, which adopts
orphans. So the end of the step, by itself or by force, is the end of all of them. The keeper runs nothing of a
candidate's, reports to the coordinator itself how the step ended, and ends it if the coordinator or the server is gone.
Orders are signals: SIGTERM ends the step; SIGUSR1 lets it write first into its log where it stands.
"""

import contextlib
import fcntl
import json
import os
import select
import signal
import socket
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NoReturn

from autotune.execute import family
from autotune.execute.limits import Limits, adopt_orphans, end_with_parent, run_before_others
from autotune.execute.output import OutputLog
from autotune.records.trial import FailureKind
from autotune.runtime.host_memory import HostMemory

LOOK_S = 0.25
"""Between two looks at the memory and the number of the processes."""

LOOK_SHARE = 0.05
"""The most time that looks may take: each reads every process of the host, and candidates are timed meanwhile."""

STACK_S = 0.3
"""The time that a step which is out of time gets to write its stack into its log."""

PIPE_BYTES = 2**20
"""The size of a pipe without privileges (/proc/sys/fs/pipe-max-size): fewer turns if a step prints much."""


def keep(
    control: socket.socket, server: int, channel: int, start: Callable[[int, int], NoReturn], log: Path,
    limits: Limits, about: Mapping[str, object],
) -> NoReturn:  # fmt: skip
    """Fork the step, and watch it until it has ended.

    ``start`` runs the step; it gets the process id of this keeper and the descriptor that its output goes to.
    ``channel`` is the step's descriptor. ``about`` is sent to the coordinator with the report that the step has begun;
    it holds the step's ``id``.
    """
    code, me = 1, os.getpid()
    try:
        os.setsid()
        adopt_orphans()
        wakeup, write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, lambda *_: None)
        signal.set_wakeup_fd(write_end)
        end_with_parent(server, signal.SIGTERM)
        output, theirs = os.pipe2(os.O_CLOEXEC)
        with contextlib.suppress(OSError):
            fcntl.fcntl(output, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        step = os.fork()
        if step == 0:
            signal.set_wakeup_fd(-1)
            for fd in (wakeup, write_end, output, control.fileno()):
                os.close(fd)
            start(me, theirs)
        run_before_others()
        os.close(theirs)
        os.close(channel)
        os.set_blocking(output, False)
        _report(control, {**about, "op": "started", "pid": step, "keeper": me})
        keeper = _WatchedStep(step, wakeup, output, OutputLog(log), limits.within(HostMemory.read()))
        keeper.watch(control)
        keeper.end()
        ended = {"op": "exited", "id": about["id"], "code": keeper.code, "kind": keeper.kind, "detail": keeper.detail}
        _report(control, ended)
        code = 0
    except BaseException:  # a border: it goes into the server's log, and the exit code reports it to the server
        traceback.print_exc()
    finally:
        os._exit(code)


def _report(control: socket.socket, message: Mapping[str, object]) -> None:
    with contextlib.suppress(OSError):
        control.send(json.dumps(message).encode())


class _WatchedStep:
    """One running step, its exit code once it has one, and the reason of its end if no order ended it."""

    def __init__(self, step: int, wakeup: int, output: int, log: OutputLog, limits: Limits) -> None:
        self._step, self._wakeup, self._output, self._log, self._limits = step, wakeup, output, log, limits
        self.code: int | None = None
        self.kind: FailureKind | None = None
        self.detail = ""
        self._kernel_killed = kernel_kills()

    def watch(self, control: socket.socket) -> None:
        """Return once the step has ended or has to."""
        poll = select.poll()
        poll.register(control, 0)  # only that its other end is gone
        poll.register(self._wakeup, select.POLLIN)
        poll.register(self._output, select.POLLIN)
        look_at, end_at = 0.0, float("inf")
        while self.code is None and self.kind is None and time.monotonic() < end_at:
            if (begin := time.monotonic()) >= look_at:
                if self._is_past_limits():
                    return
                now = time.monotonic()
                look_at = now + max(LOOK_S, (now - begin) / LOOK_SHARE)
            for fd, events in poll.poll(max(0.0, min(look_at, end_at) - time.monotonic()) * 1e3):
                if fd == control.fileno():
                    return
                if fd == self._output:
                    if not self._take_output() and events & select.POLLHUP:
                        poll.unregister(self._output)  # every process that could print has closed it
                    continue
                orders = os.read(self._wakeup, 4096)
                if signal.SIGTERM in orders:
                    return
                if signal.SIGUSR1 in orders and end_at == float("inf"):
                    end_at = time.monotonic() + STACK_S
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(self._step, signal.SIGUSR1)
            self._reap()
        if self.code == -signal.SIGKILL and kernel_kills() > self._kernel_killed:
            self._end_for("out_of_memory", "host memory: the kernel had none left and killed it")

    def end(self) -> None:
        """Kill the rest of the family and keep its output."""
        family.end(os.getpid(), self._reap)
        self._reap()
        while self.kind is None and self._take_output():
            pass
        self._log.close()

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if ended[0] == self._step:
                    self.code = os.waitstatus_to_exitcode(ended[1])

    def _is_past_limits(self) -> bool:
        """Read the number of processes and their memory, and keep the reason if one is past its limit."""
        members = family.members(os.getpid())
        if self._is_crowded(len(members)):
            return True
        limit = self._limits.memory_bytes
        used = family.memory_bytes(members, limit, lambda: self._is_crowded(len(family.members(os.getpid()))))
        if used > limit and self.kind is None:
            self._end_for("out_of_memory", f"host memory: it grew past the limit of {limit / 2**30:.3g} GiB")
        return self.kind is not None

    def _is_crowded(self, count: int) -> bool:
        """Check the number of processes: the host can run out of them, as of memory."""
        if count > self._limits.processes:
            detail = f"host processes: it had {count} at once, past the limit of {self._limits.processes}"
            self._end_for("out_of_memory", detail)
        return self.kind is not None

    def _take_output(self) -> bool:
        try:
            data = os.read(self._output, PIPE_BYTES)
        except BlockingIOError:
            return False
        self._log.write(data)
        if self._log.total_bytes > self._limits.log_bytes:
            self._end_for("log_flood", f"it printed more than {self._limits.log_bytes / 2**20:g} MiB")
        return bool(data)

    def _end_for(self, kind: FailureKind, detail: str) -> None:
        self.kind, self.detail = kind, detail


def kernel_kills(counters: Path = Path("/proc/vmstat")) -> int:
    """Return how many processes the kernel has killed because memory was out; 0 if that cannot be read."""
    with contextlib.suppress(OSError, ValueError):
        values = dict(line.split() for line in counters.read_text().splitlines())
        return int(values.get("oom_kill", 0))
    return 0
