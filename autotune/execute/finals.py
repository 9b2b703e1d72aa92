"""Drive the finals: fresh processes one after the other, each holding all finalists, until there is a verdict."""

import contextlib
import logging
import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from autotune.errors import StudyInterruptedError
from autotune.execute.channel import ChannelClosed, Message
from autotune.execute.executor import Executor
from autotune.execute.footprint import footprint_rounds
from autotune.execute.input_sets import TIMING_SETS
from autotune.execute.requests import FinalsRequest, RoundsOrder
from autotune.execute.session import Session
from autotune.measure.block import Block, protocol_of
from autotune.measure.finals import Finals
from autotune.measure.foreign import foreign_processes
from autotune.measure.paired import Statistic, fewest_rounds
from autotune.measure.percentiles import tail_statistic
from autotune.measure.statistics import median
from autotune.measure.verdict import TieKeys, Verdict
from autotune.records.objective import Objective
from autotune.records.trial import Measurement

log = logging.getLogger(__name__)

PROCESSES = {"cuda": 3, "cpu": 5}
"""The number of fresh processes before the first look; times on a CPU depend more on the place of its memory."""
LIMIT_S = {"cuda": 50.0, "cpu": 75.0}
"""Time for all rounds, loading included; it is longer only if rounds are so slow that too few for any winner fit."""
EXTENSIONS = 1
"""How often finals that could not decide get that time again: other programs may stop using the device."""
LONGEST_S = 900.0
"""Time for all rounds, however slow they are."""
ALONE, ALONE_PROTOCOL = "plan", "alone"
LOAD_PATIENCE_S = 300.0
"""If a finalist loads, or has its turn, for so long, its process hangs."""


Utilisations = Mapping[str, Mapping[str, object]]
"""Each finalist's use of the device, as :func:`autotune.measure.utilisation.measured_utilisation` returns it."""


def statistic_of(objective: Objective) -> Statistic:
    """Return the statistic of a block of samples under an objective: the tail for a percentile, else the median."""
    return partial(tail_statistic, q=0.99) if objective.name == "latency_p99" else median


@dataclass(frozen=True, slots=True, kw_only=True)
class FinalsResult:
    """The verdict with every raw sample: ``samples_ms`` has a block a round for each finalist, ``None`` if frozen then.

    The verdict follows from ``figures``: the samples themselves, the undisturbed ones of them while others used the
    device, or what an objective other than latency compares. ``disturbed`` says for each finalist and round if its
    block is disturbed; ``flags`` are the conditions that were seen around its rounds.
    """

    verdict: Verdict
    samples_ms: Mapping[str, list[list[float] | None]]
    figures: Mapping[str, list[list[float] | None]]
    disturbed: Mapping[str, list[bool]]
    flags: Mapping[str, tuple[str, ...]]
    utilisation: Utilisations
    measurements: Mapping[str, Measurement]
    process_of_round: tuple[int, ...]

    @property
    def doubt(self) -> str:
        """The reason why the finals could not decide, such as ``busy host: 3 of 5 processes disturbed``."""
        processes, disturbed = len(set(self.process_of_round)), len(self.verdict.disturbed)
        seen = {flag for flags in self.flags.values() for flag in flags}
        causes = {"busy_host": "busy host", "shared_device": "another process on the device"}
        cause = next((words for flag, words in causes.items() if flag in seen), "")
        if self.verdict.rounds < fewest_rounds(len(self.verdict.finalists) - 1):
            return f"{cause or 'slow rounds'}: only {self.verdict.rounds} rounds in the time that finals have"
        if disturbed:
            return f"{cause or 'processes that differ'}: {disturbed} of {processes} processes disturbed"
        return f"{cause or 'noise'}: {self.verdict.rounds} rounds in {processes} processes vary too much"


