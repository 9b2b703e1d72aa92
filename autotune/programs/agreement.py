"""Compares several runs of one study: ``python -m autotune.programs.agreement FILE FILE… [--json FILE]``.

Each file is a results file of a run of its own. The program prints the winner of each run with those tied with it, by
how much that winner is slower than the best of all runs taken together, and Kendall's tau-b of each pair of runs. Exit
code 1 if a winner is not among those of another run, or misses the best by more than 1%, or a tau is below 0.9.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict, cast

from autotune import standard_streams
from autotune.errors import RequestError
from autotune.execute.finals import statistic_of
from autotune.measure.paired import RoundFigures, Samples
from autotune.measure.replay import agreement
from autotune.measure.statistics import median
from autotune.measure.verdict import verdict_from_samples
from autotune.programs.check_result import CheckResult
from autotune.programs.document import rows_of
from autotune.programs.frame import Run, parser_of, run_program
from autotune.programs.results_file import FinalistEntry, ResultsFile
from autotune.programs.surroundings import environment
from autotune.records.configuration import Configuration
from autotune.records.evidence import FinalistRecord
from autotune.records.objective import Objective
from autotune.report.results import verify_results

NAME = "agreement"
LOWEST_TAU, LARGEST_REGRET = 0.9, 0.01


class RunFigures(TypedDict):
    """The verdict of one run; ``regret`` is how much slower its winner is than the best of all runs (0.01: 1%)."""

    status: str
    winner: str
    tied_with: list[str]
    figure: float
    regret: float


class RunAgreement(TypedDict):
    """Runs of one study compared; ``taus`` holds the numbers of two runs and their tau-b."""

    study: str
    device_class: str
    finalists_in_all: int
    runs: list[RunFigures]
    taus: list[tuple[int, int, float | None]]
    same_winner: bool


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program, and return its exit code."""
    return run_program(NAME, _parser(), _compare_files, arguments)


def _parser() -> argparse.ArgumentParser:
    parser = parser_of(NAME, "write the comparison there too")
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="results of runs of one study")
    return parser


def _compare_files(run: Run) -> int:
    files: list[Path] = run.options.files
    if len(files) < 2:
        raise RequestError("comparing the runs of a study", found=f"{len(files)} file", expected="at least two files")
    try:
        comparison = compare_runs([cast(ResultsFile, json.loads(path.read_text())) for path in files])
    except (OSError, ValueError, KeyError) as problem:
        raise RequestError(f"comparing {', '.join(map(str, files))}", found=str(problem)) from problem
    more = {key: value for key, value in comparison.items()}
    return run.report(rows_of(results_of(comparison)), environment("cpu"), text=table(comparison), more=more)


def compare_runs(documents: Sequence[ResultsFile]) -> RunAgreement:
    """Compare the finals of several results files; ValueError if they are not of one study on one device class."""
    first = documents[0]
    for document in documents:
        if _study_of(document) != _study_of(first):
            raise ValueError(f"runs of one study are compared, found {_title(first)} and {_title(document)}")
        if wrong := verify_results(document):
            raise ValueError(f"{_title(document)}: {wrong[0]}")
    statistic = statistic_of(Objective.from_dict(first["objective"]))
    runs = [_figures(document) for document in documents]
    common = set.intersection(*(set(run) for run in runs))
    baselines = {_name(entry) for entry in first["finals"] if entry["could_be_baseline"]} & common
    processes = [document["process_of_round"] for document in documents]
    disturbed = [
        {_name(entry): FinalistRecord.from_dict(entry).disturbed for entry in document["finals"]}
        for document in documents
    ]
    agreed = agreement(runs, baselines, statistic=statistic, processes=processes, disturbed=disturbed)
    verdicts = [
        verdict_from_samples(run, baselines=baselines, statistic=statistic, processes=process_of_round, disturbed=marks)
        for run, process_of_round, marks in zip(runs, processes, disturbed, strict=True)
    ]
    medians = [RoundFigures(run, statistic, disturbed=marks) for run, marks in zip(runs, disturbed, strict=True)]
    pooled = {name: median(run.figure(name) for run in medians if name in run.names) for name in set().union(*runs)}
    best = min(pooled.values())
    return {
        "study": _title(first),
        "device_class": first["device"]["device_class"],
        "finalists_in_all": len(common),
        "runs": [
            {
                "status": verdict.status,
                "winner": verdict.winner,
                "tied_with": list(verdict.tied_with),
                "figure": verdict.of(verdict.winner).figure,
                "regret": pooled[winner] / best - 1,
            }
            for verdict, winner in zip(verdicts, agreed.winners, strict=True)
        ],
        "taus": list(agreed.taus),
        "same_winner": agreed.same_winner,
    }


def results_of(comparison: RunAgreement) -> list[CheckResult]:
    """Hold a comparison against its limits."""
    regret = max(run["regret"] for run in comparison["runs"])
    lowest = min((tau for _, _, tau in comparison["taus"] if tau is not None), default=None)
    return [
        CheckResult(
            check="same winner",
            figure=_winners_text(comparison),
            limit="each winner won or tied in every run",
            passed=comparison["same_winner"],
        ),
        CheckResult(
            check="regret",
            figure=f"{regret:.2%} at worst",
            limit=f"at most {LARGEST_REGRET:.0%}",
            passed=regret <= LARGEST_REGRET,
        ),
        CheckResult(
            check="rank agreement",
            figure="nothing to order" if lowest is None else f"tau-b {lowest:.3f} at worst",
            limit=f"at least {LOWEST_TAU}",
            passed=lowest is None or lowest >= LOWEST_TAU,
        ),
    ]


def table(comparison: RunAgreement) -> str:
    """Write the comparison as Markdown."""
    lines = [
        f"**{comparison['study']}** (`{comparison['device_class']}`), "
        f"{comparison['finalists_in_all']} finalists in every run",
        "",
        "| run | status | winner | tied with | its figure | slower than the best of all runs |",
        "| ---: | --- | --- | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {number} | {run['status']} | {run['winner']} | {len(run['tied_with'])} | {run['figure']:.4g} "
        f"| {run['regret']:.2%} |"
        for number, run in enumerate(comparison["runs"], 1)
    ]
    taus = ", ".join(
        f"{first + 1} and {second + 1}: {'nothing to order' if tau is None else format(tau, '.3f')}"
        for first, second, tau in comparison["taus"]
    )
    return "\n".join([*lines, "", f"tau-b, runs {taus}; {_winners_text(comparison)}"])


def _winners_text(comparison: RunAgreement) -> str:
    return "each winner won or tied in every run" if comparison["same_winner"] else "a winner lost in another run"


def _study_of(document: ResultsFile) -> tuple[object, ...]:
    """Return what must be equal in all runs: the study and the device class."""
    device_class = document["device"]["device_class"]
    return document["name"], document["batch"], document["objective"], document["serve_as"], device_class


def _figures(document: ResultsFile) -> Samples:
    return {_name(entry): entry.get("figures", entry["samples_ms"]) for entry in document["finals"]}


def _name(entry: FinalistEntry) -> str:
    return str(Configuration.from_dict(entry["configuration"]))


def _title(document: ResultsFile) -> str:
    return f"{document['name']}, batch {document['batch']}, on {document['device']['name']}"


if __name__ == "__main__":
    standard_streams.run(main)
