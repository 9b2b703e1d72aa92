"""Whether models that differ in one thing share a key: ``python -m autotune.programs.identity_pairs``.

Draws pairs of small models that differ in one thing (a constant, an inner graph, an output key, a buffer write, an
attribute of an operator, an input's role, weights, inputs, the gate, the rest of the request) and holds their keys
against each other, and those of each first model against the same model built once more. Prints a row a kind;
``--json`` writes them to a file with the environment. Exit code 0 if no pair shares a key that it must not share and
equal models share all, 1 if one does not, 2 if the request was wrong.
"""

import argparse
import contextlib
import logging
import multiprocessing
import shlex
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from autotune.programs.frame import document_of, positive, tell
from autotune.programs.identity_pairs.pair_keys import Compared, compare
from autotune.programs.identity_pairs.twins import KINDS
from autotune.programs.outcome import Outcome
from autotune.programs.surroundings import environment

COMMAND = "python -m autotune.programs.identity_pairs"
PAIRS = 10_000
SHOWN = 5
"""So many wrong pairs of a kind are kept whole."""
REPORT_EVERY = 500
PAIRS_A_WORKER = 500
"""A worker ends after so many: torch.export keeps something of every graph that it has seen."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(given)
    progress = Console(stderr=True)
    around, started = environment("cpu"), time.monotonic()
    pairs: list[Compared] = []
    for pair in _compared(options.pairs, options.seed, options.workers):
        pairs.append(pair)
        if len(pairs) % REPORT_EVERY == 0:
            wrong = sum(bool(one.wrong) for one in pairs)
            progress.print(f"{len(pairs)} of {options.pairs} pairs, {wrong} wrong", markup=False, highlight=False)
    seconds = time.monotonic() - started
    document = document_of(
        [*shlex.split(COMMAND), *given], _rows(pairs), around, quick=options.pairs < PAIRS, seed=options.seed,
        seconds=seconds, pairs=len(pairs),
    )  # fmt: skip
    return tell(document, options.json)


def _compared(pairs: int, seed: int, workers: int) -> Iterator[Compared]:
    """Compare so many pairs, the kinds in turn; the same ones with any number of workers."""
    tasks = [(list(KINDS)[at % len(KINDS)], f"{seed}/{at}") for at in range(pairs)]
    if workers == 1:
        with _quiet():
            yield from map(_compare, tasks)
        return
    context = multiprocessing.get_context("spawn")
    with context.Pool(workers, initializer=_start_worker, maxtasksperchild=PAIRS_A_WORKER // 10) as pool:
        yield from pool.imap_unordered(_compare, tasks, chunksize=10)


def _compare(task: tuple[str, str]) -> Compared:
    return compare(*task)


def _start_worker() -> None:
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.ERROR)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence what torch says of single graphs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.ERROR)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


def _rows(pairs: Sequence[Compared]) -> list[dict[str, Any]]:
    rows = []
    for kind in KINDS:
        own = [pair for pair in pairs if pair.kind == kind]
        wrong = [pair for pair in own if pair.wrong]
        reasons = Counter(reason for pair in wrong for reason in (f"{pair.what}: {each}" for each in pair.wrong))
        redrawn = [reason for pair in own for reason in pair.redrawn]
        said = "; ".join(f"{count} of {reason}" for reason, count in reasons.most_common(SHOWN))
        outcome = Outcome(
            check=kind,
            figure=f"{len(own)} pairs, {len(wrong)} wrong{f': {said}' if said else ''}",
            limit="none shares a key that it must not share; equal models share all",
            passed=not wrong,
            raw={
                "pairs": len(own), "wrong": len(wrong),
                "what": dict(sorted(Counter(pair.what for pair in own).items())),
                "reasons": dict(reasons), "redrawn": dict(Counter(redrawn).most_common(SHOWN)),
                "examples": [pair.as_dict() for pair in wrong[:SHOWN]],
            },
        )  # fmt: skip
        rows.append({"group": kind, **outcome.as_dict(), "seconds": None})
    return rows


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=COMMAND, description="Do models that differ in one thing share a key?")
    parser.add_argument("--pairs", type=positive, default=PAIRS, metavar="N", help=f"pairs in all ({PAIRS})")
    parser.add_argument("--seed", type=int, default=0, help="of every random choice")
    parser.add_argument("--workers", type=positive, default=1, metavar="N", help="processes side by side (1)")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write the environment, the counts and what was wrong"
    )
    return parser
