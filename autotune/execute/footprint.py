"""Finals of the objective memory: every finalist's peak in a fresh process of its own, in interleaved rounds.

A peak that is read per process is the same beside others, and loading takes longest, so processes load side by side.
"""

import logging
import random
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from autotune.errors import StudyInterruptedError, WorkError
from autotune.execute.answers import FootprintAnswer, MemoryReading
from autotune.execute.device_memory import free_bytes
from autotune.execute.executor import Executor
from autotune.execute.step_result import StepResult
from autotune.measure.block import Block
from autotune.measure.finals import Finals
from autotune.measure.paired import fewest_rounds

log = logging.getLogger(__name__)

CORES_A_LOAD = 2
"""A process that loads is assumed to keep as many cores busy as one that builds; a study builds one on so many."""

SHARE_OF_FREE_MEMORY = 0.5
"""The part of the free memory that processes side by side may take, by the peaks they had before: the rest is for
higher peaks, and for other programs that begin to use the device meanwhile."""


def footprint_rounds(
    executor: Executor,
    artifacts: Mapping[str, Path],
    finals: Finals,
    seed: int,
    on_rounds: Callable[[int, float], None],
) -> None:
    """Add as many rounds as a clear winner needs, one process a finalist and round; a finalist that fails is dropped.

    In the first round each process has the device to itself; its readings decide which may run side by side later.
    Raises WorkError if the baseline itself cannot be measured.
    """
    rng, begin = random.Random(seed), time.monotonic()
    readings: dict[str, MemoryReading] = {}
    while finals.rounds < fewest_rounds(len(finals.candidates)):
        names = list(finals.running)
        rng.shuffle(names)
        blocks: dict[str, Block] = {}
        at_once = max(1, executor.device.cores // CORES_A_LOAD)
        for group in side_by_side(names, readings, at_once, free_bytes(executor.device)):
            results = _measured(executor, [artifacts[name] for name in group])
            for name, result in zip(group, results, strict=True):
                if result.failure is not None or result.value is None:
                    _drop(finals, name, str(result.failure))
                    continue
                readings[name] = result.value.memory
                blocks[name] = Block(
                    samples_ms=result.value.samples_ms,
                    figures=(float(readings[name].peak_bytes),),
                    readings={"memory": readings[name].as_conditions()},
                    position=names.index(name),
                )
        finals.add(finals.rounds, [blocks])
        on_rounds(finals.rounds, time.monotonic() - begin)


def side_by_side(
    names: Sequence[str], readings: Mapping[str, MemoryReading], at_once: int, free_bytes: int | None
) -> list[list[str]]:
    """Divide a round, in its order, into groups that run at once, at most ``at_once`` each and as memory allows.

    If the free memory is unknown, or a finalist's last reading is not per process, each runs alone.
    """
    if free_bytes is None or not all(name in readings and readings[name].per_process for name in names):
        return [[name] for name in names]
    needed = {name: readings[name].before_bytes + readings[name].peak_bytes for name in names}
    groups: list[list[str]] = []
    for name in names:
        together = [*groups[-1], name] if groups else []
        if 0 < len(together) <= at_once and sum(map(needed.__getitem__, together)) <= SHARE_OF_FREE_MEMORY * free_bytes:
            groups[-1] = together
        else:
            groups.append([name])
    return groups


def _measured(executor: Executor, artifacts: Sequence[Path]) -> list[StepResult[FootprintAnswer]]:
    """Measure side by side; one that failed there, or was not read per process, is measured again alone."""
    if len(artifacts) == 1:
        return [_footprint(executor, artifacts[0], alone=True)]
    with ThreadPoolExecutor(len(artifacts)) as pool:
        results = list(pool.map(lambda artifact: _footprint(executor, artifact, alone=False), artifacts))
    for index, result in enumerate(results):
        if result.failure is not None or result.value is None or not result.value.memory.per_process:
            log.info("measuring again without others beside it: %s", result.failure or "not read per process")
            results[index] = _footprint(executor, artifacts[index], alone=True)
    return results


def _footprint(executor: Executor, artifact: Path, *, alone: bool) -> StepResult[FootprintAnswer]:
    result = executor.footprint(artifact, alone=alone)
    if executor.server.closed:
        raise StudyInterruptedError(
            "the finals were stopped; the trials are kept", run="the same command, which continues it"
        )
    return result


def _drop(finals: Finals, name: str, why: str) -> None:
    log.warning("%s failed in the finals and is dropped: %s", name, why)
    try:
        finals.drop(name)
    except ValueError as error:
        raise WorkError("the baseline failed in the finals", found=why, expected="a peak of memory") from error
