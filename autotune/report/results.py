"""The results file of one study on one device: its figures, with the raw samples that they are computed from.

A file holds the environment, the exact command, the baseline, the plan, the best finalist of each backend, and the
finals with every raw sample. :func:`verify_results` recomputes all figures from those samples.

A folder of results has one folder per study. The file of one study never replaces that of another.
"""

import contextlib
import json
import math
import os
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autotune import __version__
from autotune.errors import WorkError
from autotune.records.canonical import canonical, digest
from autotune.records.evidence import FinalistRecord
from autotune.records.objective import Objective
from autotune.records.plan import Plan
from autotune.report.outcome import baseline_of, best_of_backends
from autotune.study.request import StudyOutcome

SCHEMA = 1
TOLERANCE = 1e-6
"""The relative difference that a figure may have from the one in the database: samples are kept to nine digits."""
_BESIDE = ("objective_value", "objective_interval", "percentiles", "flags", "utilisation")
_FIGURES = ("latency_ms", "interval_ms", "signal_error", "build_s")


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenResults:
    """The path of written results; ``kept`` is the file of another study that already has their usual name.

    ``differing`` has the names of the parts in which the two studies differ, such as ``serve_as``.
    """

    path: Path
    kept: Path | None = None
    differing: tuple[str, ...] = ()


def results_document(outcome: StudyOutcome, command: str) -> dict[str, object]:
    """Return the content of a results file; WorkError if the study is undecided, or the evidence has no finals.

    The seconds and their split are those of this run; they are absent if the plan came from the database. The search's
    limits are in ``known_at_start``. That and the ``curve`` are null if an earlier version began the study.
    """
    plan = outcome.plan
    if plan is None or outcome.undecided:
        raise WorkError(
            f"no results can be written for {outcome.name} at batch {outcome.batch}",
            found=f"an undecided study: {outcome.reason}", expected="finals that decided", run=outcome.run,
        )  # fmt: skip
    entries = [_finalist(finalist) for finalist in plan.evidence.finalists]
    finalists = [FinalistRecord.from_dict(entry) for entry in entries]
    if not finalists or not all(finalist.samples_ms for finalist in finalists):
        raise WorkError(
            f"no results can be written for {plan.name} at batch {plan.batch}",
            found="a plan without the raw samples of its finals",
            expected="a plan of this version",
            run="autotune tune with another --db",
        )
    document: dict[str, object] = {
        "schema": SCHEMA,
        "name": plan.name,
        "batch": plan.batch,
        "study": plan.evidence.study,
        "structure": plan.structure,
        "weights": plan.weights,
        "objective": plan.objective.as_dict(),
        "serve_as": plan.serve_as,
        "command": command,
        "measured": plan.created,
        "device": {**plan.device.as_dict(), "sku": plan.device.sku, "device_class": plan.device.device_class},
        "environment": _environment(plan),
        "baseline": _figures(baseline_of(finalists), plan.batch),
        "plan": {
            "backend": plan.configuration.backend,
            "batch": plan.batch,
            "configuration": plan.configuration.as_dict(),
            "latency_ms": plan.latency_ms,
            "interval_ms": list(plan.interval_ms),
            "baseline_latency_ms": plan.baseline_latency_ms,
            "speedup": plan.speedup,
            "signal_error": plan.signal_error,
            "status": plan.status,
        },
        "backends": [_figures(finalist, plan.batch) for finalist in best_of_backends(finalists)],
        "trials": dict(outcome.trials),
        "known_at_start": None if outcome.known_at_start is None else outcome.known_at_start.as_dict(),
        "curve": None if outcome.curve is None else outcome.curve.as_dict(),
    }
    if not outcome.cached:
        document |= {"seconds": outcome.seconds, "split_s": dict(outcome.split)}
    rounds = {"rounds": plan.evidence.rounds, "process_of_round": list(plan.evidence.processes)}
    return {**document, **rounds, "finals": entries}


