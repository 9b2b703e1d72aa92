"""Scores the search over whole models: ``python -m autotune.programs.search_score FILE… [--json FILE]``.

Each file is one of ``autotune db export``, such as ``studies/plans.zip``. Their studies become tables of recorded
trials with their costs, and the search runs on each table as if it were the space: without hints from other studies,
and with hints from those of the other files and studies (never those of the same model and batch on the same device
class). A table has only what a search tried before, mostly good configurations, so that random search on it is better
than on the whole space. Few configurations of a backend are recorded: TPE hardly begins to learn from them, and some of
its proposals, which are not among them, become uniform draws. So the score judges the order of defaults, hints and
backends, and says little about TPE. The exit code is 1 if the search is worse than random search in the mean over the
recordings that say something.
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, median

from autotune.database.exchange import read_records
from autotune.errors import RequestError
from autotune.programs.check_result import CheckResult, rounded
from autotune.programs.document import rows_of
from autotune.programs.frame import Run, parser_of, positive, run_program, say
from autotune.programs.search_score.recording import OBJECTIVE, plans_of, recordings
from autotune.programs.search_score.recording_score import RecordingScore, SearchFigures, compare
from autotune.programs.surroundings import environment

NAME = "search_score"

EXPLANATION = (
    "Score: 0 is random search, 1 the best recorded configuration at once; ± is the standard error over the seeds.",
    "Both begin with the defaults; for the cold score random search has none, and the search pays for its own.",
    "Seconds after the defaults until a configuration is within 3% of the best: medians; the mean of recordings is",
    "geometric. Trials are recorded configurations, of all that the spaces have. A table has mostly what a search",
    "liked, so random search is better on it than in the whole space. The score judges the order of hints and",
    "backends, and says little about TPE.",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program, and return its exit code."""
    return run_program(NAME, _parser(), _score_files, arguments)


def _parser() -> argparse.ArgumentParser:
    parser = parser_of(NAME)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="files of autotune db export")
    parser.add_argument("--seeds", type=positive, default=20, metavar="N", help="searches of each recording (20)")
    return parser


def _score_files(run: Run) -> int:
    parcels = [read_records(path) for path in run.options.files]
    plans = [plan for plan in plans_of(parcels) if plan.objective.name == OBJECTIVE and plan.evidence.finalists]
    scores = []
    for recording in recordings(parcels):
        say(recording.name)
        score = compare(recording, plans, seeds=run.options.seeds)
        if score is not None:
            scores.append(score)
    if not scores:
        names = ", ".join(map(str, run.options.files))
        raise RequestError(
            f"recorded searches in {names}",
            found="no study with a search",
            expected=f"studies for {OBJECTIVE} with all their trials",
            run="autotune db export STUDY --no-artifacts --out FILE",
        )
    more = {"seeds": run.options.seeds, "recordings": [score.as_dict() for score in scores]}
    return run.report(rows_of(results_of(scores)), environment("cpu"), text=table(scores), more=more)


def results_of(scores: Sequence[RecordingScore]) -> list[CheckResult]:
    """Return one check: the mean score over the recordings that say something is not below random search."""
    telling = [score for score in scores if not score.silence]
    means = {side: _mean_score(telling, side) for side in ("search", "warm")}
    near_s = {side: _near(telling, side) for side in ("random", "search", "warm")}
    return [
        CheckResult(
            check=f"mean score of {len(telling)} of {len(scores)} recordings",
            figure=f"{_number(means['search'])}, with hints from other studies {_number(means['warm'])}",
            limit="at least 0, which is random search",
            passed=means["search"] is None or means["search"] >= 0,
            raw={"recordings": len(telling), "of": len(scores), "score": means, "near_s": near_s},
        )
    ]


def table(scores: Sequence[RecordingScore]) -> str:
    """Return the figures as Markdown."""
    lines = [
        "| recording | trials | of | best default | cold score | score | with hints | s to 3%: random | search "
        "| with hints | |",
        f"| --- |{' ---: |' * 9} --- |",
        *map(_row, scores),
    ]
    telling = [score for score in scores if not score.silence]
    if telling:
        means = [_number(_mean_score(telling, side)) for side in ("search", "warm")]
        near = [f"{_near(telling, side):.0f}" for side in ("random", "search", "warm")]
        lines.append(f"| mean of {len(telling)} that say something | | | | | {' | '.join([*means, *near])} | |")
    return "\n".join([*lines, "", *EXPLANATION, _draws(telling)])


def _draws(telling: Sequence[RecordingScore]) -> str:
    if not telling:
        return "No recording says anything about the search."
    share = fmean(score.uniform for score in telling)
    return f"{share:.0%} of the proposals beyond the defaults were uniform draws: none of TPE's was recorded and new."


def _row(score: RecordingScore) -> str:
    recording = score.table.recording
    slower = score.best_default / score.optimum - 1
    cells = [
        recording.name + (f", {recording.studies} studies" if recording.studies > 1 else ""),
        f"{len(score.table.trials)} ({score.beyond} beyond the defaults)",
        f"{score.table.size}",
        f"+{slower:.1%}",
        _number(score.search.cold_score),
        _scored(score.search),
        _scored(score.warm),
        *(f"{seconds:.0f}" for seconds in (_near_s(score, side) for side in ("random", "search", "warm"))),
        score.silence and f"says nothing: {score.silence}",
    ]
    return f"| {' | '.join(cells)} |"


def _scored(figures: SearchFigures) -> str:
    return "–" if figures.score is None else f"{figures.score:+.2f} ± {figures.error:.2f}"


def _number(score: float | None) -> str:
    return "–" if score is None else f"{score:+.2f}"


def _mean_score(scores: Sequence[RecordingScore], side: str) -> float | None:
    figures = [score.warm if side == "warm" else score.search for score in scores]
    values = [figure.score for figure in figures if figure.score is not None]
    return rounded(fmean(values)) if values else None


def _near_s(score: RecordingScore, side: str) -> float:
    if side == "random":
        return score.random_near_s
    return median((score.warm if side == "warm" else score.search).near_s)


def _near(scores: Sequence[RecordingScore], side: str) -> float:
    """Return the geometric mean of times to a good configuration; less than a second counts as one."""
    seconds = [max(1.0, _near_s(score, side)) for score in scores]
    return rounded(math.exp(fmean(map(math.log, seconds)))) if seconds else 0.0
