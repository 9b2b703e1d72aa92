"""Compares our kernels with the libraries' calls, on 40 products: ``python -m autotune.programs.kernel_comparison``.

The products are those of :data:`~autotune.programs.kernel_comparison.shapes.SHAPES`. Each is tuned into a
database, and then the best of ours and the best of the libraries' calls are timed against each other in fresh
processes. ``--compile-only`` fills the cache of kernels without a GPU.
The program resumes if it was stopped, and ends within ``--limit`` seconds.
The exit code is 0 when every product was compared, 1 if one is left or failed, 2 if the request was wrong.
"""

import argparse
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from autotune import environment, registry
from autotune.database.store import Store
from autotune.errors import RequestError
from autotune.execute.server import WorkerServer
from autotune.kernel import KernelToolchains
from autotune.kernels.compiled import kernels_folder
from autotune.kernels.cost import FIXED_S
from autotune.kernels.executor import STEPS, KernelExecutor
from autotune.kernels.portfolio import MOST_BUILDS
from autotune.kernels.rates import DeviceRates
from autotune.kernels.report import KernelReport
from autotune.kernels.search import KernelSearch
from autotune.kernels.tuning import tune_kernels
from autotune.programs.frame import Run, add_seed, parser_of, positive, run_program, say
from autotune.programs.kernel_comparison.finals import (
    PROCESSES,
    ROUNDS,
    Race,
    RaceResult,
    overall,
    result_of,
    run_races,
)
from autotune.programs.kernel_comparison.shapes import SHAPES, ComparedShape
from autotune.programs.kernel_comparison.table import comparison_table, ratio_document
from autotune.programs.kernel_recording.builds import RATES, ChosenBuild, Recording, read_rates
from autotune.programs.kernel_recording.compile import compile_recording, jobs_that_fit, pack, refusals, size_of, unpack
from autotune.programs.kernel_recording.main import absent_device
from autotune.programs.surroundings import environment as surroundings
from autotune.records.configuration import Configuration
from autotune.records.device import Device
from autotune.records.kernel_problem import GemmProblem
from autotune.runtime import discovery
from autotune.runtime import toolchain as versions
from autotune.scratch import ScratchFolder

NAME = "kernel_comparison"
SCHEMA = 1
FILE = "comparison.json"
"""The record of compiled builds, in the folder of the kernels."""

FINALS_SHARE = 0.35
"""The share of the limit for the finals."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program, and return its exit code."""
    return run_program(NAME, _parser(), _run, arguments)


def _run(run: Run) -> int:
    options = run.options
    with _cache(options.cache):
        if options.archive is not None and not options.compile_only:
            unpack(options.archive, kernels_folder())
        return _compile(options) if options.compile_only else _compare(options, run.command)


def _parser() -> argparse.ArgumentParser:
    parser = parser_of(NAME, "results and raw samples; an unfinished one is resumed")
    target = parser.add_mutually_exclusive_group()
    target.add_argument("--device", default="cuda", help="cpu, cuda or cuda:N")
    target.add_argument(
        "--device-like", type=absent_device, metavar="SKU/CAPABILITY", help="one that is not here, to compile for"
    )
    parser.add_argument("--only", metavar="PART,...", help="products whose name has one of the parts, as bert_base-1-")
    parser.add_argument("--db", metavar="DATABASE", help="the tuning database (default: AUTOTUNE_DB, else the user's)")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="the folder of kernels (default: the user's cache)")
    parser.add_argument(
        "--archive", type=Path, metavar="FILE", help="a compressed tar of kernels to write, or to fill from"
    )
    parser.add_argument("--budget", type=float, metavar="S", help="seconds of tuning (default: what the finals leave)")
    parser.add_argument("--limit", type=float, default=540.0, metavar="S", help="seconds of all (default: 540)")
    parser.add_argument(
        "--builds", type=positive, default=MOST_BUILDS, help=f"of a product, over all runs (default: {MOST_BUILDS})"
    )
    parser.add_argument("--processes", type=positive, default=PROCESSES, help=f"of the finals (default: {PROCESSES})")
    parser.add_argument("--rounds", type=positive, default=ROUNDS, help=f"of a process (default: {ROUNDS})")
    parser.add_argument(
        "--compile-only", action="store_true", help="only compile the builds that the search would begin with"
    )
    parser.add_argument("--first", type=positive, default=8, help="builds of a product to compile only (default: 8)")
    parser.add_argument("--rates", type=Path, metavar="FILE", help="JSON of a device's rates, or a recorded space")
    parser.add_argument("--jobs", type=positive, metavar="N", help="compilers at once (default: what fits)")
    add_seed(parser)
    parser.add_argument("--backend", default=registry.tuning_kernels()[0], help="whose kernels (default: %(default)s)")
    return parser


