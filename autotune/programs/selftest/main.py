"""The acceptance tests of the timing layer on a real device: ``python -m autotune.programs.selftest``.

Prints each check with its figure, its limit and its verdict. Nothing else should run on the device meanwhile. Takes
about four minutes.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence

from autotune.programs.check_result import CheckResult
from autotune.programs.checks import add_checks, run_checks
from autotune.programs.frame import Run, parser_of, run_program
from autotune.programs.selftest import comparisons, costs, coverage, faults, known_duration, ranking, summaries
from autotune.programs.selftest.rig import NAME, Rig, chosen_device
from autotune.programs.surroundings import environment, load_average

CHECKS: Mapping[str, Callable[[Rig], list[CheckResult]]] = {
    "known": known_duration.check,
    "faults": faults.check,
    "overhead": costs.check_overhead,
    "duration": costs.check_duration,
    "summaries": summaries.check,
    "coverage": coverage.check,
    "ranking": ranking.check,
    "aa": comparisons.check_aa,
    "power": comparisons.check_power,
}
"""By the name that ``--only`` takes, in the order in which they run."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program, and return its exit code."""
    return run_program(NAME, _parser(), _examine, arguments)


def _parser() -> argparse.ArgumentParser:
    parser = parser_of(NAME)
    parser.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda or cuda:N (default: auto)")
    add_checks(parser, CHECKS, "check")
    return parser


def _examine(run: Run) -> int:
    options = run.options
    device = chosen_device(options.device)
    around = environment(device)
    rows = run_checks(CHECKS, options.only, Rig(device, quick=options.quick, seed=options.seed))
    around = {**around, "load_after": load_average()}
    return run.report(rows, around, quick=options.quick, seed=options.seed)
