"""What autotune promises about faults, kills and damage, kept or not: ``python -m autotune.reliability``.

Prints each promise with its figure, its limit and its verdict; ``--json`` writes them to a file with the environment,
the raw figures and the exact command. Exit code 0 if all hold, 1 if one does not, 2 if the request was wrong.
"""

import argparse
import contextlib
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rich.console import Console

from autotune.database.engine import locate
from autotune.errors import RequestError
from autotune.measure.selftest import environment
from autotune.measure.selftests.program import add_options, document_of, run_checks, tell
from autotune.reliability import artifacts, faults, kills, look_up, refusals, security_page, writers
from autotune.reliability.campaign import Campaign, Outcome
from autotune.reliability.postgresql import serving

COMMAND = "python -m autotune.reliability"

PROMISES: Mapping[str, Callable[[Campaign], list[Outcome]]] = {
    "faults": faults.faults,
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
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="autotune-reliability-"))
        databases = {"sqlite": f"sqlite:///{folder}/autotune.db"}
        try:
            if options.postgresql == "auto":
                databases["postgresql"] = stack.enter_context(serving()).create("autotune")
            elif options.postgresql:
                databases["postgresql"] = options.postgresql
                given = [word.replace(options.postgresql, locate(options.postgresql).shown) for word in given]
        except RequestError as error:
            progress.print(str(error), markup=False)
            return error.exit_code
        campaign = Campaign(folder=Path(folder), databases=databases, quick=options.quick, seed=options.seed)
        around = environment("cpu")
        rows = run_checks(PROMISES, options.only, campaign, progress)
    document = document_of(
        [*shlex.split(COMMAND), *given], rows, around, quick=options.quick, seed=options.seed,
        seconds=time.monotonic() - started, databases=sorted(databases),
    )  # fmt: skip
    return tell(document, options.json)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=COMMAND, description="Faults, kills and damage: is anything lost?")
    parser.add_argument("--postgresql", metavar="URL", help="an empty PostgreSQL database to run on as well, or auto")
    add_options(parser, PROMISES, "promise")
    return parser


if __name__ == "__main__":
    sys.exit(main())
