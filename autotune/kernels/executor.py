"""The kernels of one backend on one device, compiled and timed in processes of their own: KernelExecutor."""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from autotune import registry
from autotune.errors import AutotuneError, WorkError
from autotune.execute.channel import ChannelClosed
from autotune.execute.executor import BUILD_TIMEOUT_S
from autotune.execute.server import WorkerServer
from autotune.execute.session import LINGER_S, Session
from autotune.execute.step_result import Span
from autotune.kernel import CompileResult, KernelToolchains
from autotune.kernels.rates import DeviceRates
from autotune.kernels.requests import CompileRequest, ProblemFinalists, RatesRequest, RoundsRequest, TimeRequest
from autotune.kernels.rounds import ComparedProblem, RoundsReader
from autotune.kernels.timing import TimingLimits
from autotune.measure.foreign import foreign_processes
from autotune.records.configuration import Configuration
from autotune.records.device import Device
from autotune.records.kernel_problem import GemmProblem
from autotune.records.kernel_trial import KernelTrial
from autotune.records.trial import Failure

log = logging.getLogger(__name__)

PRELOAD = ["torch", "numpy"]

STEPS = "autotune.kernels.steps"
"""The module with the steps of a worker server that may need tuned kernels."""

START_S, CANDIDATE_S = 180.0, 60.0
"""Time limits of a step: to import, wake the device and compute the expected result; and for each candidate."""

SLOWEST_FLOPS = {"cpu": 1e10, "cuda": 1e12}
CALLS = 12
"""A kernel with fewer operations per second hangs; the least number of calls of a candidate."""

LIMITS = {"cpu": TimingLimits(sampling_s=0.4, first_samples=12), "cuda": TimingLimits(sampling_s=0.05)}
"""A GPU's own clock needs few samples, since it measures nothing but the kernel. On a CPU that other processes use as
well, a kernel on two cores took 100 times its time for several calls in a row, which is no property of the kernel."""

_rates: dict[str, DeviceRates | None] = {}
"""By the device's UUID: they do not change during a process, and reading them needs a process that wakes the GPU."""

BuildResult = CompileResult | Failure | None
"""The result of a build; ``None`` if the time was up or the work was stopped before it had one."""