def write_results(outcome: StudyOutcome, folder: Path, *, command: str) -> WrittenResults:
    """Write ``<study name>/<sku>-b<batch>.json`` into a folder, whole or not at all; WorkError if it cannot be written.

    The file of an earlier run of the same study is replaced. If another study has a file of that name, the new file has
    a digest in its name.
    """
    document = results_document(outcome, command)
    names = _names(outcome, document)
    usual = folder / outcome.name / next(names)
    try:
        path, differing = usual, _differing(usual, document)
        while _differing(path, document):
            path = usual.with_name(next(names))
        _write(path, document)
    except OSError as error:
        raise WorkError(
            f"results cannot be written to {usual}", found=error.strerror or str(error), expected="a folder to write in"
        ) from error
    return WrittenResults(path=path, kept=usual if path != usual else None, differing=differing)


def _names(outcome: StudyOutcome, document: Mapping[str, object]) -> Iterator[str]:
    """Yield the usual name of a study's file, then longer ones with a digest of what distinguishes the study."""
    usual = f"{outcome.device.sku}-b{outcome.batch}"
    own = digest(_distinguishing(document))
    yield f"{usual}.json"
    for length in range(8, len(own) + 1):
        yield f"{usual}-{own[:length]}.json"


def _distinguishing(document: Mapping[str, Any]) -> dict[str, object]:
    """Return the parts that distinguish studies of one name, SKU and batch; an older file has fewer of them."""
    objective = dict(document.get("objective") or {})
    return {
        "name": document.get("name"),
        "objective": objective.pop("name", None),
        "constraints": objective,
        "serve_as": document.get("serve_as"),
        "device_class": (document.get("device") or {}).get("device_class"),
        **{name: document[name] for name in ("structure", "weights") if name in document},
    }


def _differing(path: Path, document: Mapping[str, object]) -> tuple[str, ...]:
    """Return the parts in which the study of a file differs; empty if the file is of the same study or absent."""
    try:
        stored = _distinguishing(json.loads(path.read_text()))
    except FileNotFoundError:
        return ()
    except (ValueError, TypeError, AttributeError):
        return ("schema",)
    own = _distinguishing(document)
    return tuple(name for name, value in stored.items() if canonical(value) != canonical(own.get(name)))


def _write(path: Path, document: Mapping[str, object]) -> None:
    text = json.dumps(document, indent=1, allow_nan=False)
    # Lists of numbers stand in one line each.
    text = re.sub(r"\[\s*([-+0-9.eE,\s]+?)\s*\]", lambda match: "[" + re.sub(r"\s+", "", match[1]) + "]", text)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text + "\n")
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def verify_results(document: Mapping[str, Any]) -> list[str]:
    """Recompute every figure from the raw samples; returns a line for each figure that does not follow from them."""
    from autotune.execute.finals import statistic_of
    from autotune.measure.paired import RoundFigures
    from autotune.measure.statistics import median_interval
    from autotune.measure.verdict import verdict_from_samples

    objective = Objective.from_dict(document["objective"])
    finalists = {str(index): FinalistRecord.from_dict(entry) for index, entry in enumerate(document["finals"])}
    baselines = [name for name, finalist in finalists.items() if finalist.could_be_baseline]
    samples = {name: finalist.samples_ms for name, finalist in finalists.items()}
    figures = {name: finalist.figures or finalist.samples_ms for name, finalist in finalists.items()}
    disturbed = {name: finalist.disturbed for name, finalist in finalists.items()}
    verdict = verdict_from_samples(
        figures, baselines=baselines, statistic=statistic_of(objective), processes=document["process_of_round"],
        disturbed=disturbed, beside=[name for name, finalist in finalists.items() if finalist.is_unserved],
    )  # fmt: skip
    by_latency = objective.name == "latency_p50"
    latencies = RoundFigures(figures, disturbed=disturbed) if by_latency else RoundFigures(samples)
    wrong: list[str] = []

    def expect(name: str, stated: object, computed: object) -> None:
        if not _same(stated, computed):
            wrong.append(f"{name}: the file says {stated}, the samples say {computed}")

    for name, finalist in finalists.items():
        interval_ms, place = list(median_interval(latencies.of(name))), f"finals {finalist.configuration.as_dict()}"
        expect(f"{place} latency_ms", finalist.latency_ms, latencies.figure(name))
        expect(f"{place} interval_ms", list(finalist.interval_ms), interval_ms)
        if finalist.objective_value is not None:
            expect(f"{place} {objective.name}", finalist.objective_value, verdict.of(name).figure)
    plan = document["plan"]
    winners = [verdict.winner, *(verdict.tied_with if verdict.status == "tie" else ())]
    won = [name for name in winners if finalists[name].configuration.as_dict() == plan["configuration"]]
    if not won:
        wrong.append(f"plan: the file says {plan['configuration']}, the samples say another finalist won")
        return wrong
    expect("plan status", plan["status"], verdict.status)
    expect("plan latency_ms", plan["latency_ms"], latencies.figure(won[0]))
    expect("plan interval_ms", plan["interval_ms"], list(median_interval(latencies.of(won[0]))))
    expect("plan baseline_latency_ms", plan["baseline_latency_ms"], latencies.figure(verdict.baseline))
    expect("plan speedup", plan["speedup"], verdict.of(won[0]).speedup)
    batch = document["batch"]
    expect("baseline", document["baseline"], _figures(finalists[verdict.baseline], batch))
    best = best_of_backends(tuple(finalists.values()))
    expect("backends", document["backends"], [_figures(finalist, batch) for finalist in best])
    return wrong


