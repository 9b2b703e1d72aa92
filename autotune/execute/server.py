"""The coordinator's side: start a worker server, run steps in processes of their own, and outlive whatever they do."""

import contextlib
import itertools
import json
import logging
import math
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autotune import errors, scratch
from autotune.errors import AutotuneError, WorkerError
from autotune.execute import family
from autotune.execute.channel import IDENTITY, Channel, ChannelClosed, NotOurs
from autotune.execute.limits import SHARE_OF_MEMORY, Limits
from autotune.execute.message import WAIT, checked
from autotune.execute.notices import Notices, Tell
from autotune.execute.step_clock import StepClock
from autotune.records.trial import Failure, FailureKind, Stage
from autotune.runtime.host_memory import HostMemory

log = logging.getLogger(__name__)

LOG_TAIL_BYTES = 8000
"""So much of a step's output goes on record with its failure, of what its log keeps."""
POLL_S = 0.25
WAIT_LIMIT_S = 3600.0
"""So long a step may wait for a device in one order: several times what the longest finals of another study hold it."""
QUEUED = "queued"
"""What a span is named in which a step waits for another step of its own server."""
LINGER_S = 2.0
"""A step that has answered, or has closed its channel, gets so long to end."""
TEARDOWN_S = 30.0
"""The kernel gets so long to take down a step that has ended: its channel closes before its contexts on a GPU do."""
STEPS = "autotune.execute.steps"
SECRETS = ("AUTOTUNE_DB", "PGPASSWORD")
"""Variables that may hold a password; no step needs a database, and a candidate may print all that it finds."""

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

    def __init__(self, server: "WorkerServer", channel: Channel, step: str, log: Path, stage: Stage) -> None:
        self._server, self._channel, self._step, self._log = server, channel, step, log
        self.identity = secrets.token_hex(16)
        self.stage: Stage = stage
        self.started = time.monotonic()
        self.pid = self.keeper = 0
        self.ready = False
        self.turn: str | None = None
        self.exit_code: int | None = None
        self.begun, self.ended = threading.Event(), threading.Event()
        self._marks: list[tuple[str, float]] = [("starting", self.started)]
        self._told: dict[str, Any] | None = None
        self._broken: str | None = None
        self._clock = StepClock(self.started, WAIT_LIMIT_S)
        self.ended_for: FailureKind | None = None
        self.ended_with = ""

    def send(self, message: dict[str, Any]) -> None:
        """Send an order to the step; the limits of :meth:`receive` count from now."""
        self.begin_order()
        self._channel.send(message)

    def begin_order(self) -> None:
        """Let limits count from now, because nobody has listened to the step since its order."""
        self._clock.begin_order(time.monotonic())

    def begin_part(self) -> None:
        """Let the limit of a part count from now, for the step has begun one that was expected of it."""
        self._clock.begin_part(time.monotonic())

    def receive(self, limit_s: float, order_limit_s: float = math.inf) -> dict[str, Any]:
        """The next message that is not a stage mark; kills the step on timeout, or where it says what no step says.

        ``limit_s`` is that of the order, or of its parts if it has such (:meth:`begin_part`), and ``order_limit_s`` of
        the whole order then. Both count from the order or the part, whatever the step has said meanwhile. While it
        waits for a device that another process uses its time stands still: see :class:`StepClock`.
        Raises ChannelClosed once the step is gone; :meth:`failure` then says why.
        """
        while True:
            now = time.monotonic()
            left_s = min(limit_s - self._clock.part_s(now), order_limit_s - self._clock.order_s(now))
            if left_s <= 0 and self.ended_for is None:
                self.kill("timeout")
            try:
                message = self._channel.receive(min(POLL_S, left_s) if left_s > 0 else POLL_S)
                if message is not None:
                    message = checked(message, self.identity, self._step)
            except NotOurs as error:
                self._broken = f"{error.asked}, found: {error.found}"
                self.kill("protocol")
                raise
            if self._server.closed:
                raise ChannelClosed("the study was stopped")
            if message is None:
                if self.ended.is_set():
                    raise ChannelClosed("the step ended")
            elif "stage" in message:
                self._enter(message)
            else:
                self._told = message.get("error", self._told)
                return message

    def _enter(self, message: dict[str, Any]) -> None:
        """Take note of the stage that a step is in; tell the user if it waits for others than the server's steps."""
        name, at, now = message["stage"], message["at"], time.monotonic()
        if name == WAIT:
            self._clock.wait(at, now)
            if self._server.owns(message.get("pids", ())):
                name = QUEUED
            elif "holder" in message:
                # One study holds the device by one process after the other.
                self._server.notices.say(message["holder"], of=re.sub(r"\d+", "", message["holder"]))
        else:
            self._clock.work(at, now)
            self.stage = name
        if name not in (WAIT, QUEUED) or self._marks[-1][0] != name:
            self._marks.append((name, at))

    def rest(self) -> None:
        """Note that the step has nothing to do until it is told more."""
        self.ready = True
        self._marks.append(("idle", time.monotonic()))

    def kill(self, why: FailureKind | None = None) -> None:
        """Have the step and everything that it started killed; where it is out of time, it says first where it is."""
        self.ended_for = self.ended_for or why
        if self.begun.wait(10) and not self.ended.is_set():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(self.keeper, signal.SIGUSR1 if why == "timeout" else signal.SIGTERM)

    def finish(self) -> None:
        """Close the channel and wait until the processes are gone, killing them if they linger."""
        self._channel.close()
        if not self.ended.wait(LINGER_S) and family.is_ending(self.pid):
            self.ended.wait(TEARDOWN_S)
        if not self.ended.is_set():
            self.kill("protocol")
            if not self.ended.wait(LINGER_S):
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(self.keeper, signal.SIGKILL)  # something stopped it; the server ends what it kept
                self.ended.wait(LINGER_S)
        self._marks.append(("end", time.monotonic()))

    @property
    def waited_s(self) -> float:
        """How long it has waited for other processes so far."""
        return sum(end - begin for name, begin, end in self.spans if name == WAIT)

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
        if self.ended_for == "timeout":
            waited_s = self._clock.waited_s(time.monotonic())
            beside = f", not counting {waited_s:.0f} s of waiting for the device" if waited_s >= 1 else ""
            return "timeout", f"no answer within {limit_s:g} s{beside}", limit_s
        if self.ended_for in ("out_of_memory", "log_flood"):
            return self.ended_for, self.ended_with, None
        if self._told is not None:
            return self._told["kind"], self._told["detail"], None
        if self.ended_for == "protocol":
            return "protocol", self._broken or "it closed its channel and went on", None
        code = self.exit_code
        if code is not None and code < 0:
            name = signal.Signals(-code).name if -code in signal.valid_signals() else str(-code)
            return "crash", f"the process was killed by {name}", float(-code)
        return "protocol", f"the process ended with code {code} and gave no answer", None


