"""Every stored summary follows exactly from the stored samples."""

import json

import numpy as np

from autotune.measure.block import protocol_of
from autotune.measure.statistics import interval_rank
from autotune.measure.verdict import verdict_from_samples
from autotune.programs.check_result import CheckResult
from autotune.programs.selftest.costs import FINALISTS, eight_finalists
from autotune.programs.selftest.rig import Rig
from autotune.records.trial import Measurement


def check(rig: Rig) -> list[CheckResult]:
    """Send real finals' samples through JSON and compute their verdict again: by its own rule, and by numpy."""
    finals, verdict, _ = eight_finalists(rig)
    stored = json.loads(json.dumps(finals.samples()))
    again = verdict_from_samples(stored, baselines=[f"candidate {FINALISTS - 1}"])
    stated = _figures(verdict.as_dict())
    wrong = sorted(name for name, value in _figures(again.as_dict()).items() if stated.get(name) != value)
    by_numpy = _by_numpy(stored, verdict.baseline)
    wrong += sorted(f"numpy: {name}" for name, value in by_numpy.items() if stated[name] != value)
    for name in stored:
        measurement = finals.measurement(name, protocol_of("finals", rig.timer.kind, 1))
        back = Measurement.from_dict(json.loads(json.dumps(measurement.as_dict())))
        if [list(block) for block in back.samples_ms] != [block for block in stored[name] if block is not None]:
            wrong.append(f"measurement of {name}")
    compared = len(stated) + len(by_numpy) + len(stored)
    return [
        CheckResult(
            check="summaries from samples",
            figure=f"{compared - len(wrong)} of {compared} figures equal",
            limit="all, exactly",
            passed=not wrong and len(_figures(again.as_dict())) == len(stated),
            raw={"wrong": wrong, "verdict": verdict.as_dict()},
        )
    ]


def _figures(data: object, path: str = "") -> dict[str, object]:
    """Flatten plain data into its leaves, each under its path; finalists have their names in it."""
    if isinstance(data, dict):
        items = [(str(key), value) for key, value in data.items()]
    elif isinstance(data, list):
        items = [(str(part["name"]) if isinstance(part, dict) else str(i), part) for i, part in enumerate(data)]
    else:
        return {path: data}
    return {leaf_path: leaf for key, value in items for leaf_path, leaf in _figures(value, f"{path}/{key}").items()}


def _by_numpy(samples: dict[str, list[list[float] | None]], baseline: str) -> dict[str, object]:
    """Compute latency, interval and speedup of each finalist in another way."""
    medians = {
        name: np.array([np.median(block) for block in blocks if block is not None]) for name, blocks in samples.items()
    }
    figures: dict[str, object] = {}
    for name, values in medians.items():
        ordered = np.sort(values)
        rank = interval_rank(len(ordered), 0.95)
        figures[f"/finalists/{name}/figure"] = float(np.median(values))
        figures[f"/finalists/{name}/interval/0"] = float(ordered[rank - 1])
        figures[f"/finalists/{name}/interval/1"] = float(ordered[-rank])
        figures[f"/finalists/{name}/speedup"] = float(np.median(medians[baseline])) / float(np.median(values))
        figures[f"/finalists/{name}/rounds"] = len(ordered)
    return figures
