import copy
import json
import random
import subprocess
import sys

import pytest

from autotune.measure.paired import RoundFigures
from autotune.measure.statistics import median_interval
from autotune.measure.verdict import verdict_from_samples
from autotune.programs.agreement import compare_runs, results_of, table
from autotune.records.configuration import Configuration
from autotune.records.objective import Objective

EAGER = Configuration.of("eager", {"precision": "fp32"})
FAST = Configuration.of("inductor", {"precision": "fp16"})
NEAR = Configuration.of("onnxruntime", {"precision": "fp16"})
PROCESSES = [0] * 7 + [1] * 7 + [2] * 6


def run(seed, **medians_ms):
    """A results file of a run in which the finalists take so long, with noise of a thousandth."""
    draw = random.Random(seed)
    figures = {EAGER: 4.0, FAST: 1.0, NEAR: 1.2} | {{"fast": FAST, "near": NEAR}[k]: v for k, v in medians_ms.items()}
    samples = {
        str(each): [[ms * draw.gauss(1, 1e-3) for _ in range(3)] for _ in PROCESSES] for each, ms in figures.items()
    }
    verdict = verdict_from_samples(samples, baselines=[str(EAGER)], processes=PROCESSES)
    medians = RoundFigures(samples)
    of = {str(each): each for each in figures}

    def entry(name):
        return {
            "backend": of[name].backend,
            "configuration": of[name].as_dict(),
            "latency_ms": medians.figure(name),
            "interval_ms": list(median_interval(medians.of(name))),
            "signal_error": 0.0,
            "build_s": 1.0,
        }

    finals = [
        {**entry(name), "is_baseline": base, "could_be_baseline": base, "samples_ms": blocks}
        for name, blocks in samples.items()
        for base in [name == str(EAGER)]
    ]
    finals.sort(key=lambda each: each["latency_ms"])
    baseline = verdict.of(str(EAGER)).figure
    in_order = [str(EAGER), *sorted((str(FAST), str(NEAR)), key=medians.figure)]
    plan = {**entry(verdict.winner), "baseline_latency_ms": baseline, "speedup": verdict.speedup}
    document = {
        "name": "toy",
        "batch": 1,
        "objective": Objective().as_dict(),
        "serve_as": "any",
        "device": {"name": "GPU", "device_class": "gpu/whole/700w"},
        "baseline": {**entry(str(EAGER)), "batch": 1},
        "plan": {**plan, "batch": 1, "status": verdict.status},
        "backends": [{**entry(name), "batch": 1} for name in in_order],
        "finals": finals,
        "process_of_round": PROCESSES,
    }
    return json.loads(json.dumps(document))


def test_runs_with_the_same_winner_agree():
    comparison = compare_runs([run(1), run(2), run(3)])
    assert comparison["same_winner"] and comparison["finalists_in_all"] == 3
    assert all(result.passed for result in results_of(comparison))
    assert {entry["winner"] for entry in comparison["runs"]} == {str(FAST)} and len(comparison["taus"]) == 3
    assert all(tau == 1.0 for _, _, tau in comparison["taus"])
    assert "each winner won or tied in every run" in table(comparison)


def test_a_winner_that_loses_elsewhere_is_reported_with_its_regret():
    comparison = compare_runs([run(1), run(2), run(3, fast=1.1, near=1.0)])
    assert not comparison["same_winner"]
    assert [entry["winner"] for entry in comparison["runs"]] == [str(FAST), str(FAST), str(NEAR)]
    assert comparison["runs"][2]["regret"] == pytest.approx(0.2, abs=0.01)
    assert "a winner lost in another run" in table(comparison)
    assert [result.check for result in results_of(comparison) if not result.passed] == [
        "same winner",
        "regret",
        "rank agreement",
    ]


@pytest.mark.parametrize("change", [{"name": "other"}, {"batch": 2}, {"device": {"name": "X", "device_class": "x"}}])
def test_runs_of_different_studies_are_refused(change):
    with pytest.raises(ValueError, match="runs of one study"):
        compare_runs([run(1), run(2) | change])


def test_a_file_that_does_not_follow_from_its_samples_is_refused():
    wrong = copy.deepcopy(run(2))
    wrong["plan"]["latency_ms"] *= 2
    with pytest.raises(ValueError, match="the samples say"):
        compare_runs([run(1), wrong])


def test_as_a_program(tmp_path):
    files = []
    for seed in (1, 2):
        files.append(tmp_path / f"{seed}.json")
        files[-1].write_text(json.dumps(run(seed)))
    command = [sys.executable, "-m", "autotune.programs.agreement", *map(str, files)]
    done = subprocess.run([*command, "--json", str(tmp_path / "out.json")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "tau-b, runs 1 and 2: 1.000" in done.stdout
    document = json.loads((tmp_path / "out.json").read_text())
    assert document["passed"] and document["same_winner"] and document["study"] == "toy, batch 1, on GPU"
    assert [row["check"] for row in document["checks"]] == ["same winner", "regret", "rank agreement"]
    alone = subprocess.run(command[:4], capture_output=True, text=True)
    assert alone.returncode == 2 and "at least two files" in alone.stderr