def _finalist(finalist: FinalistRecord) -> dict[str, object]:
    """Return the entry of a finalist in a results file: samples to nine digits, ``None`` for a round without it.

    The baseline is the fastest of those that could be it: on a CPU the same model at several thread counts.
    """
    entry = finalist.as_dict()
    return {
        "backend": finalist.backend,
        "configuration": finalist.configuration.as_dict(),
        "is_baseline": finalist.is_baseline,
        "could_be_baseline": finalist.could_be_baseline,
        "is_default": finalist.is_default,
        **({"is_unserved": True} if finalist.is_unserved else {}),
        **{name: entry.get(name) for name in _FIGURES},
        **{name: entry[name] for name in _BESIDE if entry.get(name) is not None},
        **({"figures": _rounded(finalist.figures)} if finalist.figures else {}),
        **({"disturbed_rounds": list(finalist.disturbed_rounds)} if finalist.disturbed_rounds else {}),
        "samples_ms": _rounded(finalist.samples_ms),
    }


def _rounded(blocks: Sequence[Sequence[float] | None]) -> list[list[float] | None]:
    return [None if block is None else [float(f"{value:.9g}") for value in block] for block in blocks]


def _figures(finalist: FinalistRecord, batch: int) -> dict[str, object]:
    return {
        "backend": finalist.backend,
        "batch": batch,
        "configuration": finalist.configuration.as_dict(),
        **{name: getattr(finalist, name) for name in _FIGURES},
        "interval_ms": list(finalist.interval_ms),
    }


def _environment(plan: Plan) -> dict[str, object]:
    return {
        "autotune": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "toolchain": dict(plan.evidence.toolchain or plan.toolchain.as_dict()),
    }


def _same(stated: object, computed: object) -> bool:
    """Return true if two values agree, numbers within the tolerance."""
    if isinstance(stated, Mapping) and isinstance(computed, Mapping):
        return stated.keys() == computed.keys() and all(_same(stated[key], computed[key]) for key in stated)
    if isinstance(stated, list) and isinstance(computed, list):
        return len(stated) == len(computed) and all(map(_same, stated, computed))
    if isinstance(stated, float) and isinstance(computed, float | int):
        return math.isclose(stated, computed, rel_tol=TOLERANCE)
    return bool(stated == computed)
