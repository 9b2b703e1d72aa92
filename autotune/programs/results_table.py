"""The table of results, made from every results file: ``python -m autotune.programs.results_table studies/``.

Prints Markdown. A study that the database could help from its start is marked, with a note below its table. A file
whose figures do not follow from its raw samples is refused, with exit code 1.
"""

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path

from autotune import standard_streams
from autotune.errors import RequestError, WorkError
from autotune.programs.check_result import CheckResult
from autotune.programs.document import rows_of
from autotune.programs.frame import Run, parser_of, run_program
from autotune.programs.results_file import ResultsEntry, ResultsFile, ResultsPlanEntry, read_results_file
from autotune.programs.surroundings import environment
from autotune.records.configuration import Configuration
from autotune.records.study_start import StudyStart
from autotune.report import words

NAME = "results_table"

MARKS = {"some": " †", "unknown": " ‡"}
"""The marks of results whose study had help from the database at its start, or for which that is unknown."""

NOTES = {
    "some": "When this study began, the database had kernel trials or trials of the model.",
    "unknown": "The file does not record which trials the database had when this study began.",
}
ALL_UNKNOWN = "The files do not record which trials the database had when these studies began."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program, and return its exit code."""
    return run_program(NAME, _parser(), _print_table, arguments)


def _parser() -> argparse.ArgumentParser:
    parser = parser_of(NAME, "write the environment and the number of files of each device class")
    parser.add_argument("studies", type=Path, metavar="STUDIES_FOLDER", help="the folder with the results files")
    return parser


def _print_table(run: Run) -> int:
    folder: Path = run.options.studies
    if not folder.is_dir():
        raise RequestError(f"a table of the results in {folder}", found="no such folder", expected="a studies folder")
    try:
        documents = read_results(folder)
    except ValueError as problem:
        raise WorkError("a results file is wrong", found=str(problem)) from problem
    results = [
        CheckResult(
            check=device_class,
            figure=f"{len(of_class)} files",
            limit="figures follow from the raw samples",
            passed=True,
        )
        for device_class, of_class in _by_device_class(documents).items()
    ]
    return run.report(rows_of(results), environment("cpu"), text=markdown(documents))


def read_results(studies: Path) -> list[ResultsFile]:
    """Read ``*/results/*.json`` and ``*/results/*/*.json`` below a folder, sorted by device, model and batch.

    Raises ValueError for a file that is wrong.
    """
    paths = sorted([*studies.glob("*/results/*.json"), *studies.glob("*/results/*/*.json")])
    documents = [read_results_file(path) for path in paths]
    return sorted(documents, key=lambda document: (document["device"]["sku"], document["name"], document["batch"]))


def markdown(documents: Iterable[ResultsFile]) -> str:
    """Write a table for each device class: baseline, the best finalist of each backend, speedup; the plan is bold."""
    tables = [_device_table(of_class) for of_class in _by_device_class(documents).values()]
    return "\n\n".join(tables) + "\n"


def _by_device_class(documents: Iterable[ResultsFile]) -> dict[str, list[ResultsFile]]:
    classes: dict[str, list[ResultsFile]] = {}
    for document in documents:
        classes.setdefault(document["device"]["device_class"], []).append(document)
    return classes


def _device_table(documents: Sequence[ResultsFile]) -> str:
    backends = sorted({entry["backend"] for document in documents for entry in _candidates(document)})
    heads = ["model, batch", "baseline", *backends, "speedup", "signal error"]
    device = documents[0]["device"]
    lines = [
        f"**{device['name']}** (`{device['device_class']}`), ms",
        "",
        f"| {' | '.join(heads)} |",
        f"| --- |{' ---: |' * (len(heads) - 1)}",
    ]
    shown = {_knowledge(document) for document in documents}
    marks = {} if shown == {"unknown"} else MARKS  # a mark in every row would mark nothing
    for document in documents:
        plan = document["plan"]
        cells_of = {entry["backend"]: _cell(entry, plan) for entry in _candidates(document)}
        if plan["configuration"] != document["baseline"]["configuration"]:
            cells_of[plan["backend"]] = _cell(plan, plan)  # of several that are level the plan need not be the fastest
        cells = [
            f"{document['name']}, {document['batch']}{marks.get(_knowledge(document), '')}",
            _cell(document["baseline"], plan),
            *(cells_of.get(backend, "–") for backend in backends),
            words.speedup(plan["speedup"]) + (" (tie)" if plan["status"] == "tie" else ""),
            words.signal_error(plan["signal_error"]),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    if not marks:
        return "\n".join([*lines, "", ALL_UNKNOWN])
    notes = [f"{mark.strip()} {NOTES[name]}" for name, mark in marks.items() if name in shown]
    return "\n".join([*lines, *(line for note in notes for line in ("", note))])


def _knowledge(document: ResultsFile) -> str:
    """Return ``some`` if the database could help the search from its start, else ``none``; or ``unknown``."""
    start = document.get("known_at_start")
    if start is None:
        return "unknown"
    return "none" if StudyStart.from_dict(start).was_empty else "some"


def _candidates(document: ResultsFile) -> list[ResultsEntry]:
    """Leave out the baseline, which stands in a column of its own."""
    baseline = document["baseline"]["configuration"]
    return [entry for entry in document["backends"] if entry["configuration"] != baseline]


def _cell(entry: ResultsEntry, plan: ResultsPlanEntry) -> str:
    text = words.milliseconds(entry["latency_ms"])
    precision = words.precision_of(Configuration.from_dict(entry["configuration"]))
    if entry["configuration"] == plan["configuration"]:
        text = f"**{text}**"
    return text if precision == "fp32" else f"{text} {precision}"


if __name__ == "__main__":
    standard_streams.run(main)
