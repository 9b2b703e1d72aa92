"""The README is one page, and its figures are those of the result files."""

import json

from autotune.records.configuration import Configuration
from autotune.report import words
from tests.docs.pages import README, ROOT

MOST_WORDS = 800
SKUS = {
    "H200": "nvidia-h200",
    "Intel Xeon, 16 cores": "intel-r-xeon-r-processor-16c",
    "AMD EPYC, 2 cores": "amd-epyc-2c",
}


def test_it_is_one_page():
    assert len(README.read_text().split()) <= MOST_WORDS


def test_its_results_are_those_of_the_files():
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in README.read_text().splitlines()
            if line.startswith(tuple(f"| {device} |" for device in SKUS))]  # fmt: skip
    assert len(rows) == 7
    for device, model, *cells in rows:
        for batch, cell in zip((1, 32), cells, strict=True):
            path = ROOT / "studies" / model / "results" / f"{SKUS[device]}-b{batch}.json"
            assert cell == (cell_of(json.loads(path.read_text())) if path.exists() else "–"), path


def cell_of(document):
    """A result: the latency of the plan, its backend and precision, and the speedup."""
    plan = document["plan"]
    precision = words.precision_of(Configuration.from_dict(plan["configuration"]))
    label = plan["backend"] if precision == "fp32" else f"{plan['backend']}, {precision}"
    tie = " (tie)" if plan["status"] == "tie" else ""
    return f"{words.milliseconds(plan['latency_ms'])} ({label}), {words.speedup(plan['speedup'])}{tie}"


def test_its_ratios_to_inductor_are_those_of_the_finals():
    ratios = []
    for path in (ROOT / "studies").glob("*/results/nvidia-h200-b*.json"):
        document = json.loads(path.read_text())
        best_ms = min(entry["latency_ms"] for entry in document["finals"] if entry["backend"] == "inductor")
        if document["plan"]["backend"] == "native":
            ratios.append(best_ms / document["plan"]["latency_ms"])
    assert f"the native plans are {min(ratios):.2f} to {max(ratios):.2f} times as fast" in README.read_text()
