"""The README is one page, and its figures are those of the result files."""

import json
import re

from autotune.records.configuration import Configuration
from autotune.report import words
from tests.docs.pages import README, ROOT

MOST_WORDS = 800
SKUS = {
    "NVIDIA H200": "nvidia-h200",
    "Intel Xeon, 16 cores": "intel-r-xeon-r-processor-16c",
    "AMD EPYC, 2 cores": "amd-epyc-2c",
}


def test_it_is_one_page():
    assert len(README.read_text().split()) <= MOST_WORDS


def test_its_results_are_those_of_the_files():
    rows = re.findall(r"^\| ([^|]+) \| ([\w-]+), (\d+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", README.read_text(), re.M)
    assert len(rows) == 5
    for device, model, batch, baseline, plan, speedup in rows:
        path = ROOT / "studies" / model / "results" / f"{SKUS[device]}-b{batch}.json"
        document = json.loads(path.read_text())
        assert (baseline, plan, speedup) == row_of(document), path


def row_of(document):
    """The cells of a result: baseline, plan with its backend and precision, speedup."""
    plan = document["plan"]
    precision = words.precision_of(Configuration.from_dict(plan["configuration"]))
    label = plan["backend"] if precision == "fp32" else f"{plan['backend']}, {precision}"
    return (
        words.milliseconds(document["baseline"]["latency_ms"]),
        f"{words.milliseconds(plan['latency_ms'])} ({label})",
        words.speedup(plan["speedup"]) + (" (tie)" if plan["status"] == "tie" else ""),
    )
