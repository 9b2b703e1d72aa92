"""The README's results table, made from every results file: ``python -m autotune.programs.results_table studies/``.

A file whose figures do not follow from its raw samples is refused.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from autotune import standard_streams
from autotune.records.configuration import Configuration
from autotune.report import words
from autotune.report.results import verify_results


def read_results(studies: Path) -> list[dict[str, Any]]:
    """Read ``*/results/*.json`` and ``*/results/*/*.json`` below a folder, sorted by device, model and batch.

    Raises ValueError for one that is wrong.
    """
    documents = []
    for path in sorted([*studies.glob("*/results/*.json"), *studies.glob("*/results/*/*.json")]):
        document = json.loads(path.read_text())
        try:
            wrong = verify_results(document)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is not what autotune tune --results writes: {error!r}") from error
        if wrong:
            raise ValueError(f"{path}: {wrong[0]}")
        documents.append(document)
    return sorted(documents, key=lambda each: (each["device"]["sku"], each["name"], each["batch"]))


def markdown(documents: Sequence[Mapping[str, Any]]) -> str:
    """Write one table a device class: baseline, the best finalist of each backend, speedup; the plan is bold."""
    parts = []
    for device_class in dict.fromkeys(each["device"]["device_class"] for each in documents):
        rows = [each for each in documents if each["device"]["device_class"] == device_class]
        parts.append(_device_table(rows))
    return "\n\n".join(parts) + "\n"


def _device_table(rows: Sequence[Mapping[str, Any]]) -> str:
    backends = sorted({best["backend"] for row in rows for best in _candidates(row)})
    heads = ["model, batch", "baseline", *backends, "speedup", "signal error"]
    lines = [
        f"**{rows[0]['device']['name']}** (`{rows[0]['device']['device_class']}`), ms",
        "",
        f"| {' | '.join(heads)} |",
        f"| --- |{' ---: |' * (len(heads) - 1)}",
    ]
    for row in rows:
        plan = row["plan"]
        best = {each["backend"]: _cell(each, plan) for each in _candidates(row)}
        if plan["configuration"] != row["baseline"]["configuration"]:
            best[plan["backend"]] = _cell(plan, plan)  # of several that are level the plan need not be the fastest
        cells = [
            f"{row['name']}, {row['batch']}",
            _cell(row["baseline"], plan),
            *(best.get(backend, "–") for backend in backends),
            words.speedup(plan["speedup"]) + (" (tie)" if plan["status"] == "tie" else ""),
            words.signal_error(plan["signal_error"]),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _candidates(row: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Leave out the baseline, which stands in a column of its own."""
    return [each for each in row["backends"] if each["configuration"] != row["baseline"]["configuration"]]


def _cell(entry: Mapping[str, Any], plan: Mapping[str, Any]) -> str:
    text = words.milliseconds(entry["latency_ms"])
    precision = words.precision_of(Configuration.from_dict(entry["configuration"]))
    if entry["configuration"] == plan["configuration"]:
        text = f"**{text}**"
    return text if precision == "fp32" else f"{text} {precision}"


def main() -> None:
    """Run as a program."""
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_dir():
        sys.exit("usage: python -m autotune.programs.results_table STUDIES_FOLDER")
    try:
        sys.stdout.write(markdown(read_results(Path(sys.argv[1]))))
    except ValueError as problem:
        sys.exit(f"error: a results file is wrong: {problem}")


if __name__ == "__main__":
    standard_streams.run(main)
