"""Times what a loaded plan costs beside its runner: ``python -m autotune.programs.deployed_cost``.

For each backend that works on this CPU a small model is built at batch 1, and calls of the loaded plan alternate with
calls of its runner, in rounds: the difference is the cost of ordering arguments and of putting the answer together.
Then a plan is tuned in a temporary database, and the first answer of its bundle, and of the plan by its name, is timed
in fresh processes, from the end of the import of torch. With ``--json`` all samples go to a file.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from autotune import registry, standard_streams
from autotune.errors import WorkError
from autotune.programs.check_result import CheckResult, rounded
from autotune.programs.document import rows_of
from autotune.programs.frame import Run, parser_of, positive, run_program, say
from autotune.programs.surroundings import environment
from autotune.records.device import Device
from autotune.scratch import ScratchFolder

if TYPE_CHECKING:
    import torch

    from autotune.deploy.model import OptimizedModel

NAME = "deployed_cost"
ROUNDS, RUNS = 40, 5
OVERHEAD_US, FIRST_ANSWER_S = 10.0, 1.5
"""The limits: microseconds of a call beyond the runner's own, and seconds to the first answer beyond torch's import."""

BY_NAME = """
import sys, time
import torch
begin = time.perf_counter()
import autotune
fast = autotune.load("net", device="cpu", db=sys.argv[1])
fast(torch.ones(1, 64), scale=torch.ones(1))
print(time.perf_counter() - begin)
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program, and return its exit code."""
    return run_program(NAME, _parser(), _time_all, arguments)


def _parser() -> argparse.ArgumentParser:
    parser = parser_of(NAME)
    parser.add_argument("--rounds", type=positive, default=ROUNDS, metavar="N", help=f"of calls in turns ({ROUNDS})")
    parser.add_argument("--runs", type=positive, default=RUNS, metavar="N", help=f"fresh processes each ({RUNS})")
    parser.add_argument("--backends", nargs="+", metavar="NAME", help="of the overhead (all that work here)")
    return parser


def _time_all(run: Run) -> int:
    from autotune.runtime.discovery import cpu

    options, device, around = run.options, cpu(), environment("cpu")
    names = options.backends or [name for name in registry.names() if registry.backend(name).probe(device).works]
    results: list[CheckResult] = []
    with ScratchFolder("deployed-cost") as folder:
        for name in names:
            say(f"{name}: building and timing")
            results += _overheads(name, device, folder, options.rounds)
        say("tuning a plan for its first answers")
        results += _first_answers(folder, options.runs)
    return run.report(rows_of(results), around, quick=options.rounds < ROUNDS or options.runs < RUNS)


def _model() -> "tuple[torch.nn.Module, dict[str, torch.Tensor]]":
    """Return a small model of two inputs and a dict of two outputs, and inputs at batch 1."""
    import torch

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = torch.nn.Linear(64, 64), torch.nn.Linear(64, 8)

        def forward(self, x: torch.Tensor, scale: torch.Tensor) -> dict[str, torch.Tensor]:
            hidden = torch.relu(self.first(x))
            return {"logits": self.last(hidden) * scale, "hidden": hidden}

    torch.manual_seed(0)
    return Net().eval(), {"x": torch.randn(1, 64), "scale": torch.rand(1) + 0.5}


def _overheads(name: str, device: Device, folder: Path, rounds: int) -> Iterator[CheckResult]:
    """Time the calls of a loaded plan by position and by name beside those of its runner."""
    from autotune.measure.clock import SystemClock
    from autotune.measure.interleaved import interleaved
    from autotune.measure.lock import device_lock
    from autotune.measure.timer import CpuTimer
    from autotune.runtime.artifact import load_runner

    artifact, inputs = _built(name, device, folder / name)
    fast, runner = _opened(artifact, device), load_runner(artifact, device)
    flat = tuple(inputs.values())
    calls: Mapping[str, Callable[[], object]] = {
        "runner": lambda: runner(*flat), "by position": lambda: fast(*flat), "by name": lambda: fast(**inputs),
    }  # fmt: skip
    with device_lock(device.uuid, exclusive=True, purpose=NAME):
        blocks = interleaved(calls, CpuTimer(SystemClock()), rounds=rounds, samples=1)
    fast.close()
    runner.close()
    times_us = {call: [rounded(1e3 * block[0]) for block in taken] for call, taken in blocks.items()}
    for call in ("by position", "by name"):
        pairs = [mine - own for mine, own in zip(times_us[call], times_us["runner"], strict=True)]
        over, own = median(pairs), median(times_us["runner"])
        yield CheckResult(
            check=f"{name}: a call {call}, beyond its runner", figure=f"{over:.1f} µs of {own + over:.1f} µs",
            limit=f"<= {OVERHEAD_US:g} µs", passed=over <= OVERHEAD_US,
            raw={"runner_us": times_us["runner"], "plan_us": times_us[call]},
        )  # fmt: skip


def _built(name: str, device: Device, folder: Path) -> "tuple[Path, dict[str, torch.Tensor]]":
    """Build the model by a backend, and return the artifact's folder with the inputs of a call."""
    from autotune.model import capture, source
    from autotune.testing.toy_models import build_artifact, plain_configuration

    module, inputs = _model()
    captured = capture.capture("net", 1, module, inputs)
    source.write(folder / "model", captured, inputs, factory=None, seed=0)
    model, artifact, backend = source.CapturedModel(folder / "model"), folder / "artifact", registry.backend(name)
    artifact.mkdir()
    build_artifact(backend, model, plain_configuration(backend, device, model), device, artifact)
    return artifact, inputs


