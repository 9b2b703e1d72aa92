"""The coordinator's side: start a worker server, run steps in processes of their own, and outlive whatever they do."""

import contextlib
import itertools
import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from autotune import errors, scratch
from autotune.errors import AutotuneError, WorkerError
from autotune.execute.channel import IDENTITY, Channel, ChannelClosed, Message
from autotune.execute.limits import SHARE_OF_MEMORY, Limits
from autotune.execute.notices import Notices, Tell
from autotune.execute.session import Session
from autotune.execute.step_result import PlainAnswer, StepResult
from autotune.records.trial import Failure, Stage
from autotune.runtime.host_memory import HostMemory

log = logging.getLogger(__name__)

STEPS = "autotune.execute.steps"

SECRETS = ("AUTOTUNE_DB", "PGPASSWORD")
"""Variables that may hold a password; no step needs a database, and a candidate may print all that it finds."""


class WorkerServer:
    """Owns the worker server process; steps may run at once from several threads.

    ``steps`` names the module whose table ``STEPS`` holds the functions of the steps. ``work`` says what they are run
    for; it is shown to other processes that wait for their device. ``tell`` shows a line to the user: for which process
    a step waits, or which others are on its device. Without it the log gets such a line.
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

    def start(self, step: str, request: Mapping[str, object], stage: Stage = "build") -> Session:
        """Begin a step in a process of its own; raises WorkerError if the server is gone."""
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
        # If it was stopped at once, the code that listens to it learns so.
        with contextlib.suppress(ChannelClosed):
            session.send({IDENTITY: session.identity, "step": step, "request": request, "purpose": purpose})
        return session

    def owns(self, pids: Sequence[int]) -> bool:
        """Return whether there are processes among ``pids``, and all are steps of this server."""
        own = {session.pid for session in list(self._sessions.values())}
        return bool(pids) and own.issuperset(pids)

    def run(
        self,
        step: str,
        request: Mapping[str, object],
        *,
        timeout_s: float,
        stage: Stage = "build",
        meanwhile: Callable[[], None] | None = None,
        on_loaded: Callable[[Session], None] | None = None,
    ) -> StepResult[PlainAnswer]:
        """Run a step to its end; however it ends, that is a value.

        ``timeout_s`` is for the step, and anew for the order that ``on_loaded`` sends: it is called when the step has
        loaded and waits for that order. ``meanwhile`` is called once the step has begun.
        """
        session = self.start(step, request, stage)
        if meanwhile is not None:
            meanwhile()
        value: PlainAnswer | None = None
        error: Message | None = None
        failure: Failure | None = None
        try:
            while value is None and error is None:
                message = session.receive(timeout_s)
                if "loaded" in message and on_loaded is not None:
                    session.rest()
                    on_loaded(session)
                    on_loaded = None  # a step that says so again gets no more time
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
        """Kill every step; code that waits for one learns that it is gone. Safe in a signal handler."""
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


def _raised(error: Message) -> AutotuneError | None:
    """Return the project's own error that a step raised, as an exception again; ``None`` if it raised none."""
    if "raised" not in error:
        return None
    name, what, reason, expected, run = error["raised"]
    kind = getattr(errors, name, None)
    if not (isinstance(kind, type) and issubclass(kind, AutotuneError)):
        kind = AutotuneError
    return kind(what, found=reason, expected=expected, run=run)
