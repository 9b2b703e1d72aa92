"""The acceptance tests of the timing layer on a real device: ``python -m autotune.measure.selftest``.

Prints each check with its figure, its limit and its verdict; ``--json`` writes them to a file with the environment, the
raw figures and the exact command. Exit code 0 if all pass, 1 if one fails, 2 if the request was wrong. Nothing else
should run on the device meanwhile. About four minutes.
"""

import argparse
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from autotune.errors import DeviceError
from autotune.measure.selftests import comparisons, costs, coverage, faults, known_duration, ranking, summaries
from autotune.measure.selftests.bench import COMMAND, Bench, chosen_device
from autotune.measure.selftests.outcome import Outcome, rounded

if TYPE_CHECKING:
    from rich.console import Console

SCHEMA_VERSION = 1
Subject = TypeVar("Subject")
FILE_WIDTH = 120

CHECKS: Mapping[str, Callable[[Bench], list[Outcome]]] = {
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
    command = shlex.join([*shlex.split(COMMAND), *given])
    document = examine(device, options.only, quick=options.quick, seed=options.seed, command=command, progress=progress)
    console = Console()
    show(console if console.is_terminal else Console(width=FILE_WIDTH), document)
    if options.json is not None:
        options.json.write_text(as_json(document))
    return 0 if document["passed"] else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=COMMAND, description="Acceptance tests of the timing layer on a device.")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the environment, the raw figures and all else")
    parser.add_argument("--quick", action="store_true", help="a short form that shows that everything runs")
    parser.add_argument("--seed", type=int, default=0, help="of every random choice")
    parser.add_argument(
        "--only", type=_names, default=tuple(CHECKS), metavar="NAME,...", help=f"some of {', '.join(CHECKS)}"
    )
    return parser


def _names(text: str) -> tuple[str, ...]:
    asked = {name.strip() for name in text.split(",")}
    unknown = sorted(asked - set(CHECKS))
    if unknown:
        raise argparse.ArgumentTypeError(f"there is no check {', '.join(unknown)}; there are {', '.join(CHECKS)}")
    return tuple(name for name in CHECKS if name in asked)


def examine(
    device: str, names: Iterable[str], *, quick: bool, seed: int, command: str, progress: "Console | None" = None
) -> dict[str, Any]:
    """Run checks by name on ``cpu`` or ``cuda:N`` and return everything that the JSON file holds."""
    around = environment(device)
    bench = Bench(device, quick=quick, seed=seed)
    started = time.monotonic()
    rows: list[dict[str, Any]] = []
    for name in names:
        if progress is not None:
            progress.print(f"{name} ...", markup=False)
        rows += run_check(name, CHECKS[name], bench)
    return {
        "schema_version": SCHEMA_VERSION,
        "command": command,
        "quick": quick,
        "seed": seed,
        "environment": {**around, "load_after": _load()},
        "seconds": round(time.monotonic() - started, 2),
        "passed": all(row["passed"] for row in rows),
        "checks": rows,
    }


def run_check(name: str, check: Callable[[Subject], list[Outcome]], bench: Subject) -> list[dict[str, Any]]:
    """Run one check and return its rows; the seconds of the whole check stand in the first of them."""
    started = time.monotonic()
    try:
        outcomes = check(bench)
    except Exception as error:  # the program's border: a check that breaks off has failed, and the others still run
        found = f"broke off: {type(error).__name__}: {error}"
        outcomes = [Outcome(check=name, figure=found, limit="runs to its end", passed=False)]
    if not outcomes:
        outcomes = [Outcome(check=name, figure="no outcome", limit="at least one", passed=False)]
    seconds = [round(time.monotonic() - started, 2), *[None] * (len(outcomes) - 1)]
    return [
        {"group": name, **outcome.as_dict(), "seconds": spent} for outcome, spent in zip(outcomes, seconds, strict=True)
    ]


def environment(device: str) -> dict[str, Any]:
    """Say what the figures were taken on: device, host, versions, and how busy the host was."""
    versions: dict[str, str | None] = {}
    for name in ("autotune", "torch", "triton", "numpy", "scipy", "nvidia-ml-py"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "device": device,
        **_device(device),
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": versions,
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "load_before": _load(),
    }


def _device(device: str) -> dict[str, Any]:
    if device == "cpu":
        return {"device_name": _cpu_name()}
    import torch

    properties = torch.cuda.get_device_properties(device)
    return {
        "device_name": properties.name,
        "capability": [properties.major, properties.minor],
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "cuda": torch.version.cuda,
        "driver": _driver(),
    }


def _driver() -> str | None:
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        return str(pynvml.nvmlSystemGetDriverVersion())
    finally:
        pynvml.nvmlShutdown()


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())


def _load() -> float:
    return rounded(os.getloadavg()[0])


def as_json(document: Mapping[str, Any]) -> str:
    """Write the document with one line for each key, and one for each check: long lists do not fill a column."""
    checks = ",\n    ".join(json.dumps(check) for check in document["checks"])
    lines = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in document.items() if key != "checks"]
    return "{\n" + ",\n".join([*lines, f'  "checks": [\n    {checks}\n  ]']) + "\n}\n"


def show(console: "Console", document: Mapping[str, Any]) -> None:
    """Print a document of :func:`examine` as a table."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    around = document["environment"]
    table = Table(box=box.SIMPLE_HEAD, title=f"{around['device']}: {around['device_name']}", title_justify="left")
    for heading in ("check", "figure", "limit", "verdict"):
        table.add_column(heading, overflow="fold")
    table.add_column("seconds", justify="right")
    for row in document["checks"]:
        verdict = Text("pass", style="green") if row["passed"] else Text("FAIL", style="bold red")
        seconds = "" if row["seconds"] is None else f"{row['seconds']:.1f}"
        table.add_row(Text(row["check"]), Text(row["figure"]), Text(row["limit"]), verdict, seconds)
    console.print(table)
    failed = sum(not row["passed"] for row in document["checks"])
    said = f"{failed} of {len(document['checks'])} failed" if failed else f"all {len(document['checks'])} passed"
    console.print(f"{said} in {document['seconds']:.0f} s: {document['command']}", markup=False, highlight=False)


if __name__ == "__main__":
    sys.exit(main())
