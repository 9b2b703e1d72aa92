"""The kernels of one backend on one device, compiled and timed in processes of their own: KernelExecutor."""

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

from autotune.errors import AutotuneError, WorkError
from autotune.execute.channel import ChannelClosed
from autotune.execute.executor import BUILD_TIMEOUT_S
from autotune.execute.server import WorkerServer
from autotune.execute.session import LINGER_S, Session
from autotune.execute.step_result import Span
from autotune.kernel import MadeKernel
from autotune.kernels.rates import DeviceRates
from autotune.kernels.timing import Limits
from autotune.measure.foreign import foreign_processes
from autotune.records.configuration import Configuration
from autotune.records.device import Device
from autotune.records.kernel_problem import GemmProblem
from autotune.records.kernel_trial import KernelTrial
from autotune.records.trial import Failure

log = logging.getLogger(__name__)

PRELOAD = ["torch", "numpy"]

STEPS = "autotune.kernels.steps"
"""The module of the steps of a worker server whose work may need tuned kernels."""

START_S, CANDIDATE_S = 180.0, 60.0
"""A step gets so long to import, to wake the device and to compute what is right, and so long for each candidate."""

SLOWEST_FLOPS = {"cpu": 1e10, "cuda": 1e12}
CALLS = 12
"""Whoever computes slower than so many operations a second hangs; a candidate is called so often at the least."""

LIMITS = {"cpu": Limits(sampling_s=0.4, first_samples=12), "cuda": Limits(sampling_s=0.05)}
"""A GPU's own clock needs few samples, for nothing but the kernel is in its times. On a CPU that others use as well, a
kernel on two cores took 100 times its time for several calls in a row, which says nothing of the kernel."""

_rates: dict[str, DeviceRates | None] = {}
"""By the device's UUID: they do not change while a process lives, and reading them wakes a GPU in a process."""

Made = MadeKernel | Failure | None
"""What became of a build; ``None`` where the time was up or the work was stopped, which says nothing of it."""


