"""The acceptance tests of the timing layer on a real device: ``python -m autotune.programs.selftest``.

Prints each check with its figure, its limit and its verdict; ``--json`` writes them to a file with the environment, the
raw figures and the exact command. Exit code 0 if all pass, 1 if one fails, 2 if the request was wrong. Nothing else
should run on the device meanwhile. About four minutes.
"""

import argparse
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from autotune.errors import DeviceError
from autotune.programs.frame import add_options, document_of, run_checks, tell
from autotune.programs.outcome import Outcome
from autotune.programs.selftest import comparisons, costs, coverage, faults, known_duration, ranking, summaries
from autotune.programs.selftest.rig import COMMAND, Rig, chosen_device
from autotune.programs.surroundings import environment, load_average

if TYPE_CHECKING:
    from rich.console import Console

CHECKS: Mapping[str, Callable[[Rig], list[Outcome]]] = {
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
    """Run the program; returns its exit code."""
    from rich.console import Console

    given = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(given)
    progress = Console(stderr=True)
    try:
        device = chosen_device(options.device)
    except DeviceError as error:
        progress.print(str(error), markup=False)
        return error.exit_code
    command = [*shlex.split(COMMAND), *given]
    document = examine(device, options.only, quick=options.quick, seed=options.seed, command=command, progress=progress)
    return tell(document, options.json)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=COMMAND, description="Acceptance tests of the timing layer on a device.")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add_options(parser, CHECKS, "check")
    return parser


def examine(
    device: str,
    names: Iterable[str],
    *,
    quick: bool,
    seed: int,
    command: Sequence[str],
    progress: "Console | None" = None,
) -> dict[str, Any]:
    """Run checks by name on ``cpu`` or ``cuda:N`` and return everything that the JSON file holds."""
    around = environment(device)
    started = time.monotonic()
    rows = run_checks(CHECKS, names, Rig(device, quick=quick, seed=seed), progress)
    around = {**around, "load_after": load_average()}
    return document_of(command, rows, around, quick=quick, seed=seed, seconds=time.monotonic() - started)
