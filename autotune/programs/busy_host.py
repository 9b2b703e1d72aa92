"""Checks the decisions of studies beside a load generator: ``python -m autotune.programs.busy_host STUDY_FILE``.

Runs ``autotune tune`` on the study again and again, each time with a database of its own, first on the host as it is
and then beside processes that burn every core. A run under load is right if it ends with a plan that a quiet run
promoted, or could not distinguish from the plan that it promoted, or if it ends ``undecided``. Prints a row for each
kind of run; ``--json`` writes them to a file with every run. Nothing else should run on the host during the quiet runs.
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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from autotune import standard_streams
from autotune.errors import AutotuneError, RequestError, WorkError
from autotune.programs.check_result import CheckResult
from autotune.programs.document import Row
from autotune.programs.frame import Run, parser_of, positive, run_program, say
from autotune.programs.surroundings import environment
from autotune.records.configuration import Configuration
from autotune.scratch import ScratchFolder

NAME = "busy_host"
QUIET, BUSY = 3, 20
CLI = (sys.executable, "-m", "autotune.cli.main")


class TuneRun(TypedDict):
    """The end of one run of the study; plain data, as the file holds it."""

    status: str
    reason: str
    plan: str | None
    speedup: float | None
    tied_with: list[str]
    finalists: dict[str, float]
    seconds: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program, and return its exit code."""
    return run_program(NAME, _parser(), _tune_all, arguments)


def _parser() -> argparse.ArgumentParser:
    parser = parser_of(NAME, "write the environment and every run")
    parser.add_argument("study", type=Path, metavar="STUDY_FILE", help="a study of one batch on a CPU")
    parser.add_argument("--quiet", type=count, default=QUIET, metavar="N", help=f"runs on the host as it is ({QUIET})")
    parser.add_argument("--busy", type=count, default=BUSY, metavar="N", help=f"runs beside the load ({BUSY})")
    parser.add_argument("--known", type=Path, metavar="FILE", help="take the quiet runs of an earlier file as well")
    return parser


def count(text: str) -> int:
    """Read a whole number from 0 on."""
    return 0 if text == "0" else positive(text)


def _tune_all(run: Run) -> int:
    options, around = run.options, environment("cpu")
    quiet = [*_earlier_quiet_runs(options.known), *_runs(options.study, options.quiet, 0)]
    busy = _runs(options.study, options.busy, len(os.sched_getaffinity(0)))
    rows = [Row(group="quiet", result=_quiet(quiet)), Row(group="busy", result=_busy(busy, accepted(quiet)))]
    more = {"runs": {"quiet": quiet, "busy": busy}}
    return run.report(rows, around, quick=options.busy < BUSY, more=more)


def accepted(quiet: Iterable[TuneRun]) -> set[str]:
    """Return the configurations that quiet runs promoted, or could not distinguish from those that they promoted."""
    return {name for run in quiet for name in (run["plan"], *run["tied_with"]) if name}


def _runs(study: Path, number_of_runs: int, burners: int) -> list[TuneRun]:
    runs = []
    host = f"beside {burners} burning processes" if burners else "on the host as it is"
    for number in range(number_of_runs):
        with _load(burners):
            run = tuned(study)
        shown = f"{run['status']}, {run['plan']}, {run['speedup']}, {run['reason']}, {run['seconds']:.0f} s"
        say(f"run {number + 1} of {number_of_runs} {host}: {shown}")
        runs.append(run)
    return runs


def tuned(study: Path) -> TuneRun:
    """Tune a study with a fresh database by the user's own command, and return how that ended."""
    started = time.monotonic()
    with ScratchFolder("busy-host") as folder:
        db = str(folder / "autotune.db")
        outcome = _answer("tune", str(study), "--db", db, "--json")["studies"][0]
        plan, tied_with = outcome["plan"], []
        if plan is not None:
            shown = _answer("plan", "show", outcome["name"], "--db", db, "--json")
            names = {entry["uid"]: _name(entry["configuration"]) for entry in shown["evidence"]["finalists"]}
            tied_with = [names[uid] for uid in shown["evidence"]["tied_with"]]
    return {
        "status": outcome["status"],
        "reason": outcome.get("reason", ""),
        "plan": None if plan is None else _name(plan["configuration"]),
        "speedup": None if plan is None else round(plan["speedup"], 3),
        "tied_with": tied_with,
        "finalists": {_name(entry["configuration"]): entry["latency_ms"] for entry in outcome["finalists"]},
        "seconds": round(time.monotonic() - started, 1),
    }


def _answer(*arguments: str) -> dict[str, Any]:
    """Return the JSON that a command prints; raises AutotuneError with its exit code if it prints none."""
    # A study that is undecided ends with 1, and prints its outcome too.
    ended = subprocess.run([*CLI, *arguments], capture_output=True, text=True, check=False)
    if not ended.stdout:
        kind: type[AutotuneError] = RequestError if ended.returncode == RequestError.exit_code else WorkError
        raise kind(f"autotune {shlex.join(arguments)} ended with {ended.returncode}", found=ended.stderr.strip())
    answer: dict[str, Any] = json.loads(ended.stdout)
    return answer


def _name(configuration: Mapping[str, Any]) -> str:
    return str(Configuration.from_dict(configuration))


@contextlib.contextmanager
def _load(processes: int) -> Iterator[None]:
    """Run processes that do nothing but burn a core each."""
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


def _quiet(runs: Sequence[TuneRun]) -> CheckResult:
    plans = Counter(str(run["plan"]) for run in runs)
    shown = ", ".join(f"{times} x {name}" for name, times in plans.most_common())
    passed = bool(runs) and all(run["plan"] for run in runs)
    return CheckResult(check="on the host as it is", figure=shown or "no run", limit="each with a plan", passed=passed)


def _busy(runs: Sequence[TuneRun], right: set[str]) -> CheckResult:
    undecided = sum(run["status"] == "undecided" for run in runs)
    won = sum(run["status"] != "undecided" and run["plan"] in right for run in runs)
    return CheckResult(
        check="beside a process that burns each core",
        figure=f"{won} with a winner of the quiet runs, {undecided} undecided, {len(runs) - won - undecided} wrong",
        limit=f"none of {len(runs)} wrong",
        passed=won + undecided == len(runs),
        raw={"right": sorted(right)},
    )


def _earlier_quiet_runs(file: Path | None) -> list[TuneRun]:
    return [] if file is None else list(json.loads(file.read_text())["runs"]["quiet"])


if __name__ == "__main__":
    standard_streams.run(main)
