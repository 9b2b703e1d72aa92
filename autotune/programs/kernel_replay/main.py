"""Replays the tuning of models' kernels in simulated time: ``python -m autotune.programs.kernel_replay``.

By default the models are those of a committed file; ``--models studies/*/study.yaml --write FILE`` captures them anew.
The search, the schedule and the queue are those of every tuning; compiling, checking and timing are charged with
seconds, and the times of kernels are estimates with noise. The table has for some moments the problems with at least
1 and 8 builds of ours timed, and the model's time in kernels relative to the best known.
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from autotune import registry
from autotune.programs.check_result import CheckResult
from autotune.programs.document import rows_of
from autotune.programs.frame import Run, parser_of, positive, run_program, say
from autotune.programs.kernel_replay.problems import (
    BACKEND,
    PROBLEMS,
    ModelProblems,
    capture_problems,
    read_problems,
    write_problems,
)
from autotune.programs.kernel_replay.replay import ENOUGH, MOMENTS_S, ReplayedTuning, replay
from autotune.programs.kernel_replay.simulated import SimulatedCosts
from autotune.programs.surroundings import environment
from autotune.study.file import read_study

NAME = "kernel_replay"
BATCHES = (1, 32)

NVCC_S, NVRTC_S = 4.1, 1.0
"""Seconds for one kernel of ours by nvcc and by NVRTC, on a core of its own."""

LIMITS_S = {"nvcc": math.inf, "nvrtc": 150.0, "compiled": 90.0}
"""The seconds after which every problem is to have enough builds, by the way that they are built."""

MOST_WAITING = 0.1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program, and return its exit code."""
    return run_program(NAME, _parser(), _replay_models, arguments)


def _parser() -> argparse.ArgumentParser:
    parser = parser_of(NAME, "write every figure")
    parser.add_argument("--problems", type=Path, default=PROBLEMS, metavar="FILE", help=f"problems ({PROBLEMS})")
    parser.add_argument("--models", nargs="+", metavar="STUDY_FILE", help="capture these models instead")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the captured problems there, and end")
    parser.add_argument("--only", metavar="NAME", help="replay the models whose names contain this alone")
    parser.add_argument("--build", choices=sorted(LIMITS_S), default="nvrtc", help="how builds are made (nvrtc)")
    parser.add_argument("--cores", type=positive, default=16, help="cores of the host (16)")
    parser.add_argument("--budget", type=float, default=150.0, metavar="SECONDS", help="of a tuning (150)")
    parser.add_argument("--seeds", type=positive, default=1, help="replays of each model (1)")
    parser.add_argument(
        "--no-thinking", action="store_true", help="do not charge the coordinator's own time: the same on every host"
    )
    return parser


def costs_of(build: str) -> SimulatedCosts:
    """Return the costs of one way to make builds; kinds that say how long a kernel takes take that long."""
    kinds = [kind for kind in registry.kernel_tuner(BACKEND).kernel_kinds if not kind.calls_library]
    own_s = NVCC_S if build == "nvcc" else NVRTC_S
    quick = frozenset(kind.name for kind in kinds if not kind.compile_s)
    return SimulatedCosts(
        compile_s={kind.name: kind.compile_s or own_s for kind in kinds},
        compiled=quick if build == "compiled" else frozenset(),
    )


def _replay_models(run: Run) -> int:
    options = run.options
    models = _models(options)
    if options.write is not None:
        write_problems(options.write, models)
        return 0
    replays = []
    for model in models:
        if options.only and options.only not in f"{model.name}-{model.batch}":
            continue
        for seed in range(options.seeds):
            replays.append(
                replay(
                    model, costs_of(options.build), seed=seed, budget_s=options.budget, cores=options.cores,
                    thinking=not options.no_thinking,
                )
            )  # fmt: skip
            say(_row(replays[-1]))
    results = [_check(result, LIMITS_S[options.build]) for result in replays]
    more = {"replays": [result.as_dict() for result in replays]}
    return run.report(rows_of(results), environment("cpu"), text=markdown(replays), more=more)


def _models(options: argparse.Namespace) -> Sequence[ModelProblems]:
    if options.models is None:
        return read_problems(options.problems)
    captured = []
    for path in options.models:
        study = read_study(path)
        for batch in BATCHES:
            say(f"{study.name}: capturing at batch {batch}")
            captured.append(capture_problems(study, batch))
    return captured


def _check(result: ReplayedTuning, limit_s: float) -> CheckResult:
    reached_s = math.inf if result.all_enough_s is None else result.all_enough_s
    return CheckResult(
        check=f"{result.name}, batch {result.batch}, seed {result.seed}: {ENOUGH} builds for every problem",
        figure=f"after {reached_s:.0f} s, the device waits {result.waiting:.0%}",
        limit=f"{limit_s:.0f} s, {MOST_WAITING:.0%}",
        passed=reached_s <= limit_s and result.waiting <= MOST_WAITING,
    )


def markdown(replays: Sequence[ReplayedTuning]) -> str:
    """Write a table with a row for each replay."""
    heads = " | ".join(f"{seconds:.0f} s" for seconds in MOMENTS_S)
    lines = [
        f"Problems with ≥ 1 / ≥ {ENOUGH} builds of ours timed, and the loss, after:",
        "",
        f"| model, batch (problems) | {heads} | all ≥ {ENOUGH} | end | loss | waits for compilers | for the search |",
        f"| --- |{' ---: |' * (len(MOMENTS_S) + 6 - 1)}",
        *map(_row, replays),
    ]
    if replays:
        lines += ["", f"mean loss at the end: {fmean(result.final_loss for result in replays):.1%}"]
    return "\n".join(lines)


def _row(result: ReplayedTuning) -> str:
    cells = [f"{result.name}, {result.batch} ({result.problems})"]
    cells += [f"{moment.begun}/{moment.enough} {_percent(moment.loss)}" for moment in result.moments]
    cells += [
        "–" if result.all_enough_s is None else f"{result.all_enough_s:.0f} s", f"{result.end_s:.0f} s",
        _percent(result.final_loss), f"{result.waiting:.0%}", f"{result.thinking:.0%}",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def _percent(loss: float) -> str:
    return f"{loss:.1%}" if math.isfinite(loss) else "–"
