"""Times ``autotune compare`` and its page: ``python -m autotune.programs.comparison_cost``.

Makes a database in a temporary folder: 50 workloads on 8 device classes with known roofs, each with a study, a plan
with the samples of its finals, and its share of 100,000 trials. Prints the seconds of the command, the seconds and the
size of the page, and its first paint in Chromium if that and playwright are installed; with ``--json`` also to a file.
"""

import argparse
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from statistics import median

from sqlalchemy import insert

from autotune import standard_streams
from autotune.comparison.comparison import DeviceComparison, compare_store
from autotune.comparison.prices import read_prices
from autotune.database.rows import StudyRow
from autotune.database.schema import TrialTable
from autotune.database.store import Store
from autotune.errors import WorkError
from autotune.programs.check_result import CheckResult, rounded
from autotune.programs.document import rows_of
from autotune.programs.frame import Run, add_seed, parser_of, positive, run_program, say
from autotune.programs.surroundings import environment
from autotune.records.configuration import Configuration
from autotune.records.device import Device
from autotune.records.evidence import FinalistRecord, PlanEvidence
from autotune.report.page.page import require_libraries, write_page
from autotune.scratch import ScratchFolder
from autotune.study.identity import measuring
from autotune.testing import sample_records

NAME = "comparison_cost"
WORKLOADS, TRIALS, RUNS = 50, 100_000, 3
COMMAND_S, PAGE_S, PAGE_MB, PAINT_S = 2.0, 5.0, 6.0, 2.0
"""The limits: seconds of the command, seconds and size of the page, and seconds until it is seen."""

FINALISTS, ROUNDS, SAMPLES = 10, 20, 4
"""The finals of a plan: about as many samples as the studies of this repository have."""

PAINTED = """() => new Promise((resolve) => new PerformanceObserver((list) => {
  for (const entry of list.getEntriesByName("first-contentful-paint")) resolve(entry.startTime);
}).observe({ type: "paint", buffered: true }))"""
"""Milliseconds to the first paint, also if that is still to come."""

