"""The coordinator's side of one running step: Session."""

import contextlib
import itertools
import math
import os
import re
import secrets
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from autotune.execute import family
from autotune.execute.channel import Channel, ChannelClosed, Message, NotOurs
from autotune.execute.message import WAIT, checked
from autotune.execute.notices import Notices
from autotune.execute.step_clock import StepClock
from autotune.execute.step_result import Span
from autotune.records.trial import Failure, FailureKind, Stage

LOG_TAIL_BYTES = 8000
"""So much of the end of a step's log is recorded with its failure."""

POLL_S = 0.25
"""The longest time between two checks for the end of the study or of the step."""

WAIT_LIMIT_S = 3600.0
"""So long a step may wait for a device in one order: several times what the longest finals of another study hold it."""

QUEUED = "queued"
"""The name of a span in which a step waits for another step of its own server."""

LINGER_S = 2.0
"""A step that has answered, or has closed its channel, gets so long to end."""

TEARDOWN_S = 30.0
"""The kernel gets so long to take down a step that has ended: its channel closes before its contexts on a GPU do."""


class Coordinator(Protocol):
    """The server that a step runs on."""

    closed: bool
    notices: Notices

    def owns(self, pids: Sequence[int]) -> bool:
        """Return whether there are processes among ``pids``, and all are steps of this server."""
        ...


class Session:
    """One running step: messages both ways, a stage, and an end that is always reported.

    ``ready`` and ``turn`` belong to the code that talks to the step: whether it has loaded, and what it works on.
    """

    def __init__(self, server: Coordinator, channel: Channel, step: str, log: Path, stage: Stage) -> None:
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
        self._error: Message | None = None
        self._broken: str | None = None
        self._clock = StepClock(self.started, WAIT_LIMIT_S)
        self.ended_for: FailureKind | None = None
        self.ended_with = ""

    def send(self, message: Mapping[str, object]) -> None:
        """Send an order to the step; the limits of :meth:`receive` count from now."""
        self.begin_order()
        self._channel.send(message)

    def begin_order(self) -> None:
        """Let limits count from now, because the coordinator has not listened to the step since its order."""
        self._clock.begin_order(time.monotonic())

    def begin_part(self) -> None:
        """Let the limit of a part count from now, because the step has begun a part that was expected of it."""
        self._clock.begin_part(time.monotonic())

    def receive(self, limit_s: float, order_limit_s: float = math.inf) -> Message:
        """Return the next message that is not a stage mark; kill the step on timeout, or if its message has no shape.

        ``limit_s`` is the limit of the order. If the order has parts (:meth:`begin_part`), it is that of each part, and
        ``order_limit_s`` is that of the whole order. Both count from the order or the part, whatever the step has sent
        meanwhile. While it waits for a device that another process uses, its time stands still: see
        :class:`~autotune.execute.step_clock.StepClock`.
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
                self._error = message.get("error", self._error)
                return message

    def _enter(self, message: Message) -> None:
        """Note the stage that a step is in; show the user if it waits for others than the server's own steps."""
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
        """Note that the step has nothing to do until its next order."""
        self.ready = True
        self._marks.append(("idle", time.monotonic()))

    def kill(self, why: FailureKind | None = None) -> None:
        """Have the step and everything that it started killed; if it is out of time, it first logs where it is."""
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
                    # Something stopped the keeper; the server ends what it kept.
                    os.kill(self.keeper, signal.SIGKILL)
                self.ended.wait(LINGER_S)
        self._marks.append(("end", time.monotonic()))

    @property
    def waited_s(self) -> float:
        """The seconds that it has waited for processes of others so far."""
        return self._seconds(WAIT)

    @property
    def queued_s(self) -> float:
        """The seconds that it has waited for other steps of its own server so far."""
        return self._seconds(QUEUED)

    def _seconds(self, name: str) -> float:
        return sum(end - begin for stage, begin, end in self.spans if stage == name)

    @property
    def spans(self) -> tuple[Span, ...]:
        """Stages with their begin and end, in order."""
        return tuple((name, begin, max(begin, end)) for (name, begin), (_, end) in itertools.pairwise(self._marks))

    def failure(self, limit_s: float) -> Failure:
        """Return why a step that ended without an answer failed; ``limit_s`` is the time that it was given."""
        kind, detail, figure = self._verdict(limit_s)
        return Failure(stage=self.stage, kind=kind, detail=detail, log_tail=self.log_tail(), figure=figure)

    def log_tail(self) -> str:
        """Return the last few kilobytes that the step printed."""
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
        if self._error is not None:
            return self._error["kind"], self._error["detail"], None
        if self.ended_for == "protocol":
            return "protocol", self._broken or "it closed its channel and did not end", None
        code = self.exit_code
        if code is not None and code < 0:
            name = signal.Signals(-code).name if -code in signal.valid_signals() else str(-code)
            return "crash", f"the process was killed by {name}", float(-code)
        return "protocol", f"the process ended with code {code} without an answer", None