def _opened(artifact: Path, device: Device) -> "OptimizedModel":
    from autotune.deploy.model import open_folder
    from autotune.runtime.artifact import read_record
    from autotune.testing.sample_records import PLAN

    record = read_record(artifact)
    plan = replace(
        PLAN, name="net", device=device, configuration=record.configuration, structure=record.structure,
        weights=record.weights, kernels=record.kernels,
    )  # fmt: skip
    return open_folder(plan, artifact)


def _first_answers(folder: Path, runs: int) -> Iterator[CheckResult]:
    """Time the first answers of a bundle and of a plan by name, each in fresh processes."""
    from autotune.database.store import Store
    from autotune.deploy.api import optimize
    from autotune.deploy.bundle import write_bundle
    from autotune.deploy.serve_check import serve_check

    database, (module, inputs) = str(folder / "autotune.db"), _model()
    serve_as = next(iter(registry.serving_formats()))
    optimize(module, inputs, db=database, name="net", serve_as=serve_as, trials=2, budget="2m", device="cpu").close()
    with Store.open(database) as store:
        (plan,) = store.plans.list(name="net")
        bundle = write_bundle(plan, store, folder / "net.plan")
    yield _first("bundle", [serve_check(bundle).first_answer_s for _ in range(runs)])
    yield _first("plan by name", [_by_name_s(database) for _ in range(runs)])


def _by_name_s(database: str) -> float:
    done = subprocess.run(
        [sys.executable, "-c", BY_NAME, database], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )  # fmt: skip
    if done.returncode != 0:
        raise WorkError("a plan by its name did not load", found=done.stderr.strip())
    return float(done.stdout)


def _first(what: str, seconds: Sequence[float]) -> CheckResult:
    return CheckResult(
        check=f"first answer of a {what}, beyond the import of torch", figure=f"{median(seconds):.2f} s, median",
        limit=f"<= {FIRST_ANSWER_S:g} s", passed=median(seconds) <= FIRST_ANSWER_S,
        raw={"seconds": list(map(rounded, seconds))},
    )  # fmt: skip


if __name__ == "__main__":
    standard_streams.run(main)
