"""Compares the keys of models that differ in one thing: ``python -m autotune.programs.identity_pairs``.

Draws pairs of small models that differ in one thing (a constant, an inner graph, an output key, a buffer write, an
attribute of an operator, an input's role, weights, inputs, the gate, the rest of the request) and compares their keys,
and those of each first model with the keys of the same model built once more. Prints a row for each kind. Exit code 0
if no pair shares a key that it must not share and equal models share all.
"""

import argparse
import multiprocessing
from collections import Counter
from collections.abc import Iterator, Sequence

from autotune.programs.check_result import CheckResult
from autotune.programs.document import rows_of
from autotune.programs.drawn.quiet import quiet, start_worker
from autotune.programs.frame import Run, add_seed, add_workers, parser_of, positive, run_program, say
from autotune.programs.identity_pairs.compared_pair import ComparedPair, compare
from autotune.programs.identity_pairs.kinds import KINDS
from autotune.programs.surroundings import environment

NAME = "identity_pairs"
PAIRS = 10_000
SHOWN = 5
"""The number of wrong pairs of a kind that are kept whole."""
REPORT_EVERY = 500
PAIRS_A_WORKER = 500
CHUNK = 10


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program, and return its exit code."""
    return run_program(NAME, _parser(), _compare_all, arguments)


def _parser() -> argparse.ArgumentParser:
    parser = parser_of(NAME, "write the environment, the counts and the pairs that are wrong")
    parser.add_argument("--pairs", type=positive, default=PAIRS, metavar="N", help=f"pairs in all ({PAIRS})")
    add_seed(parser)
    add_workers(parser)
    return parser


def _compare_all(run: Run) -> int:
    options, around = run.options, environment("cpu")
    pairs: list[ComparedPair] = []
    for pair in _compared(options.pairs, options.seed, options.workers):
        pairs.append(pair)
        if len(pairs) % REPORT_EVERY == 0:
            say(f"{len(pairs)} of {options.pairs} pairs, {sum(bool(compared.wrong) for compared in pairs)} wrong")
    rows = rows_of(_result_of(kind, [pair for pair in pairs if pair.kind == kind]) for kind in KINDS)
    return run.report(rows, around, quick=options.pairs < PAIRS, seed=options.seed, more={"pairs": len(pairs)})


def _compared(pairs: int, seed: int, workers: int) -> Iterator[ComparedPair]:
    """Compare pairs, the kinds in turn; the pairs are the same with any number of workers."""
    tasks = [(list(KINDS)[number % len(KINDS)], f"{seed}/{number}") for number in range(pairs)]
    if workers == 1:
        with quiet():
            yield from map(_compare, tasks)
        return
    context = multiprocessing.get_context("spawn")
    # A worker ends after PAIRS_A_WORKER pairs: torch.export keeps something of every graph that it has seen.
    with context.Pool(workers, initializer=start_worker, maxtasksperchild=PAIRS_A_WORKER // CHUNK) as pool:
        yield from pool.imap_unordered(_compare, tasks, chunksize=CHUNK)


def _compare(task: tuple[str, str]) -> ComparedPair:
    return compare(*task)


def _result_of(kind: str, pairs: Sequence[ComparedPair]) -> CheckResult:
    wrong = [pair for pair in pairs if pair.wrong]
    reasons = Counter(f"{pair.difference}: {reason}" for pair in wrong for reason in pair.wrong)
    redrawn = [reason for pair in pairs for reason in pair.redrawn]
    shown = "; ".join(f"{count} of {reason}" for reason, count in reasons.most_common(SHOWN))
    return CheckResult(
        check=kind,
        figure=f"{len(pairs)} pairs, {len(wrong)} wrong{f': {shown}' if shown else ''}",
        limit="none shares a key that it must not share; equal models share all",
        passed=not wrong,
        raw={
            "pairs": len(pairs),
            "wrong": len(wrong),
            "what": dict(sorted(Counter(pair.difference for pair in pairs).items())),
            "reasons": dict(reasons),
            "redrawn": dict(Counter(redrawn).most_common(SHOWN)),
            "examples": [pair.as_dict() for pair in wrong[:SHOWN]],
        },
    )