class KernelExecutor:
    """Runs the steps of tuned kernels; one thread may compile while another one times.

    ``folder`` is the cache of compiled kernels, ``toolchains`` have the digests that trials are recorded with.
    """

    def __init__(
        self,
        server: WorkerServer,
        device: Device,
        backend: str,
        folder: Path,
        *,
        toolchains: KernelToolchains,
        seed: int,
    ) -> None:
        self.server, self.device, self.backend, self.folder = server, device, backend, folder
        self.toolchains, self.seed = toolchains, seed
        self._spans: list[Span] = []
        self._waited_s = self._queued_s = 0.0
        self._idle: Session | None = None
        server.preload(PRELOAD)

    def close(self) -> None:
        """End the process that times kernels, if one waits for more."""
        session, self._idle = self._idle, None
        if session is not None:
            self._end(session)

    @property
    def spans(self) -> list[Span]:
        """Stages of all steps with their begin and end; those of the process that times kernels after it has ended."""
        return list(self._spans)

    @property
    def waited_s(self) -> float:
        """Seconds that timing has waited for processes of others that used the device; they are part of no budget."""
        return self._waited_s + (self._idle.waited_s if self._idle is not None else 0.0)

    @property
    def queued_s(self) -> float:
        """Seconds that timing has waited for other steps of its own server, which took turns with it."""
        return self._queued_s + (self._idle.queued_s if self._idle is not None else 0.0)

    def rates(self, tell: Callable[[str], None] = log.warning) -> DeviceRates | None:
        """Read the GPU's rates; ``None`` for a CPU, and if they are unknown: ``tell`` gets the reason, once."""
        if self.device.kind == "cpu":
            return None
        if self.device.uuid not in _rates:
            request = RatesRequest(device=self.device)
            result = self.server.run("device_rates", request.as_dict(), timeout_s=START_S, stage="load")
            self._spans += result.spans
            if self.server.closed:
                return None
            answer = result.value or {"rates": None, "reason": str(result.failure)}
            if answer["rates"] is None:
                tell(f"{self.device.name}: kernels are tried without estimated times: {answer['reason']}")
            _rates[self.device.uuid] = None if answer["rates"] is None else DeviceRates.from_dict(answer["rates"])
        return _rates[self.device.uuid]

    def compile(
        self, problem: GemmProblem, builds: Sequence[Configuration], limit_s: float
    ) -> tuple[dict[Configuration, BuildResult], dict[str, AutotuneError]]:
        """Compile builds; returns their results, and the error of each kind that cannot be compiled at all.

        Kinds are compiled one after the other, so a missing compiler fails its own kind only.
        """
        results: dict[Configuration, BuildResult] = {}
        missing: dict[str, AutotuneError] = {}
        for kind, same in groupby(sorted(builds, key=lambda build: build.backend), key=lambda build: build.backend):
            group = list(same)
            try:
                results |= zip(group, self._compiled(problem, group, min(BUILD_TIMEOUT_S, limit_s)), strict=True)
            except AutotuneError as error:
                missing[kind] = error
        return results, missing

    def compiled(self, problem: GemmProblem, builds: Sequence[Configuration]) -> Sequence[Configuration]:
        """Return the builds that are in the cache and need no compiler, in their order."""
        return registry.kernels(self.backend).compiled(self.device, problem, builds, self.folder)

    def _compiled(self, problem: GemmProblem, builds: Sequence[Configuration], limit_s: float) -> list[BuildResult]:
        request = CompileRequest(
            backend=self.backend, device=self.device, problem=problem, folder=self.folder, builds=tuple(builds)
        )
        result = self.server.run("compile_kernels", request.as_dict(), timeout_s=limit_s)
        self._spans += result.spans
        if self.server.closed:
            return [None] * len(builds)
        if result.raised is not None:
            raise result.raised
        if result.failure is None:
            return [CompileResult(**result) for result in (result.value or {})["made"]]
        if result.failure.kind == "timeout" and limit_s < BUILD_TIMEOUT_S:
            return [None] * len(builds)
        if len(builds) == 1:
            return [result.failure]
        log.warning("compiling %d kernels failed, so each is compiled alone: %s", len(builds), result.failure)
        return [result for build in builds for result in self._compiled(problem, [build], limit_s)]

    def time(
        self,
        problem: GemmProblem,
        candidates: Sequence[Configuration],
        best_us: float | None,
        tell: Callable[[KernelTrial], None],
        *,
        limits: TimingLimits | None = None,
    ) -> None:
        """Check and time candidates; ``tell`` gets each trial at once. One that crashes or hangs is a failed trial.

        ``limits`` are by default those of the device's kind, :data:`LIMITS`.
        If the server is stopped it ends early, without a trial of the running candidate. Raises WorkError for a failure
        that no candidate caused.
        """
        rest = {candidate.digest: candidate for candidate in candidates}
        while rest and not self.server.closed:
            request = TimeRequest(
                backend=self.backend, device=self.device, problem=problem, folder=self.folder,
                candidates=tuple(rest.values()), seed=self.seed, best_us=best_us,
                limits=limits or LIMITS[self.device.kind],
            )  # fmt: skip
            resumed, session = self._idle is not None, self._session(request)
            patience_s, failed, heard = START_S + self._calls_s(problem), False, False
            for message in self._results(session, problem, set(rest)):
                candidate = rest.pop(message["candidate"], None)
                if candidate is None:
                    raise WorkError(
                        f"kernels of {problem.canonical}", found="a result of a candidate that was not requested"
                    )
                trial = self._trial(problem, candidate, message)
                for pid, text in foreign_processes(trial.conditions, self.device).items():
                    self.server.notices.say(text, of=pid)
                failed, heard = failed or trial.failure is not None, True
                if trial.median_us is not None:
                    best_us = trial.median_us if best_us is None else min(best_us, trial.median_us)
                tell(trial)
            if session.ready and not failed:
                self._idle = session
            else:  # a failed candidate may have left the process in a bad state
                self._end(session)
            if not rest or self.server.closed:
                return
            failure = session.failure(patience_s)
            culprit = rest.pop(session.turn or "", None)
            if culprit is None and resumed and not heard:
                continue  # it had ended before the request
            if culprit is None:
                tail = failure.log_tail.strip().splitlines()[-8:]
                raise WorkError(
                    f"kernels of {problem.canonical} could not be timed on {self.device.name}",
                    found="\n    ".join([str(failure), *tail]), run="autotune doctor",
                )  # fmt: skip
            tell(self._trial(problem, culprit, {"failure": failure.as_dict()}))

    def compare(
        self,
        work: Sequence[ProblemFinalists],
        tell: Callable[[ComparedProblem], None],
        *,
        rounds: int,
        samples: int,
        limit_s: float,
        seed: int | None = None,
    ) -> None:
        """Time finalists of problems against each other in one process; ``tell`` gets each problem at once.

        In each of the ``rounds`` a finalist has ``samples`` calls. A problem whose finalists fail, crash or hang has
        the reasons, and the others are continued in another process. It ends after ``limit_s`` seconds, not counting
        those of waiting for the device, or if the server is stopped; the running problem is then lost. Raises WorkError
        for a failure that no problem caused.
        """
        self.close()  # a process that waits for candidates would hold memory of the device
        waiting, worked_s = {entry.problem.digest: entry for entry in work}, 0.0
        while waiting and worked_s < limit_s and not self.server.closed:
            request = RoundsRequest(
                backend=self.backend, device=self.device, folder=self.folder, rounds=rounds, samples=samples,
                seed=self.seed if seed is None else seed, work=tuple(waiting.values()),
            )  # fmt: skip
            session = self.server.start("kernel_rounds", request.as_dict(), stage="load")
            reader = RoundsReader(session, request.work, samples)
            patience_s = START_S + CANDIDATE_S * max(len(entry.finalists) for entry in request.work)
            try:
                for compared in reader.read(patience_s, limit_s - worked_s):
                    tell(compared)
            finally:
                self._end(session)
            waiting = reader.waiting
            worked_s += time.monotonic() - session.started - session.waited_s
            if not waiting or worked_s >= limit_s or self.server.closed:
                return
            failure = session.failure(patience_s)
            culprit = waiting.pop(session.turn or "", None)
            if culprit is None:
                raise WorkError(
                    f"kernels could not be compared on {self.device.name}", found=str(failure), run="autotune doctor"
                )
            tell(ComparedProblem(problem=culprit.problem, failures=(str(failure),)))

    def _session(self, request: TimeRequest) -> Session:
        """Send a request to the process that is ready for more, or to a new one; returns its session."""
        session, self._idle = self._idle, None
        if session is not None:
            session.ready = False
            with contextlib.suppress(OSError, ChannelClosed):
                session.send({"request": request.as_dict()})
                return session
            self._end(session)
        return self.server.start("time_kernels", request.as_dict(), stage="load")

    def _end(self, session: Session) -> None:
        if session.ready:
            with contextlib.suppress(OSError, ChannelClosed):
                session.send({"end": True})
                session.receive(LINGER_S)
        session.finish()
        self._spans += session.spans
        self._waited_s += session.waited_s
        self._queued_s += session.queued_s

    def _results(self, session: Session, problem: GemmProblem, expected: set[str]) -> Iterator[dict[str, Any]]:
        """Yield a step's results of candidates until it is ready for more (``session.ready``) or ends in any way.

        ``session.turn`` is the running candidate. The limit begins anew with the first turn of each expected one.
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
        """Return the trial of a candidate that could not be built."""
        return self._trial(problem, candidate, {"failure": failure.as_dict()})

    def _trial(self, problem: GemmProblem, candidate: Configuration, message: Mapping[str, Any]) -> KernelTrial:
        failure = Failure(**message["failure"]) if "failure" in message else None
        return KernelTrial(
            problem=problem, device_class=self.device.device_class,
            toolchain=self.toolchains.of(candidate.backend), configuration=candidate,
            state="complete" if failure is None else "failed", samples_us=tuple(message.get("samples_us", ())),
            error=message.get("error"), made=message.get("made", {}), conditions=message.get("conditions", {}),
            failure=failure,
        )  # fmt: skip

    def _calls_s(self, problem: GemmProblem) -> float:
        return CALLS * problem.flops / SLOWEST_FLOPS[self.device.kind]
