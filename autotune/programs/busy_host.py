"""Whether studies decide rightly beside a load generator: ``python -m autotune.programs.busy_host STUDY_FILE``.

Runs ``autotune tune`` on the study again and again, each time with a database of its own, first on the host as it is
and then beside processes that burn every core. A run under load is right if it ends with a plan that a quiet run
promoted or could not tell from the one it promoted, or if it ends ``undecided``. Prints a row for each kind of run;
``--json`` writes them to a file with every run. Exit code 0 if all are right, 1 if one is not, 2 if the request was
wrong. Nothing else should run on the host during the quiet runs.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import shlex
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from autotune.programs.frame import document_of, positive, tell
from autotune.programs.outcome import Outcome
from autotune.programs.surroundings import environment
from autotune.records.configuration import Configuration
from autotune.scratch import ScratchFolder

COMMAND = "python -m autotune.programs.busy_host"
QUIET, BUSY = 3, 20
CLI = (sys.executable, "-m", "autotune.cli.main")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(given)
    progress, around, started = Console(stderr=True), environment("cpu"), time.monotonic()
    quiet = [*_known(options.known), *_runs(options.study, options.quiet, 0, progress)]
    busy = _runs(options.study, options.busy, len(os.sched_getaffinity(0)), progress)
    rows = [
        {"group": name, **outcome.as_dict(), "seconds": None}
        for name, outcome in (("quiet", _quiet(quiet)), ("busy", _busy(busy, accepted(quiet))))
    ]
    document = document_of(
        [*shlex.split(COMMAND), *given], rows, around, quick=options.busy < BUSY, seed=0,
        seconds=time.monotonic() - started, runs={"quiet": quiet, "busy": busy},
    )  # fmt: skip
    return tell(document, options.json)


def accepted(quiet: Sequence[Mapping[str, Any]]) -> set[str]:
    """Return the configurations that quiet runs promoted, or could not tell from the one that they promoted."""
    return {name for run in quiet for name in (run["plan"], *run["tied_with"]) if name}


def _runs(study: Path, count: int, burners: int, progress: Console) -> list[dict[str, Any]]:
    done = []
    for number in range(count):
        with _load(burners):
            run = tuned(study)
        kind = f"beside {burners} burning processes" if burners else "on the host as it is"
        said = f"{run['status']}, {run['plan']}, {run['speedup']}, {run['reason']}, {run['seconds']:.0f} s"
        progress.print(f"run {number + 1} of {count} {kind}: {said}", markup=False, highlight=False)
        done.append(run)
    return done


def tuned(study: Path) -> dict[str, Any]:
    """Tune a study with a fresh database by the user's own command, and return how that ended."""
    began = time.monotonic()
    with ScratchFolder("busy-host") as folder:
        db = str(folder / "autotune.db")
        found = _answer("tune", str(study), "--db", db, "--json")["studies"][0]
        plan, tied_with = found["plan"], []
        if plan is not None:
            shown = _answer("plan", "show", found["name"], "--db", db, "--json")
            names = {one["uid"]: _name(one["configuration"]) for one in shown["evidence"]["finalists"]}
            tied_with = [names[uid] for uid in shown["evidence"]["tied_with"]]
    return {
        "status": found["status"],
        "reason": found.get("reason", ""),
        "plan": None if plan is None else _name(plan["configuration"]),
        "speedup": None if plan is None else round(plan["speedup"], 3),
        "tied_with": tied_with,
        "finalists": {_name(one["configuration"]): one["latency_ms"] for one in found["finalists"]},
        "seconds": round(time.monotonic() - began, 1),
    }


def _answer(*arguments: str) -> Any:
    """Return what a command prints with --json; a study that is undecided ends with 1 and prints its outcome too."""
    ended = subprocess.run([*CLI, *arguments], capture_output=True, text=True, check=False)
    if not ended.stdout:
        raise SystemExit(f"error: autotune {shlex.join(arguments)} ended with {ended.returncode}:\n{ended.stderr}")
    return json.loads(ended.stdout)


def _name(configuration: Mapping[str, Any]) -> str:
    return str(Configuration.from_dict(configuration))


@contextlib.contextmanager
def _load(processes: int) -> Iterator[None]:
    """Run so many processes that do nothing but burn a core each."""
    context = multiprocessing.get_context("spawn")
    burners = [context.Process(target=_burn, daemon=True) for _ in range(processes)]
    for burner in burners:
        burner.start()
    try:
        yield
    finally:
        for burner in burners:
            burner.terminate()
            burner.join()


def _burn() -> None:
    while True:
        pass


def _quiet(runs: Sequence[Mapping[str, Any]]) -> Outcome:
    plans = Counter(str(run["plan"]) for run in runs)
    said = ", ".join(f"{count} x {name}" for name, count in plans.most_common())
    passed = bool(runs) and all(run["plan"] for run in runs)
    return Outcome(check="on the host as it is", figure=said or "no run", limit="each with a plan", passed=passed)


def _busy(runs: Sequence[Mapping[str, Any]], right: set[str]) -> Outcome:
    undecided = sum(run["status"] == "undecided" for run in runs)
    won = sum(run["status"] != "undecided" and run["plan"] in right for run in runs)
    return Outcome(
        check="beside a process that burns each core",
        figure=f"{won} with a winner of the quiet runs, {undecided} undecided, {len(runs) - won - undecided} wrong",
        limit=f"none of {len(runs)} wrong", passed=won + undecided == len(runs), raw={"right": sorted(right)},
    )  # fmt: skip


def _known(file: Path | None) -> list[dict[str, Any]]:
    return [] if file is None else list(json.loads(file.read_text())["runs"]["quiet"])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=COMMAND, description="Do studies decide rightly beside a load generator?")
    parser.add_argument("study", type=Path, metavar="STUDY_FILE", help="a study of one batch on a CPU")
    parser.add_argument("--quiet", type=count, default=QUIET, metavar="N", help=f"runs on the host as it is ({QUIET})")
    parser.add_argument("--busy", type=count, default=BUSY, metavar="N", help=f"runs beside the load ({BUSY})")
    parser.add_argument("--known", type=Path, metavar="FILE", help="take the quiet runs of an earlier file as well")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the environment and every run")
    return parser


def count(text: str) -> int:
    """Read a whole number from 0 on."""
    return 0 if text == "0" else positive(text)


if __name__ == "__main__":
    sys.exit(main())