GPUS = ("H200", "H100", "A100", "L40S", "L4", "A10", "T4")
DEVICES = (
    *(Device(kind="cuda", name=f"NVIDIA {name}", uuid=name, capability=(9, 0), power_limit_w=300) for name in GPUS),
    Device(kind="cpu", name="AMD EPYC", uuid="cpu", cores=2, isa=("avx2",)),
)
PRICES = 'currency = "EUR"\nelectricity_per_kwh = 0.25\n' + "".join(
    f'[devices."{device.sku}"]\nper_hour = {1 + position}\n' for position, device in enumerate(DEVICES)
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program, and return its exit code."""
    return run_program(NAME, _parser(), _time_all, arguments)


def _parser() -> argparse.ArgumentParser:
    parser = parser_of(NAME)
    parser.add_argument(
        "--workloads", type=positive, default=WORKLOADS, metavar="N", help=f"of a batch each ({WORKLOADS})"
    )
    parser.add_argument("--trials", type=positive, default=TRIALS, metavar="N", help=f"of all studies ({TRIALS})")
    parser.add_argument("--runs", type=positive, default=RUNS, metavar="N", help=f"of which the median counts ({RUNS})")
    add_seed(parser)
    return parser


def _time_all(run: Run) -> int:
    require_libraries()
    options, around = run.options, environment("cpu")
    with ScratchFolder("comparison-cost") as folder:
        database, prices, page = str(folder / "autotune.db"), folder / "prices.toml", folder / "page.html"
        prices.write_text(PRICES)
        with Store.open(database) as store:
            _fill(store, options.workloads, options.trials, random.Random(options.seed))
            comparison = compare_store(store, prices=read_prices(prices))
        results = [
            _command(database, prices, options.trials, options.runs),
            *_page(comparison, page, options.runs),
            _paint(page, options.runs),
        ]
    return run.report(rows_of(results), around, quick=options.trials < TRIALS, seed=options.seed)


def _fill(store: Store, workloads: int, trials: int, numbers: random.Random) -> None:
    studies = workloads * len(DEVICES)
    started, position = time.monotonic(), 0
    for device in DEVICES:
        store.roofs.put(sample_records.sample_roofs(device, matrix_tflops={"fp16": numbers.uniform(1.0, 1e3)}))
    for workload in range(workloads):
        for device in DEVICES:
            share = trials * (position + 1) // studies - trials * position // studies
            _add(store, f"model-{workload:02}", device, share, numbers)
            position += 1
    say(f"made {trials:,} trials in {studies} studies: {time.monotonic() - started:.0f} s")


def _add(store: Store, name: str, device: Device, trials: int, numbers: random.Random) -> None:
    """Store a study with its trials and its plan."""
    conditions = replace(sample_records.CONDITIONS, measuring=measuring(device))
    model = replace(sample_records.sample_workload(name), flops=numbers.randrange(10**9, 10**12), traffic_bytes=10**8)
    study = sample_records.begin(store, name, workload=model, device=device, conditions=conditions)
    rows = [_trial_row(store, study, number, numbers) for number in range(trials)]
    with store.transactions.writing() as session:
        if rows:
            session.connection().execute(insert(TrialTable), rows)
    latency_ms = numbers.uniform(0.2, 20.0)
    finalists = tuple(
        _finalist(f"{study.uid[:24]}{number}", number, latency_ms, numbers) for number in range(FINALISTS)
    )
    store.plans.promote(
        replace(
            sample_records.PLAN,
            uid=study.uid, name=name, structure=model.structure, weights=model.weights, device=device,
            configuration=finalists[0].configuration, latency_ms=latency_ms,
            interval_ms=finalists[0].interval_ms, baseline_latency_ms=2 * latency_ms,
            evidence=PlanEvidence(study=study.uid, trial=finalists[0].uid, finalists=finalists),
        )
    )  # fmt: skip


def _configuration(number: int) -> Configuration:
    values = {"precision": ("fp16", "bf16", "fp32")[number % 3], "layout": ("nhwc", "nchw")[number % 2]}
    return Configuration.of(("inductor", "tensorrt")[number % 2], {**values, "level": number, "cuda_graph": True})


def _trial_row(store: Store, study: StudyRow, number: int, numbers: random.Random) -> dict[str, object]:
    configuration, latency_ms = _configuration(number), numbers.uniform(0.2, 20.0)
    return {
        "uid": sha256(f"{study.uid} {number}".encode()).hexdigest()[:32], "study": study.uid, "number": number,
        "attempt": 1, "handed_back": 0, "backend": configuration.backend, "configuration": configuration.as_dict(),
        "configuration_digest": configuration.digest, "structure": study.structure, "weights": study.weights,
        "device_class": study.device_class, "toolchain": sample_records.TOOLCHAIN.digest, "state": "complete",
        "latency_ms": latency_ms, "score": latency_ms, "signal_error": 1e-3, "build_s": 2.0, "reused": False,
        "tried_here": True, "created": store.transactions.now(), "finished": store.transactions.now(),
    }  # fmt: skip


def _finalist(uid: str, number: int, latency_ms: float, numbers: random.Random) -> FinalistRecord:
    own_ms = latency_ms * (1 + number / 10)
    samples = tuple(tuple(rounded(own_ms * numbers.gauss(1, 0.01)) for _ in range(SAMPLES)) for _ in range(ROUNDS))
    return FinalistRecord(
        uid=uid, configuration=_configuration(number), latency_ms=own_ms, interval_ms=(0.99 * own_ms, 1.01 * own_ms),
        samples_ms=samples,
    )  # fmt: skip


def _seconds(action: Callable[[], object], runs: int) -> list[float]:
    durations = []
    for _ in range(runs):
        started = time.perf_counter()
        action()
        durations.append(rounded(time.perf_counter() - started))
    return durations


def _command(database: str, prices: Path, trials: int, runs: int) -> CheckResult:
    """Time the user's own command, from the start of its process to its end."""
    command = [sys.executable, "-m", "autotune.cli.main", "compare", "--db", database, "--prices", str(prices)]

    def compared() -> None:
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        if ended.returncode != 0:
            raise WorkError(f"autotune compare ended with {ended.returncode}", found=ended.stderr.strip())

    with_table = _seconds(compared, runs)
    command.append("--json")
    return _result(
        f"autotune compare --json, {trials:,} trials", _seconds(compared, runs), COMMAND_S, table_s=with_table
    )


def _page(comparison: DeviceComparison, page: Path, runs: int) -> Iterator[CheckResult]:
    seconds = _seconds(lambda: write_page(comparison, page), runs)
    cells = sum(len(workload.cells) for workload in comparison.workloads)
    yield _result(f"page of {len(comparison.workloads)} workloads, {cells} rows", seconds, PAGE_S)
    size = page.stat().st_size / 1e6
    yield CheckResult(
        check="size of the page", figure=f"{size:.1f} MB", limit=f"<= {PAGE_MB:g} MB", passed=size <= PAGE_MB,
        raw={"bytes": page.stat().st_size},
    )  # fmt: skip


def _paint(page: Path, runs: int) -> CheckResult:
    check = "first contentful paint"
    browser = shutil.which("chromium")
    if browser is None:
        return _not_measured(check, "no chromium here")
    try:
        durations = list(_paints(page, browser, runs))
    except ImportError:
        return _not_measured(check, "playwright is not installed")
    return _result(check, durations, PAINT_S)


def _paints(page: Path, browser: str, runs: int) -> Iterator[float]:
    """Yield the seconds from the request of the page to its first paint, each time in a fresh profile."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        for _ in range(runs):
            context = chromium.new_context(viewport={"width": 1280, "height": 900}, offline=True)
            opened = context.new_page()
            opened.goto(page.as_uri())
            yield rounded(opened.evaluate(PAINTED) / 1e3)
            context.close()
        chromium.close()


def _result(check: str, durations: Sequence[float], limit_s: float, **more: object) -> CheckResult:
    value = median(durations)
    return CheckResult(
        check=check, figure=f"{value:.2f} s, median of {len(durations)}", limit=f"<= {limit_s:g} s",
        passed=value <= limit_s, raw={"seconds": list(durations), **more},
    )  # fmt: skip


def _not_measured(check: str, reason: str) -> CheckResult:
    return CheckResult(check=check, figure=f"not measured: {reason}", limit=f"<= {PAINT_S:g} s", passed=True)


if __name__ == "__main__":
    standard_streams.run(main)
