"""The coordinator's side: start a worker server, run steps in processes of their own, and outlive whatever they do."""

import contextlib
import itertools
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from autotune import errors
from autotune.errors import AutotuneError, WorkerError
from autotune.execute.channel import Channel, ChannelClosed
from autotune.trial import Failure, FailureKind, Stage

log = logging.getLogger(__name__)

LOG_TAIL_BYTES = 8000
POLL_S = 0.25
STACK_S = 0.3
"""A step that is out of time gets so long to write its stack into its log."""

Span = tuple[str, float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """What a step answered, or how it failed, and when it was in which stage (monotonic seconds)."""

    value: dict[str, Any] | None
    failure: Failure | None
    spans: tuple[Span, ...]
    seconds: float
    raised: AutotuneError | None = None


class Session:
    """One running step: messages both ways, a stage, and an end that is always told.

    ``ready`` and ``turn`` are for whoever talks to the step: whether it has loaded, and what it works on.
    """

    def __init__(self, server: "WorkerServer", channel: Channel, log: Path, stage: Stage) -> None:
        self._server, self._channel, self._log = server, channel, log
        self.stage: Stage = stage
        self.started = time.monotonic()
        self.pid = 0
        self.ready = False
        self.turn: str | None = None
        self.exit_code: int | None = None
        self.begun, self.ended = threading.Event(), threading.Event()
        self._marks: list[tuple[str, float]] = [("starting", self.started)]
        self._killed_for: FailureKind | None = None

    def send(self, message: dict[str, Any]) -> None:
        """Send a message to the step."""
        self._channel.send(message)

    def receive(self, timeout_s: float) -> dict[str, Any]:
        """The next message that is not a stage mark; kills the step on timeout or for its memory.

        Raises ChannelClosed once the step is gone; :meth:`failure` then says why.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            message = self._channel.receive(POLL_S)
            if self._server.closed:
                raise ChannelClosed("the study was stopped")
            if message is None:
                if time.monotonic() > deadline:
                    self.kill("timeout")
                elif self._server.memory_bytes(self.pid) > self._server.memory_limit_bytes:
                    self.kill("out_of_memory")
                continue
            if "stage" in message:
                self.stage = message["stage"]
                self._marks.append((message["stage"], message["at"]))
                continue
            return message

    def kill(self, why: FailureKind | None = None) -> None:
        """Kill the step and everything in its session."""
        self._killed_for = self._killed_for or why
        if self.begun.wait(10) and self.exit_code is None:
            if why == "timeout":
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(self.pid, signal.SIGUSR1)  # it writes down where it stands
                self.ended.wait(STACK_S)
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)

    def finish(self) -> None:
        """Close the channel and wait until the process is gone, killing it if it lingers."""
        self._channel.close()
        if not self.ended.wait(2):
            self.kill()
            self.ended.wait(5)
        self._marks.append(("end", time.monotonic()))

    @property
    def spans(self) -> tuple[Span, ...]:
        """Stages with their begin and end, in order."""
        return tuple((name, begin, max(begin, end)) for (name, begin), (_, end) in itertools.pairwise(self._marks))

    def failure(self, limit_s: float) -> Failure:
        """Why a step that ended without an answer failed."""
        kind, detail, figure = self._verdict(limit_s)
        return Failure(stage=self.stage, kind=kind, detail=detail, log_tail=self.log_tail(), figure=figure)

    def log_tail(self) -> str:
        """The last few kilobytes that the step printed."""
        with contextlib.suppress(OSError), self._log.open("rb") as file:
            file.seek(max(0, self._log.stat().st_size - LOG_TAIL_BYTES))
            return file.read().decode(errors="replace")
        return ""

    def _verdict(self, limit_s: float) -> tuple[FailureKind, str, float | None]:
        if self._killed_for == "timeout":
            return "timeout", f"no answer within {limit_s:g} s", limit_s
        if self._killed_for == "out_of_memory":
            limit = self._server.memory_limit_bytes / 2**30
            return "out_of_memory", f"the process grew past the limit of {limit:.1f} GiB of host memory", limit
        code = self.exit_code
        if code is not None and code < 0:
            name = signal.Signals(-code).name if -code in signal.valid_signals() else str(-code)
            return "crash", f"the process was killed by {name}", float(-code)
        return "protocol", f"the process ended with code {code} and gave no answer", None


class WorkerServer:
    """Owns the worker server process; steps may run at once from several threads."""

    def __init__(self, folder: Path, *, memory_limit_bytes: int | None = None) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control, self._lock, self._ids = ours, threading.Lock(), itertools.count()
        self._folder = folder
        self._sessions: dict[int, Session] = {}
        self.closed = self._starts_slowly = False
        self.memory_limit_bytes = memory_limit_bytes or int(psutil.virtual_memory().total * 0.85)
        environment = dict(os.environ)
        environment["PYTHONPATH"] = os.pathsep.join(str(Path(entry or ".").resolve()) for entry in sys.path)
        environment["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # torch may look for GPUs without opening one
        self._log = folder / "server.log"
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "autotune.execute.worker", str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )
        theirs.close()
        threading.Thread(target=self._listen, daemon=True, name="autotune-workers").start()

    def preload(self, modules: list[str]) -> None:
        """Let the server import modules that later steps need; a message must stay below 64 KiB."""
        with self._lock, contextlib.suppress(OSError):
            for first in range(0, len(modules), 200):
                order = {"op": "preload", "modules": modules[first : first + 200]}
                self._control.send(json.dumps(order).encode())

    def start(self, step: str, request: dict[str, Any], stage: Stage = "build") -> Session:
        """Begin a step in a process of its own; raises WorkerError where the server is gone."""
        number = next(self._ids)
        ours, theirs = socket.socketpair()
        log = self._folder / f"{number:04d}-{step}.log"
        session = Session(self, Channel(ours), log, stage)
        order = json.dumps({"op": "spawn", "id": number, "step": step, "log": str(log)}).encode()
        with self._lock:
            self._sessions[number] = session
            try:
                socket.send_fds(self._control, [order], [theirs.fileno()])
            except OSError as error:
                raise self._gone() from error
            finally:
                theirs.close()
        session.send(request)
        return session

    def run(
        self,
        step: str,
        request: dict[str, Any],
        *,
        timeout_s: float,
        stage: Stage = "build",
        meanwhile: Callable[[], None] | None = None,
        on_loaded: Callable[[Session], None] | None = None,
    ) -> StepResult:
        """Run a step to its end; whatever becomes of it is a value.

        ``meanwhile`` is called once it has begun; ``on_loaded`` when it has loaded and waits to be told to go on.
        """
        session = self.start(step, request, stage)
        if meanwhile is not None:
            meanwhile()
        value: dict[str, Any] | None = None
        failure: Failure | None = None
        raised: AutotuneError | None = None
        try:
            while value is None and failure is None:
                message = session.receive(timeout_s)
                if "loaded" in message and on_loaded is not None:
                    on_loaded(session)
                elif "result" in message:
                    value = message["result"]
                elif "error" in message:
                    error = message["error"]
                    raised = _raised(error)
                    failure = Failure(
                        stage=session.stage, kind=error["kind"], detail=error["detail"], log_tail=session.log_tail()
                    )
            session.finish()
        except ChannelClosed:
            session.finish()
            if self._process.poll() is not None and not self.closed:
                raise self._gone() from None
            failure = session.failure(timeout_s)
        stages = ", ".join(f"{name} {end - begin:.2f} s" for name, begin, end in session.spans)
        log.info("step %s of process %d: %s", step, session.pid, stages)
        return StepResult(
            value=value, failure=failure, spans=session.spans, seconds=time.monotonic() - session.started, raised=raised
        )

    def memory_bytes(self, pid: int) -> int:
        """Resident memory of a step and its children."""
        try:
            process = psutil.Process(pid) if pid else None
            family = [process, *process.children(recursive=True)] if process else []
            return sum(member.memory_info().rss for member in family)
        except psutil.Error:
            return 0

    def stop(self) -> None:
        """Kill every step; whoever waits for one is told that it is gone. Safe in a signal handler."""
        self.closed = True
        for session in list(self._sessions.values()):
            if not session.ended.is_set() and session.begun.is_set():
                session.kill()

    def close(self) -> None:
        """Kill every step, then the server."""
        self.stop()
        with contextlib.suppress(OSError):
            self._control.shutdown(socket.SHUT_RDWR)
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._control.close()

    def __enter__(self) -> "WorkerServer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _listen(self) -> None:
        while True:
            try:
                data = self._control.recv(65536)
            except OSError:
                data = b""
            if not data:
                for session in list(self._sessions.values()):
                    session.begun.set()
                    session.ended.set()
                return
            message = json.loads(data)
            session = self._sessions[message["id"]]
            if message["op"] == "started":
                session.pid = message["pid"]
                session.begun.set()
                self._note_slow_start(message["began_cuda"])
            else:
                session.exit_code = message["code"]
                session.ended.set()

    def _note_slow_start(self, began_cuda: str | None) -> None:
        if began_cuda is not None and not self._starts_slowly:
            self._starts_slowly = True
            log.warning("importing %s begins with CUDA, so every step imports for itself: it starts slower", began_cuda)

    def _gone(self) -> WorkerError:
        tail = self._log.read_text(errors="replace")[-2000:] if self._log.exists() else ""
        return WorkerError(
            "the worker server is gone",
            found=tail.strip() or "no output",
            expected="a running server",
            run="autotune doctor",
        )


def _raised(error: dict[str, Any]) -> AutotuneError | None:
    """The project's own error that a step raised, as itself again."""
    if "raised" not in error:
        return None
    name, asked, found, expected, run = error["raised"]
    kind = getattr(errors, name, AutotuneError)
    made: AutotuneError = kind(asked, found=found, expected=expected, run=run)
    return made
