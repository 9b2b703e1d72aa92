"""Finals of the objective memory: every finalist's peak in a fresh process of its own, in interleaved rounds."""

import random
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from autotune.errors import StudyInterruptedError, WorkError
from autotune.execute.bench import Bench
from autotune.measure.block import Block
from autotune.measure.finals import Finals

ROUNDS = 7
"""The fewest paired rounds from which Wilcoxon's test can tell two finalists apart at the bound of a look."""


def footprint_rounds(
    bench: Bench,
    artifacts: Mapping[str, Path],
    finals: Finals,
    seed: int,
    on_rounds: Callable[[int, float], None],
) -> None:
    """Add :data:`ROUNDS` rounds to the finals, one process a finalist and round; who fails in one is dropped.

    Raises WorkError where the baseline itself cannot be measured.
    """
    rng, begin = random.Random(seed), time.monotonic()
    for number in range(ROUNDS):
        names = list(finals.running)
        rng.shuffle(names)
        blocks: dict[str, Block] = {}
        for position, name in enumerate(names):
            taken = bench.footprint(artifacts[name])
            if bench.server.closed:
                raise StudyInterruptedError(
                    "the finals were stopped; the trials are kept", run="the same command to go on"
                )
            if taken.failure is not None or taken.value is None:
                _drop(finals, name, str(taken.failure))
                continue
            blocks[name] = Block(
                samples_ms=tuple(taken.value["samples_ms"]),
                figures=(float(taken.value["memory"]["peak_bytes"]),),
                readings={"memory": taken.value["memory"]},
                position=position,
            )
        finals.add(number, [blocks])
        on_rounds(finals.rounds, time.monotonic() - begin)


def _drop(finals: Finals, name: str, why: str) -> None:
    try:
        finals.drop(name)
    except ValueError as error:
        raise WorkError("the baseline failed in the finals", found=why, expected="a peak of memory") from error
