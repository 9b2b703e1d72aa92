"""Measures the quality of the search over tiles.

``python -m autotune.programs.kernel_search FILE… [--half report] [--json FILE]``:
Each file is a recorded space. For each number of builds the report has the result of the search relative to the best
recorded kernel, over problems and seeds, and the expected result of random search. A method is settled on one half of
the problems (``--half settle``) and reported on the other. The exit code is 1 if a search misses the best by more than
3%.
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any, get_args

from autotune.errors import RequestError
from autotune.programs.check_result import CheckResult
from autotune.programs.document import rows_of
from autotune.programs.frame import Run, parser_of, positive, run_program
from autotune.programs.kernel_search.replay import CHECKPOINTS, Half, ReplayedProblem, half_of, replay
from autotune.programs.kernel_search.space_file import RecordedSpace, read_recorded_space
from autotune.programs.surroundings import environment

NAME = "kernel_search"

LARGEST_REGRET = 0.03
"""The largest promised distance from the best."""


def replay_spaces(
    spaces: Sequence[RecordedSpace], *, half: Half, seeds: int, checkpoints: Sequence[int] = CHECKPOINTS
) -> dict[str, Any]:
    """Search every problem of that half with every seed; raises ValueError if one has no kernel that works."""
    origins, runs = [], []
    for number, space in enumerate(spaces):
        chosen = half_of(space, half)
        origins.append(
            {
                "source": space.source,
                "device_class": space.device_class,
                "toolchain": space.toolchain,
                "builds": len(space.builds),
                "problems": len(chosen),
            }
        )
        for problem in chosen:
            for seed in range(seeds):
                runs.append((number, replay(space, problem, seed=seed, checkpoints=checkpoints)))
    if not runs:
        raise ValueError(f"no problem in the half {half!r} of {len(spaces)} recorded spaces")
    steps = [_step(builds, [run for _, run in runs], place) for place, builds in enumerate(checkpoints)]
    return {
        "half": half,
        "seeds": seeds,
        "spaces": origins,
        "after": steps,
        "score": _mean([run.score for _, run in runs if run.score is not None]),
        "runs": [_run(number, run) for number, run in runs],
        "passed": steps[-1]["worst"] is not None and steps[-1]["worst"] <= LARGEST_REGRET,
    }


def table(figures: dict[str, Any]) -> str:
    """Return the figures as Markdown."""
    lines = [
        f"- `{space['device_class']}` ({space['source']}), {space['builds']} builds, {space['problems']} problems"
        for space in figures["spaces"]
    ]
    lines += [
        "",
        "| builds | mean | median | worst | within 3% | random search, mean |",
        "| ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {step['builds']} | {_percent(step['mean'])} | {_percent(step['median'])} | {_percent(step['worst'])} "
        f"| {step['within']:.0%} | {_percent(step['random_mean'])} |"
        for step in figures["after"]
    ]
    lines += ["", "| problem | best, µs | worst seed at the end |", "| --- | ---: | ---: |"]
    ends: dict[str, list[float | None]] = {}
    best_us: dict[str, float] = {}
    for run in figures["runs"]:
        sizes = "×".join(str(run["problem"][side]) for side in ("m", "n", "k"))
        name = sizes if len(figures["spaces"]) == 1 else f"{sizes} (space {run['space'] + 1})"
        ends.setdefault(name, []).append(run["regrets"][-1])
        best_us[name] = run["best_us"]
    for name, regrets in ends.items():
        lines.append(f"| {name} | {best_us[name]:.4g} | {_percent(_worst(regrets))} |")
    score = "random search finds the best too" if figures["score"] is None else f"{figures['score']:.3f}"
    lines += ["", f"score (0 random search, 1 the best): {score}; half: {figures['half']}; seeds: {figures['seeds']}"]
    if any(space["source"] == "synthetic" for space in figures["spaces"]):
        lines.append("Synthetic times prove nothing about a device.")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program, and return its exit code."""
    return run_program(NAME, _parser(), _replay_files, arguments)


def _parser() -> argparse.ArgumentParser:
    parser = parser_of(NAME, "write the figures there too")
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="recorded spaces")
    parser.add_argument("--half", choices=get_args(Half), default="report", help="which problems (default: report)")
    parser.add_argument("--seeds", type=positive, default=3, help="searches of each problem (default: 3)")
    return parser


def _replay_files(run: Run) -> int:
    options = run.options
    try:
        spaces = [read_recorded_space(path) for path in options.files]
        figures = replay_spaces(spaces, half=options.half, seeds=options.seeds)
    except ValueError as problem:
        raise RequestError(f"replaying {', '.join(map(str, options.files))}", found=str(problem)) from problem
    result = CheckResult(
        check="regret of the worst seed",
        figure=_percent(figures["after"][-1]["worst"]),
        limit=f"at most {LARGEST_REGRET:.0%}",
        passed=figures["passed"],
    )
    more = {key: value for key, value in figures.items() if key != "passed"}
    return run.report(rows_of([result]), environment("cpu"), text=table(figures), more=more)


def _step(builds: int, runs: Sequence[ReplayedProblem], place: int) -> dict[str, Any]:
    regrets = [run.regrets[place] for run in runs]
    return {
        "builds": builds,
        "mean": _finite(fmean(regrets)),
        "median": _finite(median(regrets)),
        "worst": _finite(max(regrets)),
        "within": fmean(regret <= LARGEST_REGRET for regret in regrets),
        "random_mean": _finite(fmean(run.random_regrets[place] for run in runs)),
    }


def _run(number: int, run: ReplayedProblem) -> dict[str, Any]:
    return {
        "space": number,
        "problem": run.problem.as_dict(),
        "seed": run.seed,
        "best_us": run.best_us,
        "regrets": [_finite(regret) for regret in run.regrets],
        "random_regrets": [_finite(regret) for regret in run.random_regrets],
        "launches": run.launches,
        "score": run.score,
    }


def _finite(value: float) -> float | None:
    """Return ``None`` for an infinite value (nothing worked), which JSON does not have."""
    return value if math.isfinite(value) else None


def _worst(regrets: Sequence[float | None]) -> float | None:
    finite = [regret for regret in regrets if regret is not None]
    return max(finite) if len(finite) == len(regrets) else None


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None


def _percent(regret: float | None) -> str:
    return "nothing worked" if regret is None else f"{regret:.2%}"
