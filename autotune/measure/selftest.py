"""The acceptance tests of the timing layer on a real device: ``python -m autotune.measure.selftest``.

Prints each check with its figure, its limit and its verdict; ``--json`` writes them to a file with the environment, the
raw figures and the exact command. Exit code 0 if all pass, 1 if one fails, 2 if the request was wrong. Nothing else
should run on the device meanwhile. About four minutes.
"""

import argparse
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autotune import standard_streams
from autotune.errors import DeviceError
from autotune.measure.selftests import comparisons, costs, coverage, faults, known_duration, ranking, summaries
from autotune.measure.selftests.bench import COMMAND, Bench, chosen_device
from autotune.measure.selftests.outcome import Outcome, rounded
from autotune.measure.selftests.program import add_options, document_of, run_checks, tell

if TYPE_CHECKING:
    from rich.console import Console

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
    rows = run_checks(CHECKS, names, Bench(device, quick=quick, seed=seed), progress)
    around = {**around, "load_after": _load()}
    return document_of(command, rows, around, quick=quick, seed=seed, seconds=time.monotonic() - started)


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


if __name__ == "__main__":
    standard_streams.run(main)