@dataclass(slots=True, kw_only=True)
class _Drive:
    """The state of finals that run."""

    executor: Executor
    artifacts: dict[str, Path]
    finals: Finals
    seed: int
    objective: Objective
    concurrency: Mapping[str, int]
    protocol: str
    current: Session | None = None
    waiting: list[Session] = field(default_factory=list)
    utilisation: Utilisations = field(default_factory=dict)
    started: int = 0
    waited_s: float = 0.0
    process_of_round: list[int] = field(default_factory=list)

    def now(self) -> float:
        """Return monotonic seconds without those in which its processes waited for others."""
        return time.monotonic() - self.waited_s

    @contextlib.contextmanager
    def waiting_left_out(self) -> Iterator[None]:
        """Let time stand still while a process waits for the device; those that load side by side wait together."""
        before = {session: session.waited_s for session in (self.current, *self.waiting) if session is not None}
        try:
            yield
        finally:
            self.waited_s += max(session.waited_s - waited_s for session, waited_s in before.items())

    def start(self) -> Session:
        """Begin one more process that loads every finalist still in the race."""
        request = FinalsRequest(
            folder=self.executor.model,
            device=self.executor.device,
            artifacts={name: self.artifacts[name] for name in self.finals.running},
            objective=self.objective,
            concurrency={name: self.concurrency.get(name, 1) for name in self.finals.running},
            seed=self.seed + self.started,
            canary=True if self.protocol == ALONE_PROTOCOL else None,
        )
        self.started += 1
        return self.executor.server.start("finals", request.as_dict(), "load")

    def end(self, sessions: list[Session]) -> None:
        """Kill processes whose samples are not wanted any more."""
        for session in sessions:
            session.kill()
            self.finish(session)

    def finish(self, session: Session) -> None:
        """Let a process end and count its time."""
        try:
            session.send({"close": True})
        except ChannelClosed:
            log.debug("a process of the finals was gone before it was ordered to close")
        session.finish()
        self.executor.split.add(session.spans)
        stages = ", ".join(f"{name} {end - begin:.2f} s" for name, begin, end in session.spans)
        log.info("process %d of the finals: %s", session.pid, stages)


def run_finals(
    executor: Executor,
    artifacts: Mapping[str, Path],
    baselines: Collection[str],
    tie_keys: TieKeys,
    seed: int,
    on_rounds: Callable[[int, float], None],
    *,
    objective: Objective,
    concurrency: Mapping[str, int] | None = None,
    protocol: str = "finals",
    beside: Collection[str] = (),
) -> FinalsResult:
    """Measure all finalists interleaved and decide; a finalist that crashes or hangs here is dropped.

    On a GPU the processes up to the first look load at the same time and then take turns; on a CPU, and for each
    further look, they come one after the other. Raises WorkError if the baseline itself cannot be measured.
    ``concurrency`` is how many requests a finalist has in flight if the objective is throughput; ``protocol`` names
    the measurement. Finalists ``beside`` the others cannot win.
    """
    names = list(artifacts)
    drive = _Drive(
        executor=executor,
        artifacts=dict(artifacts),
        finals=Finals(
            names, baselines=baselines, tie_keys=tie_keys, processes=PROCESSES[executor.device.kind],
            statistic=statistic_of(objective), beside=beside,
        ),
        seed=seed,
        objective=objective,
        concurrency=concurrency or {},
        protocol=protocol,
    )  # fmt: skip
    if objective.name == "memory":
        footprint_rounds(drive.executor, drive.artifacts, drive.finals, seed, on_rounds)
        drive.process_of_round = list(range(drive.finals.rounds))
        return _result(drive, drive.finals.conclude())
    with executor.watched(protocol):
        try:
            verdict = _race(drive, LIMIT_S[executor.device.kind], on_rounds)
            if drive.current is not None and executor.device.kind == "cuda" and protocol == "finals":
                drive.utilisation = _utilisation(drive.current)
        finally:
            for session in ([drive.current] if drive.current is not None else []) + drive.waiting:
                drive.finish(session)
    return _result(drive, verdict or drive.finals.conclude())