class KernelExecutor:
    """Runs the steps of tuned kernels; compiling may go on in another thread than timing.

    ``folder`` is the cache of compiled kernels. ``toolchain`` is the digest that trials are recorded under.
    """

    def __init__(
        self, server: WorkerServer, device: Device, backend: str, folder: Path, *, toolchain: str, seed: int
    ) -> None:
        self.server, self.device, self.backend, self.folder = server, device, backend, folder
        self.toolchain, self.seed = toolchain, seed
        self._spans: list[Span] = []
        self._waited_s = 0.0
        self._idle: Session | None = None
        server.preload(PRELOAD)

    def close(self) -> None:
        """End the process that timed kernels, and is ready for more."""
        session, self._idle = self._idle, None
        if session is not None:
            self._end(session)

    @property
    def spans(self) -> list[Span]:
        """Stages of all steps with their begin and end; of a process that times kernels once it has ended."""
        return list(self._spans)

    @property
    def waited_s(self) -> float:
        """How long timing has waited for other processes that used the device, which counts for no budget."""
        return self._waited_s + (self._idle.waited_s if self._idle is not None else 0.0)

    def rates(self, tell: Callable[[str], None] = log.warning) -> DeviceRates | None:
        """Read how fast the GPU is; ``None`` for a CPU, and if nobody knows: ``tell`` gets the reason, once."""
        if self.device.kind == "cpu":
            return None
        if self.device.uuid not in _rates:
            found = self.server.run("device_rates", {"device": self.device.as_dict()}, timeout_s=START_S, stage="load")
            self._spans += found.spans
            if self.server.closed:
                return None
            answer = found.value or {"rates": None, "reason": str(found.failure)}
            if answer["rates"] is None:
                tell(f"{self.device.name}: kernels are tried without an estimate of their times: {answer['reason']}")
            _rates[self.device.uuid] = None if answer["rates"] is None else DeviceRates.from_dict(answer["rates"])
        return _rates[self.device.uuid]

    def compile(
        self, problem: GemmProblem, builds: Sequence[Configuration], limit_s: float
    ) -> tuple[dict[Configuration, Made], dict[str, AutotuneError]]:
        """Compile builds; what became of each, and for kinds that cannot be compiled at all, why.

        Kinds are compiled one after the other, so that one whose compiler is missing takes no other with it.
        """
        made: dict[Configuration, Made] = {}
        missing: dict[str, AutotuneError] = {}
        for kind, same in groupby(sorted(builds, key=lambda build: build.backend), key=lambda build: build.backend):
            group = list(same)
            try:
                made |= zip(group, self._compiled(problem, group, min(BUILD_TIMEOUT_S, limit_s)), strict=True)
            except AutotuneError as error:
                missing[kind] = error
        return made, missing

    def _compiled(self, problem: GemmProblem, builds: Sequence[Configuration], limit_s: float) -> list[Made]:
        request = {**self._request(problem), "builds": [build.as_dict() for build in builds]}
        result = self.server.run("compile_kernels", request, timeout_s=limit_s)
        self._spans += result.spans
        if self.server.closed:
            return [None] * len(builds)
        if result.raised is not None:
            raise result.raised
        if result.failure is None:
            return [MadeKernel(**one) for one in (result.value or {})["made"]]
        if result.failure.kind == "timeout" and limit_s < BUILD_TIMEOUT_S:
            return [None] * len(builds)
        if len(builds) == 1:
            return [result.failure]
        log.warning("compiling %d kernels failed, so each is compiled alone: %s", len(builds), result.failure)
        return [one for build in builds for one in self._compiled(problem, [build], limit_s)]

    def time(
        self,
        problem: GemmProblem,
        candidates: Sequence[Configuration],
        best_us: float | None,
        tell: Callable[[KernelTrial], None],
        *,
        limits: Limits | None = None,
    ) -> None:
        """Check and time candidates, each told as soon as it is done; one that crashes or hangs is a failed trial.

        ``limits`` are by default those of the device's kind, :data:`LIMITS`.
        Ends early, and records nothing of what was at work, where the server was stopped. Raises WorkError where it is
        no candidate that fails.
        """
        rest = {candidate.digest: candidate for candidate in candidates}
        while rest and not self.server.closed:
            request = {
                **self._request(problem), "candidates": [each.as_dict() for each in rest.values()], "seed": self.seed,
                "best_us": best_us, "limits": asdict(limits or LIMITS[self.device.kind]),
            }  # fmt: skip
            resumed, session = self._idle is not None, self._asked(request)
            patience_s, failed, heard = START_S + self._calls_s(problem), False, False
            for told in self._heard(session, problem, set(rest)):
                candidate = rest.pop(told["candidate"], None)
                if candidate is None:
                    raise WorkError(f"kernels of {problem.canonical}", found="a result that nobody asked for")
                trial = self._trial(problem, candidate, told)
                for pid, text in foreign_processes(trial.conditions, self.device).items():
                    self.server.notices.say(text, of=pid)
                failed, heard = failed or trial.failure is not None, True
                if trial.median_us is not None:
                    best_us = trial.median_us if best_us is None else min(best_us, trial.median_us)
                tell(trial)
            if session.ready and not failed:
                self._idle = session
            else:  # who failed may have left something behind
                self._end(session)
            if not rest or self.server.closed:
                return
            failure = session.failure(patience_s)
            culprit = rest.pop(session.turn or "", None)
            if culprit is None and resumed and not heard:
                continue  # it was gone before it was asked
            if culprit is None:
                tail = failure.log_tail.strip().splitlines()[-8:]
                raise WorkError(
                    f"kernels of {problem.canonical} could not be timed on {self.device.name}",
                    found="\n    ".join([str(failure), *tail]), run="autotune doctor",
                )  # fmt: skip
            tell(self._trial(problem, culprit, {"failure": failure.as_dict()}))

    def _asked(self, request: dict[str, Any]) -> Session:
        """The process that is ready for more, or a new one, with a request."""
        session, self._idle = self._idle, None
        if session is not None:
            session.ready = False
            with contextlib.suppress(OSError, ChannelClosed):
                session.send({"request": request})
                return session
            self._end(session)
        return self.server.start("time_kernels", request, stage="load")

    def _end(self, session: Session) -> None:
        if session.ready:
            with contextlib.suppress(OSError, ChannelClosed):
                session.send({"end": True})
                session.receive(LINGER_S)
        session.finish()
        self._spans += session.spans
        self._waited_s += session.waited_s

    def _heard(self, session: Session, problem: GemmProblem, expected: set[str]) -> Iterator[dict[str, Any]]:
        """What a step tells of its candidates, until it is ready for more (``session.ready``), or ends in whatever way.

        ``session.turn`` is who was at work. The limit begins anew with the first turn of each one that is expected.
        """
        patience_s = START_S + self._calls_s(problem)
        try:
            while not session.ready:
                message = session.receive(patience_s)
                if "turn" in message:
                    session.turn = message["turn"]
                    if session.turn in expected:
                        expected.remove(session.turn)
                        session.begin_part()
                        patience_s = CANDIDATE_S + self._calls_s(problem)
                elif "kernel" in message:
                    session.turn = None
                    yield message["kernel"]
                elif "ready" in message:
                    session.rest()
                else:
                    break
        except ChannelClosed:
            log.debug("a process that timed kernels is gone")

    def failed(self, problem: GemmProblem, candidate: Configuration, failure: Failure) -> KernelTrial:
        """Make the trial of a candidate that could not be built."""
        return self._trial(problem, candidate, {"failure": failure.as_dict()})

    def _trial(self, problem: GemmProblem, candidate: Configuration, told: Mapping[str, Any]) -> KernelTrial:
        failure = Failure(**told["failure"]) if "failure" in told else None
        return KernelTrial(
            problem=problem, device_class=self.device.device_class, toolchain=self.toolchain, configuration=candidate,
            state="complete" if failure is None else "failed", samples_us=tuple(told.get("samples_us", ())),
            error=told.get("error"), made=told.get("made", {}), conditions=told.get("conditions", {}), failure=failure,
        )  # fmt: skip

    def _request(self, problem: GemmProblem) -> dict[str, Any]:
        return {
            "backend": self.backend, "device": self.device.as_dict(), "problem": problem.as_dict(),
            "folder": str(self.folder),
        }  # fmt: skip

    def _calls_s(self, problem: GemmProblem) -> float:
        return CALLS * problem.flops / SLOWEST_FLOPS[self.device.kind]
