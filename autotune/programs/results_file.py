"""A results file as the programs read it, which is what ``autotune tune --results`` writes: ResultsFile."""

import json
from pathlib import Path
from typing import Any, TypedDict, cast

from autotune.records.configuration import Scalar
from autotune.report.results import verify_results


class ResultsEntry(TypedDict):
    """A configuration with its figures."""

    backend: str
    configuration: dict[str, Scalar]
    latency_ms: float
    signal_error: float | None


class ResultsPlanEntry(ResultsEntry):
    """The plan."""

    status: str
    speedup: float


class _FinalistSamples(ResultsEntry):
    could_be_baseline: bool
    samples_ms: list[list[float] | None]


class FinalistEntry(_FinalistSamples, total=False):
    """A finalist with its samples; it has ``figures`` if the objective is not a latency."""

    figures: list[list[float] | None]
    disturbed_rounds: list[int]


class DeviceEntry(TypedDict):
    """The device of the study."""

    name: str
    sku: str
    device_class: str


class _ResultsOfAnyVersion(TypedDict):
    name: str
    batch: int
    objective: dict[str, Any]
    serve_as: str
    device: DeviceEntry
    baseline: ResultsEntry
    plan: ResultsPlanEntry
    backends: list[ResultsEntry]
    finals: list[FinalistEntry]
    process_of_round: list[int]


class ResultsFile(_ResultsOfAnyVersion, total=False):
    """The results of one study on one device; other keys are not read here.

    Files of earlier versions have no ``known_at_start``.
    """

    known_at_start: dict[str, object] | None


def read_results_file(path: Path) -> ResultsFile:
    """Read a results file; raises ValueError if it is none, or if its figures do not follow from its samples."""
    try:
        document = cast(ResultsFile, json.loads(path.read_text()))
        wrong = verify_results(document)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not what autotune tune --results writes: {error!r}") from error
    if wrong:
        raise ValueError(f"{path}: {wrong[0]}")
    return document