def _race(drive: _Drive, limit_s: float, on_rounds: Callable[[int, float], None]) -> Verdict | None:
    """Run rounds in one process after the other, none twice, until there is a verdict or the time is up.

    Time in which processes wait for a device that others have does not count.
    """
    begin = drive.now()
    deadline = begin + limit_s
    last = PROCESSES[drive.executor.device.kind] - 1
    verdict: Verdict | None = None
    process, crashes, longest_load_s, extensions, is_over = -1, 0, 0.0, EXTENSIONS, False
    while verdict is None and drive.finals.next_rounds():
        load_begin = drive.now()
        # One more process would be ready when the time is up.
        is_over = is_over or (load_begin + longest_load_s >= deadline and process >= last)
        if is_over:
            verdict = drive.finals.conclude()
            if verdict.status != "undecided" or not extensions:
                break
            verdict, is_over, extensions, deadline = None, False, extensions - 1, load_begin + limit_s
        drive.current = _next_process(drive, process)
        process += 1
        requested = drive.finals.next_rounds()
        try:
            with drive.waiting_left_out():
                for session in (drive.current, *drive.waiting):
                    _await_ready(drive, session)  # no process loads while another measures
            now = drive.now()
            longest_load_s = max(longest_load_s, now - load_begin)
            processes = max(1, last + 1 - process)
            with drive.waiting_left_out():
                done = _run(
                    drive, drive.current, process, limit_s=max(0.0, deadline - now) / processes,
                    longest_s=max(0.0, begin + LONGEST_S - now) / processes, least=_least(drive.finals, processes),
                )  # fmt: skip
        except _Died as died:
            crashes += 1
            others = [session for session in (drive.current, *drive.waiting) if session is not died.session]
            drive.waiting, drive.current, process = [], None, process - 1
            drive.end(others)
            _drop_culprit(drive, died.session, crashes)
            continue
        on_rounds(drive.finals.rounds, drive.now() - begin)
        verdict = drive.finals.look()
        is_over = done < requested and process >= last
    return verdict


def _utilisation(session: Session) -> Utilisations:
    """Return how each finalist that this process holds uses the device; empty if the process dies of being traced."""
    try:
        session.send({"utilisation": True})
        while "utilisation" not in (message := _heard(session, LOAD_PATIENCE_S, LOAD_PATIENCE_S)):
            pass
    except (ChannelClosed, _Died):
        log.warning("the finalists could not be traced: %s", session.failure(0.0))
        return {}
    return dict(message["utilisation"])


def _next_process(drive: _Drive, process: int) -> Session:
    if drive.current is not None:
        drive.finish(drive.current)
    if _load_together(drive) and process < 0 and not drive.waiting:
        drive.waiting = [drive.start() for _ in range(PROCESSES["cuda"])]
    return drive.waiting.pop(0) if drive.waiting else drive.start()


def _load_together(drive: _Drive) -> bool:
    """Return whether the processes load side by side: on a GPU, whose host has cores to spare."""
    return drive.executor.device.kind == "cuda"


class _Died(Exception):
    """A process of the finals is gone, with the culprit in ``session.turn``."""

    def __init__(self, session: Session) -> None:
        super().__init__()
        self.session = session


def _await_ready(drive: _Drive, session: Session) -> None:
    """Wait until a process has loaded every finalist; raises _Died if it ends before that."""
    if session.ready:
        return
    session.begin_order()  # it may have waited for others to load while the coordinator did not listen
    patience_s = LOAD_PATIENCE_S * (1 + len(drive.artifacts))
    while not session.ready:
        session.ready = "ready" in _heard(session, LOAD_PATIENCE_S, patience_s)


def _least(finals: Finals, processes: int) -> int:
    """Return how many rounds each of some processes runs, however long they take, so that there can be a winner."""
    return max(1, math.ceil((fewest_rounds(len(finals.candidates)) - finals.rounds) / processes))


