"""Checks the promises of autotune about faults, kills and damage: ``python -m autotune.programs.reliability``.

Prints each promise with its figure, its limit and its verdict. Without ``--device`` no GPU is touched.
"""

import argparse
import contextlib
from collections.abc import Callable, Mapping, Sequence

from autotune.database.location import locate
from autotune.errors import RequestError
from autotune.programs.catalogue import command_of
from autotune.programs.check_result import CheckResult
from autotune.programs.checks import add_checks, run_checks
from autotune.programs.frame import Run, parser_of, run_program
from autotune.programs.reliability import (
    artifacts,
    device_faults,
    faults,
    kills,
    look_up,
    refusals,
    security_page,
    writers,
)
from autotune.programs.reliability.campaign import Campaign
from autotune.programs.reliability.postgresql import serving
from autotune.programs.surroundings import environment
from autotune.records.device import Device
from autotune.runtime import discovery
from autotune.scratch import ScratchFolder

NAME = "reliability"
DEVICE_FAULTS = "device-faults"

PROMISES: Mapping[str, Callable[[Campaign], list[CheckResult]]] = {
    "faults": faults.faults,
    DEVICE_FAULTS: device_faults.check,
    "orphans": faults.coordinators,
    "kills": kills.check,
    "damaged-artifacts": artifacts.damaged_artifacts,
    "killed-artifact-writes": artifacts.killed_writes,
    "security-page": security_page.refused,
    "trial-writes": writers.check,
    "plan-look-up": look_up.check,
    "refused-writes": refusals.check,
}
"""By the name that ``--only`` takes, in the order in which they run."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program, and return its exit code."""
    return run_program(NAME, _parser(), _examine, arguments)


def _parser() -> argparse.ArgumentParser:
    parser = parser_of(NAME)
    parser.add_argument("--postgresql", metavar="URL", help="an empty PostgreSQL database to run on as well, or auto")
    parser.add_argument("--device", default="cpu", metavar="NAME", help="a GPU on which candidates misbehave as well")
    add_checks(parser, PROMISES, "promise")
    return parser


def _examine(run: Run) -> int:
    options = run.options
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(ScratchFolder("reliability"))
        databases = {"sqlite": f"sqlite:///{folder}/autotune.db"}
        if options.postgresql == "auto":
            databases["postgresql"] = stack.enter_context(serving()).create("autotune")
        elif options.postgresql:
            databases["postgresql"] = options.postgresql
            run.hide(options.postgresql, locate(options.postgresql).shown)
        device = discovery.find(options.device)
        names = _on(device, options.only)
        campaign = Campaign(folder=folder, databases=databases, quick=options.quick, seed=options.seed, device=device)
        around = environment(device.torch_name)
        rows = run_checks(PROMISES, names, campaign)
    more = {"databases": sorted(databases)}
    return run.report(rows, around, quick=options.quick, seed=options.seed, more=more)


def _on(device: Device, requested: tuple[str, ...]) -> tuple[str, ...]:
    """Leave out the promises that need a GPU if there is none; one that was requested by name is refused then."""
    if device.kind == "cuda" or DEVICE_FAULTS not in requested:
        return requested
    if requested == tuple(PROMISES):
        return tuple(name for name in requested if name != DEVICE_FAULTS)
    raise RequestError(
        f"{DEVICE_FAULTS} was asked for",
        found=f"device {device.torch_name}",
        expected="a GPU to misbehave on",
        run=f"{command_of(NAME)} --only {DEVICE_FAULTS} --device cuda:0",
    )