def _compile(options: argparse.Namespace) -> int:
    device = options.device_like or discovery.find(options.device)
    folder, shapes = kernels_folder(), _shapes(options.only)
    folder.mkdir(parents=True, exist_ok=True)
    rates = read_rates(options.rates) if options.rates else RATES.get(device.sku)
    recording = _begun(options, device, shapes, rates)
    if (folder / recording.file).exists():
        _remember(recording, Recording.read(folder, recording.file))
    with _executor(device, options, folder) as executor:
        troubles = compile_recording(
            recording, executor, jobs=options.jobs or jobs_that_fit(), limit_s=options.limit, tell=say
        )
    left = len(_wanted(recording)) - len(recording.results)
    size, refused = size_of(folder), refusals(recording)
    lines = [*(f"- no kernels of kind {kind}: {error}" for kind, error in troubles.items()), *refused]
    lines.append(
        f"{len(recording.results)} builds of a product compiled, {len(refused)} refused, {left} left; "
        f"{size.files} kernels in {size.bytes / 2**20:.1f} MiB"
    )
    if options.archive is not None:
        pack(folder, options.archive)
        lines.append(f"{options.archive}: {options.archive.stat().st_size / 2**20:.1f} MiB")
    sys.stdout.write("\n".join(lines) + "\n")
    return 1 if left else 0


def _begun(
    options: argparse.Namespace, device: Device, shapes: Sequence[ComparedShape], rates: DeviceRates | None
) -> Recording:
    """Return the builds that the search proposes for each product before it has measured anything."""
    if rates is None and device.kind == "cuda":
        raise RequestError(
            f"choosing builds for {device.sku}", found="a device with unknown rates",
            expected=f"one of {', '.join(RATES)}, or rates in a file", run="--rates FILE",
        )  # fmt: skip
    provider, places = registry.kernels(options.backend), dict[Configuration, list[int]]()
    for place, shape in enumerate(shapes):
        space = provider.space(device, shape.problem)
        proposed = (
            KernelSearch(space, shape.problem, rates=rates, seed=options.seed).ask(options.first)
            if space.builds
            else ()
        )
        for build in proposed:
            places.setdefault(build, []).append(place)
    return Recording(
        backend=options.backend, sku=device.sku, capability=device.capability, seed=options.seed, rates=rates,
        problems=tuple(shape.problem for shape in shapes), file=FILE,
        builds=tuple(ChosenBuild(build=build, origin="proposed", places=tuple(at)) for build, at in places.items()),
    )  # fmt: skip


def _remember(recording: Recording, earlier: Recording) -> None:
    """Copy the results of an earlier run, which may be for other products."""
    results = {(build, earlier.problems[place]): result for (build, place), result in earlier.results.items()}
    for build, place in _wanted(recording):
        if (result := results.get((build, recording.problems[place]))) is not None:
            recording.results[build, place] = result


def _wanted(recording: Recording) -> set[tuple[Configuration, int]]:
    return {(chosen.build, place) for chosen in recording.builds for place in chosen.places}


def _compare(options: argparse.Namespace, command: str) -> int:
    begin = time.monotonic()
    device, shapes = discovery.find(options.device), _shapes(options.only)
    folder = kernels_folder()
    folder.mkdir(parents=True, exist_ok=True)
    conditions = surroundings(device.torch_name)
    with _executor(device, options, folder) as executor, Store.open(options.db) as store:
        document: dict[str, object] = {
            "schema": SCHEMA, "command": command, "device_class": device.device_class,
            "toolchain": versions.current(device).as_dict(), "kernels": executor.toolchains.digest,
            "environment": conditions,
        }  # fmt: skip
        budget_s = options.budget if options.budget is not None else (1 - FINALS_SHARE) * options.limit
        report = _tuned(options, shapes, device, store, executor.server, min(budget_s, options.limit), executor.rates())
        document["rates"] = report.rates.as_dict() if report.rates else None
        earlier = _earlier_races(options.json, document)
        by_problem = {tuned.problem: tuned for tuned in report.problems}
        races: dict[ComparedShape, Race] = {}
        missing: list[tuple[ComparedShape, str]] = []
        for shape in shapes:
            tuned = by_problem[shape.problem]
            race = Race.of(tuned)
            if race is None:
                missing.append((shape, str(tuned.trouble or "no kernel of ours or no library's call was timed")))
                continue
            before = earlier.get(shape.problem)
            races[shape] = before if before and before.finalists == race.finalists else race
        save: Callable[[], object] = partial(_write, options.json, document, races, missing)
        run_races(
            list(races.values()), executor, until=begin + options.limit, save=save, processes=options.processes,
            rounds=options.rounds,
        )  # fmt: skip
        results = _write(options.json, document, races, missing)
    unrun = [
        (shape, "; ".join(race.failures) or "the time was up") for shape, race in races.items() if shape not in results
    ]
    joined = overall(list(results.values())) if results else None
    sys.stdout.write(comparison_table(results, joined, [*missing, *unrun]) + "\n")
    finished = all(len(race.runs) >= options.processes for race in races.values())
    return 0 if finished and not missing and not unrun else 1