class WorkerServer:
    """Owns the worker server process; steps may run at once from several threads.

    ``steps`` names the module whose table ``STEPS`` holds the functions of the steps. ``work`` is what they are run
    for, as other processes are told that wait for their device; ``tell`` shows a line to the user: for whom a step
    waits, or what else is on its device. Without it the log gets such a line.
    """

    def __init__(
        self,
        folder: Path,
        *,
        memory_limit_bytes: int | None = None,
        steps: str = STEPS,
        work: str = "",
        tell: Tell | None = None,
    ) -> None:
        self.notices, self._work = Notices(tell), work
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control, self._lock, self._ids = ours, threading.Lock(), itertools.count()
        self._folder = folder
        self._sessions: dict[int, Session] = {}
        self.closed = self._starts_slowly = False
        self.memory_limit_bytes = memory_limit_bytes or int(SHARE_OF_MEMORY * HostMemory.read().total_bytes)
        environment = {name: value for name, value in os.environ.items() if name not in SECRETS}
        environment["PYTHONPATH"] = os.pathsep.join(str(Path(entry or ".").resolve()) for entry in sys.path)
        environment["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # torch may look for GPUs without opening one
        self._log = folder / "server.log"
        with self._log.open("ab") as log, scratch.keeping(folder) as kept:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "autotune.execute.worker", str(theirs.fileno()), steps],
                pass_fds=(theirs.fileno(), *kept),
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
        session = Session(self, Channel(ours), step, log, stage)
        limits = Limits(memory_bytes=self.memory_limit_bytes)
        order = json.dumps({"op": "spawn", "id": number, "log": str(log), "limits": limits.as_dict()}).encode()
        with self._lock:
            self._sessions[number] = session
            try:
                socket.send_fds(self._control, [order], [theirs.fileno()])
            except OSError as error:
                raise self._gone() from error
            finally:
                theirs.close()
        purpose = f"{self._work} ({step.replace('_', ' ')})" if self._work else step.replace("_", " ")
        with contextlib.suppress(ChannelClosed):  # it was stopped at once: whoever listens to it is told
            session.send({IDENTITY: session.identity, "step": step, "request": request, "purpose": purpose})
        return session

    def owns(self, pids: Sequence[int]) -> bool:
        """Whether all these processes, and there are some, are steps of this server."""
        own = {session.pid for session in list(self._sessions.values())}
        return bool(pids) and own.issuperset(pids)

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

        ``timeout_s`` is for the step, and anew for what ``on_loaded`` orders: that is called when the step has loaded
        and waits to be told to go on. ``meanwhile`` is called once it has begun.
        """
        session = self.start(step, request, stage)
        if meanwhile is not None:
            meanwhile()
        value: dict[str, Any] | None = None
        error: dict[str, Any] | None = None
        failure: Failure | None = None
        try:
            while value is None and error is None:
                message = session.receive(timeout_s)
                if "loaded" in message and on_loaded is not None:
                    on_loaded(session)
                    on_loaded = None  # what says so again gets no more time
                elif "result" in message:
                    value = message["result"]
                error = message.get("error")
            session.finish()
        except ChannelClosed:
            session.finish()
            if self._process.poll() is not None and not self.closed:
                raise self._gone() from None
        if value is None:
            failure = session.failure(timeout_s)
        stages = ", ".join(f"{name} {end - begin:.2f} s" for name, begin, end in session.spans)
        log.info("step %s of process %d: %s", step, session.pid, stages)
        return StepResult(
            value=value, failure=failure, spans=session.spans, seconds=time.monotonic() - session.started,
            raised=_raised(error or {}),
        )  # fmt: skip

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
                session.pid, session.keeper = message["pid"], message["keeper"]
                session.begun.set()
                self._note_slow_start(message["began_cuda"])
            else:
                session.exit_code = message["code"]
                session.ended_for = session.ended_for or message["kind"]
                session.ended_with = message["detail"]
                session.begun.set()
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
    kind = getattr(errors, name, None)
    if not (isinstance(kind, type) and issubclass(kind, AutotuneError)):
        kind = AutotuneError
    return kind(asked, found=found, expected=expected, run=run)
