"""Whether several runs of one study agree: ``python -m autotune.programs.agreement FILE FILE… [--json FILE]``.

Each file is a results file of a run of its own. Told are each run's winner with those tied with it, by how much that
winner is slower than the best of all runs taken together, and Kendall's tau-b between each pair of runs. Exit code 1
where a winner is not among another run's, or misses the best by more than 1%, or a tau is below 0.9.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from autotune import standard_streams
from autotune.execute.finals import statistic_of
from autotune.measure.paired import RoundFigures, Samples
from autotune.measure.replay import agreement
from autotune.measure.statistics import median
from autotune.measure.verdict import verdict_from_samples
from autotune.records.configuration import Configuration
from autotune.records.evidence import FinalistRecord
from autotune.records.objective import Objective
from autotune.report.results import verify_results

LOWEST_TAU, LARGEST_REGRET = 0.9, 0.01
_SAME = ("name", "batch", "objective", "serve_as")


def compare_runs(documents: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Compare the finals of several results files; ValueError where they are not of one study on one device class."""
    first = documents[0]
    for document in documents:
        if any(document[key] != first[key] for key in _SAME) or _device(document) != _device(first):
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
    told = agreement(runs, baselines, statistic=statistic, processes=processes, disturbed=disturbed)
    verdicts = [
        verdict_from_samples(run, baselines=baselines, statistic=statistic, processes=came_from, disturbed=marks)
        for run, came_from, marks in zip(runs, processes, disturbed, strict=True)
    ]
    medians = [RoundFigures(run, statistic, disturbed=marks) for run, marks in zip(runs, disturbed, strict=True)]
    pooled = {name: median(run.figure(name) for run in medians if name in run.names) for name in set().union(*runs)}
    best = min(pooled.values())
    regrets = [pooled[winner] / best - 1 for winner in told.winners]
    lowest = told.lowest_tau
    return {
        "study": _title(first),
        "device_class": _device(first),
        "finalists_in_all": len(common),
        "runs": [
            {
                "status": verdict.status,
                "winner": verdict.winner,
                "tied_with": list(verdict.tied_with),
                "figure": verdict.of(verdict.winner).figure,
                "regret": regret,
            }
            for verdict, regret in zip(verdicts, regrets, strict=True)
        ],
        "taus": [list(entry) for entry in told.taus],
        "same_winner": told.same_winner,
        "passed": told.same_winner and max(regrets) <= LARGEST_REGRET and (lowest is None or lowest >= LOWEST_TAU),
    }


def table(found: dict[str, Any]) -> str:
    """Write the comparison as Markdown."""
    lines = [
        f"**{found['study']}** (`{found['device_class']}`), {found['finalists_in_all']} finalists in every run",
        "",
        "| run | status | winner | tied with | its figure | slower than the best of all runs |",
        "| ---: | --- | --- | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {number} | {run['status']} | {run['winner']} | {len(run['tied_with'])} | {run['figure']:.4g} "
        f"| {run['regret']:.2%} |"
        for number, run in enumerate(found["runs"], 1)
    ]
    taus = ", ".join(
        f"{one + 1} and {other + 1}: {'nothing to order' if tau is None else format(tau, '.3f')}"
        for one, other, tau in found["taus"]
    )
    agreed = "each winner won or tied in every run" if found["same_winner"] else "a winner lost in another run"
    return "\n".join([*lines, "", f"tau-b, runs {taus}; {agreed}"])


def main() -> int:
    """Run as a program; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m autotune.programs.agreement", description="Do runs agree?")
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="results of runs of one study")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the comparison there too")
    options = parser.parse_args()
    if len(options.files) < 2:
        parser.error("runs agree with one another, so at least two files are needed")
    try:
        found = compare_runs([json.loads(path.read_text()) for path in options.files])
    except (OSError, ValueError, KeyError) as problem:
        parser.error(str(problem))
    sys.stdout.write(table(found) + "\n")
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0 if found["passed"] else 1


def _figures(document: dict[str, Any]) -> Samples:
    return {_name(entry): entry.get("figures", entry["samples_ms"]) for entry in document["finals"]}


def _name(entry: dict[str, Any]) -> str:
    return str(Configuration.from_dict(entry["configuration"]))


def _device(document: dict[str, Any]) -> str:
    return str(document["device"]["device_class"])


def _title(document: dict[str, Any]) -> str:
    return f"{document['name']}, batch {document['batch']}, on {document['device']['name']}"


if __name__ == "__main__":
    standard_streams.run(main)