def _tuned(
    options: argparse.Namespace, shapes: Sequence[ComparedShape], device: Device, store: Store, server: WorkerServer,
    budget_s: float, rates: DeviceRates | None,
) -> KernelReport:  # fmt: skip
    """Tune the products with equal weights; a batch that is running at the end is finished."""
    stop = threading.Event()
    timer = threading.Timer(budget_s, stop.set)
    timer.daemon = True
    timer.start()
    try:
        return tune_kernels(
            {shape.problem: _weight(shape.problem, rates) for shape in shapes}, device, store, server,
            backend=options.backend, budget_s=budget_s, builds=options.builds, seed=options.seed, stop=stop,
            progress=_PrintedProgress(),
        )  # fmt: skip
    finally:
        timer.cancel()


class _PrintedProgress:
    """Prints the kernels that are timed."""

    def event(self, kind: str, **data: Any) -> None:
        """Print an event of a known kind."""
        if kind == "message":
            say(data["text"])
        elif kind == "kernels_timed":
            problem: GemmProblem = data["problem"]
            say(f"{problem.m}×{problem.n}×{problem.k}: timing {data['count']} kernels")


def _weight(problem: GemmProblem, rates: DeviceRates | None) -> float:
    """Return one over the least time of a problem: the schedule weighs microseconds, and all problems count equally."""
    if rates is None:
        return 1.0
    least_s = max(problem.flops / rates.flops_per_s, problem.bytes / rates.memory_bytes_per_s)
    return 1e-6 / (FIXED_S + least_s)


def _earlier_races(path: Path | None, document: Mapping[str, object]) -> dict[GemmProblem, Race]:
    """Return the races of an earlier run of the same device class and toolchain from the file."""
    if path is None or not path.exists():
        return {}
    try:
        data = json.loads(path.read_text())
        if any(data[name] != document[name] for name in ("schema", "device_class", "kernels")):
            raise ValueError(f"{data['device_class']}, kernels {data['kernels']}")
        races = [Race.from_dict(product["race"]) for product in data["products"]]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise RequestError(
            f"resuming {path}", found=f"{type(error).__name__}: {error}",
            expected=f"a comparison on {document['device_class']}, kernels {document['kernels']}", run="--json FILE",
        ) from error  # fmt: skip
    return {race.problem: race for race in races}


def _write(
    path: Path | None,
    document: Mapping[str, object],
    races: Mapping[ComparedShape, Race],
    missing: Sequence[tuple[ComparedShape, str]],
) -> dict[ComparedShape, RaceResult]:
    """Compute the results so far, and write them with the raw samples, atomically."""
    results = {shape: result for shape, race in races.items() if (result := result_of(race)) is not None}
    if path is None:
        return results
    joined = overall(list(results.values())) if results else None
    products = []
    for shape, race in races.items():
        result = results.get(shape)
        products.append(
            {
                "model": shape.model, "batch": shape.batch, "what": shape.what, "epilogue": shape.epilogue,
                "result": None if result is None else {
                    "ours": result.ours.as_dict(), "library": result.library.as_dict(), "ours_us": result.ours_us,
                    "library_us": result.library_us, "chosen_us": result.chosen_us, "rounds": result.rounds,
                    "of_ours": ratio_document(result.of_ours), "of_chosen": ratio_document(result.of_chosen),
                },
                "race": race.as_dict(),
            }
        )  # fmt: skip
    data = {
        **document,
        "overall": None if joined is None else {
            "ours": ratio_document(joined.ours), "chosen": ratio_document(joined.chosen),
            "slower": [problem.as_dict() for problem in joined.slower],
        },
        "missing": [{"product": shape.name, "why": why} for shape, why in missing],
        "products": products,
    }  # fmt: skip
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(json.dumps(data, allow_nan=False) + "\n")
    os.replace(temporary, path)
    return results


def _shapes(only: str | None) -> list[ComparedShape]:
    """Return the products whose names have one of the parts; raises RequestError if none has."""
    parts = [part.strip() for part in (only or "").split(",")]
    shapes = [shape for shape in SHAPES if any(part in shape.name for part in parts)]
    if not shapes:
        names = ", ".join(shape.name for shape in SHAPES)
        raise RequestError(f"--only {only}", found="no product of such a name", expected=f"parts of {names}")
    return shapes


@contextmanager
def _executor(device: Device, options: argparse.Namespace, folder: Path) -> Iterator[KernelExecutor]:
    toolchains = KernelToolchains(registry.kernels(options.backend), versions.current(device))
    with (
        ScratchFolder("comparison") as scratch,
        WorkerServer(scratch, steps=STEPS, work="a comparison of kernels") as server,
    ):
        executor = KernelExecutor(server, device, options.backend, folder, toolchains=toolchains, seed=options.seed)
        with closing(executor):
            yield executor


@contextmanager
def _cache(folder: Path | None) -> Iterator[None]:
    """Set the folder of kernels, here and in every worker."""
    with environment.variables({} if folder is None else {"XDG_CACHE_HOME": str(folder.resolve())}):
        yield