def _run(drive: _Drive, session: Session, process: int, *, limit_s: float, longest_s: float, least: int) -> int:
    """Let a process run its rounds and return how many it finished in time; raises _Died."""
    order = RoundsOrder(
        rounds=drive.finals.next_rounds(), frozen=tuple(sorted(drive.finals.freeze())), limit_s=limit_s,
        longest_s=longest_s, least=least,
    )  # fmt: skip
    try:
        session.send(order.as_dict())
    except ChannelClosed as error:
        raise _Died(session) from error
    patience_s = LOAD_PATIENCE_S + 2 * limit_s
    whole_s = LOAD_PATIENCE_S * len(drive.artifacts) + 2 * limit_s + longest_s
    while "rounds" not in (message := _heard(session, patience_s, whole_s)):
        pass
    rounds = [{name: Block.from_dict(block) for name, block in blocks.items()} for blocks in message["rounds"]]
    seen = {"readings": [block.readings for blocks in rounds for block in blocks.values()]}
    for pid, text in foreign_processes(seen, drive.executor.device).items():
        drive.executor.server.notices.say(text, of=pid)
    drive.finals.add(process, rounds)
    drive.process_of_round += [process] * len(rounds)
    return len(rounds)


def _heard(session: Session, patience_s: float, whole_s: float) -> Message:
    """Return the next message, and note whose turn it is; raises _Died.

    A turn may last for ``patience_s``, and all that was ordered for ``whole_s``, however many turns are announced.
    """
    try:
        message = session.receive(patience_s, whole_s)
    except ChannelClosed as error:
        raise _Died(session) from error
    if "turn" in message:
        session.turn = message["turn"]
        session.begin_part()
    elif "error" in message:
        log.warning("a finalist failed: %s", message["error"]["detail"])
    return message


def _drop_culprit(drive: _Drive, session: Session, crashes: int) -> None:
    """Drop the finalist whose turn it was when a process died; the other processes hold it too and start again."""
    session.finish()
    if drive.executor.server.closed:
        raise StudyInterruptedError(
            "the finals were stopped; the trials are kept", run="the same command, which continues it"
        )
    drive.executor.split.add(session.spans)
    failure = session.failure(0.0)
    if session.turn is None or crashes > len(drive.artifacts):
        raise failure.exception("the finals could not be run", found=str(failure))
    log.warning("%s failed in the finals and is dropped: %s", session.turn, failure)
    try:
        drive.finals.drop(session.turn)
    except ValueError as error:
        raise failure.exception(
            "the baseline failed in the finals", found=str(failure), expected="the model to run in eager mode"
        ) from error


def _result(drive: _Drive, verdict: Verdict) -> FinalsResult:
    protocol = protocol_of(drive.protocol, drive.executor.device.kind, TIMING_SETS)
    samples = drive.finals.samples()
    return FinalsResult(
        verdict=verdict,
        samples_ms=samples,
        figures=drive.finals.figures(),
        disturbed=drive.finals.disturbed(),
        flags=drive.finals.flags(),
        utilisation=drive.utilisation,
        measurements={
            name: drive.finals.measurement(
                name, protocol, {"seed": drive.seed, "utilisation": drive.utilisation.get(name)}
            )
            for name in samples
        },
        process_of_round=tuple(drive.process_of_round),
    )


def time_alone(executor: Executor, artifact: Path, seed: int) -> FinalsResult:
    """Time one artifact by the rules of the finals without a rival, as it will run when it is deployed.

    Beside others, caches and clocks are not its own: a time that was taken alone compares only with another that was.
    The result has one finalist, named ``plan``.
    """
    return run_finals(
        executor, {ALONE: artifact}, {ALONE}, {ALONE: ()}, seed, lambda rounds, elapsed_s: None,
        objective=Objective(), protocol=ALONE_PROTOCOL,
    )  # fmt: skip
