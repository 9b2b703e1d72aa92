"""Drive the finals: fresh processes one after the other, each holding all finalists, until there is a verdict."""

import logging
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autotune.errors import StudyInterruptedError, WorkError
from autotune.execute.bench import Bench
from autotune.execute.channel import ChannelClosed
from autotune.execute.server import Session
from autotune.execute.steps import TIMING_SETS
from autotune.measure.block import Block, protocol_of
from autotune.measure.finals import Finals
from autotune.measure.verdict import TieKeys, Verdict
from autotune.trial import Measurement

log = logging.getLogger(__name__)

PROCESSES = 3
LIMIT_S = 50.0
"""Time for all rounds, loading included; longer only where seven rounds of slow finalists do not fit."""
FEWEST_ROUNDS, LONGEST_S = 9, 900.0
LOAD_PATIENCE_S = 300.0
"""A process of the finals that is silent for so long hangs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FinalsResult:
    """The verdict with every raw sample: in ``samples_ms`` a block a round for each finalist, ``None`` where frozen."""

    verdict: Verdict
    samples_ms: Mapping[str, list[list[float] | None]]
    measurements: Mapping[str, Measurement]
    process_of_round: tuple[int, ...]


@dataclass(slots=True)
class _Drive:
    """What changes while finals run."""

    bench: Bench
    artifacts: dict[str, Path]
    finals: Finals
    seed: int
    waiting: list[Session] = field(default_factory=list)
    started: int = 0
    process_of_round: list[int] = field(default_factory=list)

    def start(self) -> Session:
        """Begin one more process that loads every finalist still in the race."""
        request = {
            "folder": str(self.bench.model),
            "device": self.bench.device.as_dict(),
            "artifacts": {name: str(self.artifacts[name]) for name in self.finals.running},
            "seed": self.seed + self.started,
        }
        self.started += 1
        return self.bench.server.start("finals", request, "load")

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
            log.debug("a process of the finals was gone before it was told to close")
        session.finish()
        self.bench.split.add(session.spans)


def run_finals(
    bench: Bench,
    artifacts: Mapping[str, Path],
    baselines: Collection[str],
    tie_keys: TieKeys,
    seed: int,
    on_rounds: Callable[[int, float], None],
    *,
    expected_round_s: float = 0.0,
) -> FinalsResult:
    """Measure all finalists interleaved and decide; a finalist that crashes or hangs here is dropped.

    On a GPU the processes load at the same time and then take turns; on a CPU they come one after the other. Raises
    WorkError where the baseline itself cannot be measured.
    """
    drive = _Drive(
        bench,
        dict(artifacts),
        Finals(list(artifacts), baselines=baselines, tie_keys=tie_keys, processes=PROCESSES),
        seed,
    )
    limit_s = min(LONGEST_S, max(LIMIT_S, FEWEST_ROUNDS * expected_round_s))
    begin = time.monotonic()
    deadline = begin + limit_s
    verdict: Verdict | None = None
    current: Session | None = None
    process, crashes = -1, 0
    try:
        while verdict is None and drive.finals.next_rounds():
            if time.monotonic() >= deadline and process >= PROCESSES - 1:
                break
            if current is None or process < PROCESSES - 1:
                current = _next_process(drive, current, process)
                process += 1
            asked = drive.finals.next_rounds()
            try:
                for session in (current, *drive.waiting):
                    _await_ready(session)  # no process loads while another one measures
                share_s = max(0.0, deadline - time.monotonic()) / max(1, PROCESSES - process)
                done = _run(drive, current, process, share_s)
            except _Died as died:
                crashes += 1
                _drop_culprit(drive, died.session, crashes)
                drive.end([one for one in (current, *drive.waiting) if one is not died.session])
                drive.waiting, current, process = [], None, process - 1
                continue
            on_rounds(drive.finals.rounds, time.monotonic() - begin)
            verdict = drive.finals.look()
            if done < asked and process >= PROCESSES - 1:
                break  # the time is up
    finally:
        for session in ([current] if current is not None else []) + drive.waiting:
            drive.finish(session)
    return _result(drive, verdict or drive.finals.conclude())


def _next_process(drive: _Drive, current: Session | None, process: int) -> Session:
    if current is not None:
        drive.finish(current)
    if _load_together(drive) and process < 0 and not drive.waiting:
        drive.waiting = [drive.start() for _ in range(PROCESSES)]
    return drive.waiting.pop(0) if drive.waiting else drive.start()


def _load_together(drive: _Drive) -> bool:
    """Whether the processes load side by side: on a GPU, whose host has cores to spare."""
    return drive.bench.device.kind == "cuda"


class _Died(Exception):
    """A process of the finals is gone, with the culprit in ``session.turn``."""

    def __init__(self, session: Session) -> None:
        super().__init__()
        self.session = session


def _await_ready(session: Session) -> None:
    """Wait until a process has loaded every finalist; raises _Died where it does not come to that."""
    while not session.ready:
        session.ready = "ready" in _heard(session, LOAD_PATIENCE_S)


def _run(drive: _Drive, session: Session, process: int, limit_s: float) -> int:
    """Let a process run its rounds and return how many it finished in time; raises _Died."""
    loaded = drive.finals.freeze()
    try:
        session.send({"rounds": drive.finals.next_rounds(), "frozen": sorted(loaded), "limit_s": limit_s})
    except ChannelClosed as error:
        raise _Died(session) from error
    while "rounds" not in (message := _heard(session, LOAD_PATIENCE_S + 2 * limit_s)):
        pass
    rounds = [{name: Block.from_dict(block) for name, block in one.items()} for one in message["rounds"]]
    drive.finals.add(process, rounds)
    drive.process_of_round += [process] * len(rounds)
    return len(rounds)


def _heard(session: Session, patience_s: float) -> Mapping[str, Any]:
    """The next message, with note taken of whose turn it is; raises _Died."""
    try:
        message = session.receive(patience_s)
    except ChannelClosed as error:
        raise _Died(session) from error
    if "turn" in message:
        session.turn = message["turn"]
    elif "error" in message:
        log.warning("a finalist failed: %s", message["error"]["detail"])
    return message


def _drop_culprit(drive: _Drive, session: Session, crashes: int) -> None:
    """Drop the finalist whose turn it was when a process died; the other processes hold it too and start again."""
    session.finish()
    if drive.bench.server.closed:
        raise StudyInterruptedError("the finals were stopped; the trials are kept", run="the same command to go on")
    drive.bench.split.add(session.spans)
    failure = session.failure(0.0)
    if session.turn is None or crashes > len(drive.artifacts):
        raise WorkError("the finals could not be run", found=str(failure), run="autotune doctor")
    log.warning("%s failed in the finals and is dropped: %s", session.turn, failure)
    try:
        drive.finals.drop(session.turn)
    except ValueError as error:
        raise WorkError(
            "the baseline failed in the finals", found=str(failure), expected="the model to run in eager mode"
        ) from error


def _result(drive: _Drive, verdict: Verdict) -> FinalsResult:
    protocol = protocol_of("finals", drive.bench.device.kind, TIMING_SETS)
    samples = drive.finals.samples()
    return FinalsResult(
        verdict=verdict,
        samples_ms=samples,
        measurements={name: drive.finals.measurement(name, protocol, {"seed": drive.seed}) for name in samples},
        process_of_round=tuple(drive.process_of_round),
    )
