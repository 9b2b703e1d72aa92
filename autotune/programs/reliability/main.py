"""What autotune promises about faults, kills and damage, kept or not: ``python -m autotune.programs.reliability``.

Prints each promise with its figure, its limit and its verdict; ``--json`` writes them to a file with the environment,
the raw figures and the exact command. Exit code 0 if all hold, 1 if one does not, 2 if the request was wrong.
Without ``--device`` no GPU is touched.
"""

import argparse
import contextlib
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence

from rich.console import Console

from autotune.database.location import locate
from autotune.errors import RequestError
from autotune.programs.frame import add_options, document_of, run_checks, tell
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
from autotune.programs.reliability.campaign import Campaign, Outcome
from autotune.programs.reliability.postgresql import serving
from autotune.programs.surroundings import environment
from autotune.records.device import Device
from autotune.runtime import discovery
from autotune.scratch import ScratchFolder

COMMAND = "python -m autotune.programs.reliability"
DEVICE_FAULTS = "device-faults"

PROMISES: Mapping[str, Callable[[Campaign], list[Outcome]]] = {
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
    """Run the program; returns its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(given)
    progress = Console(stderr=True)
    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(ScratchFolder("reliability"))
        databases = {"sqlite": f"sqlite:///{folder}/autotune.db"}
        try:
            if options.postgresql == "auto":
                databases["postgresql"] = stack.enter_context(serving()).create("autotune")
            elif options.postgresql:
                databases["postgresql"] = options.postgresql
                given = [word.replace(options.postgresql, locate(options.postgresql).shown) for word in given]
            device = discovery.find(options.device)
            names = _on(device, options.only)
        except RequestError as error:
            progress.print(str(error), markup=False)
            return error.exit_code
        campaign = Campaign(folder=folder, databases=databases, quick=options.quick, seed=options.seed, device=device)
        around = environment(device.torch_name)
        rows = run_checks(PROMISES, names, campaign, progress)
    document = document_of(
        [*shlex.split(COMMAND), *given], rows, around, quick=options.quick, seed=options.seed,
        seconds=time.monotonic() - started, databases=sorted(databases),
    )  # fmt: skip
    return tell(document, options.json)


def _on(device: Device, asked: tuple[str, ...]) -> tuple[str, ...]:
    """Leave out what needs a GPU where there is none, unless it was asked for; then that is refused."""
    if device.kind == "cuda" or DEVICE_FAULTS not in asked:
        return asked
    if asked == tuple(PROMISES):
        return tuple(name for name in asked if name != DEVICE_FAULTS)
    raise RequestError(
        f"{DEVICE_FAULTS} was asked for",
        found=f"device {device.torch_name}",
        expected="a GPU to misbehave on",
        run=f"{COMMAND} --only {DEVICE_FAULTS} --device cuda:0",
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=COMMAND, description="Faults, kills and damage: is anything lost?")
    parser.add_argument("--postgresql", metavar="URL", help="an empty PostgreSQL database to run on as well, or auto")
    parser.add_argument("--device", default="cpu", metavar="NAME", help="a GPU on which candidates misbehave as well")
    add_options(parser, PROMISES, "promise")
    return parser
