"""A study as an export of a database has it, with the moments of its trials: RecordedStudy, read_recordings."""

import bisect
import itertools
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from autotune.database.exchange import RECORDS
from autotune.database.parcel import Parcel, TravellingTrial, from_json
from autotune.database.rows import StudyRow
from autotune.errors import RequestError
from autotune.records.configuration import Configuration
from autotune.records.device import Device
from autotune.records.kernel_problem import GemmProblem
from autotune.records.trial import Measurement, Trial
from autotune.records.workload import Workload

HALVES = ("fp16", "bf16")

TOGETHER_S = 3.0
"""Trials of one batch are begun within this time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockedTrial:
    """A trial with its moments: the seconds from the study's row to its begin, and those of search at its end.

    ``turn_s`` are the seconds since another trial of its batch ended, ``None`` for the first of a batch, and if kernels
    were timed in between: then the seconds are not those of its turn alone. ``sampled_s`` are those of its warm-up and
    its samples.
    """

    trial: Trial
    begun_s: float
    ended_s: float
    turn_s: float | None
    sampled_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedStudy:
    """A finished study on a GPU: its batches of trials in their order, and the kernel problems that it has tuned.

    ``problems`` has the number of the batch for which each problem was tuned first. ``before_s`` are the seconds from
    the command to the study's row, in which the model is captured. ``after_s`` are those after the search: the finals.
    """

    row: StudyRow
    workload: Workload
    device: Device
    batches: tuple[tuple[ClockedTrial, ...], ...]
    problems: Mapping[GemmProblem, int]
    before_s: float
    after_s: float

    @property
    def trials(self) -> tuple[ClockedTrial, ...]:
        """All its trials in their order."""
        return tuple(itertools.chain(*self.batches))

    def problems_of(self, configuration: Configuration) -> Sequence[GemmProblem]:
        """Return the kernel problems of a configuration's graph, as far as the recording shows them.

        They are those of its precision that were tuned for its batch or before, and for one without a recorded trial
        those that were tuned first.
        """
        dtype = str(configuration["precision"])
        same = {p: number for p, number in self.problems.items() if p.dtype == (dtype if dtype in HALVES else "fp32")}
        digests = [{item.trial.configuration.digest for item in batch} for batch in self.batches]
        number = next((n for n, batch in enumerate(digests) if configuration.digest in batch), 0)
        number = max(number, min(same.values(), default=0))
        return [problem for problem, first in same.items() if first <= number]

    @property
    def split(self) -> Mapping[str, float]:
        """The seconds of building, checking, sampling, waiting and other of the whole study."""
        return {name: float(seconds) for name, seconds in self.row.timings["split"].items()}

    @property
    def seconds(self) -> float:
        """The seconds from the command to the plan."""
        return float(self.row.timings["seconds"])


def read_recordings(path: Path) -> Sequence[RecordedStudy]:
    """Read the studies on GPUs in a file of ``autotune db export``; raises RequestError if it has none to replay."""
    try:
        with zipfile.ZipFile(path) as archive:
            parcel = from_json(archive.read(RECORDS))
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise RequestError(
            f"a recorded study in {path}", found=str(error), expected="a file that autotune db export wrote"
        ) from error
    devices = {device.device_class: device for device in parcel.devices}
    studies = [
        _study(parcel, row, devices[row.device_class]) for row in parcel.studies
        if devices[row.device_class].kind == "cuda" and row.curve is not None and "split" in row.timings
    ]  # fmt: skip
    if not studies:
        expected = "a finished study on a GPU, with the moments of its trials"
        raise RequestError(f"a recorded study in {path}", found="none that can be replayed", expected=expected)
    return studies


def _study(parcel: Parcel, row: StudyRow, device: Device) -> RecordedStudy:
    own = sorted((item for item in parcel.trials if item.study == row.uid), key=lambda item: item.trial.number)
    sampled_s = {
        item.trial: _sampled_s(item.measurement) for item in parcel.measurements if item.role == "screening"
    }  # fmt: skip
    batches: list[list[TravellingTrial]] = []
    for item in own:
        if item.trial.reused or item.trial.uid not in row.ended_s:
            continue
        if not batches or _since_s(batches[-1][0].created, item.created) > TOGETHER_S:
            batches.append([])
        batches[-1].append(item)
    uids = {item.trial.uid for item in own}
    to_end_s = _since_s(row.created, max(item.created for item in parcel.measurements if item.trial in uids))
    searched_s = max(_since_s(row.created, item.finished) for batch in batches for item in batch)
    begun_s = [_since_s(row.created, batch[0].created) for batch in batches]
    problems: dict[GemmProblem, int] = {}
    kernels_s: list[float] = []
    for kernel in sorted(parcel.kernel_trials, key=lambda kernel: kernel.created):
        moment_s = _since_s(row.created, kernel.created)
        if 0 <= moment_s <= to_end_s:
            kernels_s.append(moment_s)
            problems.setdefault(kernel.trial.problem, sum(begin_s <= moment_s for begin_s in begun_s) - 1)
    workload = next(work for work in parcel.workloads if (work.structure, work.weights) == (row.structure, row.weights))
    return RecordedStudy(
        row=row,
        workload=_with_features(workload, [item.trial.configuration for item in own]),
        device=device,
        batches=tuple(tuple(_trials(row, batch, sampled_s, kernels_s)) for batch in batches),
        problems=problems,
        before_s=max(0.0, float(row.timings["seconds"]) - to_end_s),
        after_s=to_end_s - searched_s,
    )  # fmt: skip


def _with_features(workload: Workload, tried: Sequence[Configuration]) -> Workload:
    """Return the workload with the features that the parameters of recorded configurations stand for.

    A database keeps the counts of the study that stored the workload first, perhaps by an earlier version.
    """
    parameters = {f"{configuration.backend}.{name}" for configuration in tried for name, _ in configuration.values}

    def counted(feature: str) -> str:
        name, _, count = feature.partition(":")
        return f"{name}:1" if count == "0" and name in parameters else feature

    return replace(workload, features=tuple(map(counted, workload.features)))


def _trials(
    row: StudyRow, batch: Sequence[TravellingTrial], sampled_s: Mapping[str, float], kernels_s: Sequence[float]
) -> Sequence[ClockedTrial]:
    turns_s: dict[str, float] = {}
    for earlier, item in itertools.pairwise(sorted(batch, key=lambda item: row.ended_s[item.trial.uid])):
        begin_s, end_s = (_since_s(row.created, one.finished) for one in (earlier, item))
        if bisect.bisect(kernels_s, begin_s) == bisect.bisect(kernels_s, end_s):
            turns_s[item.trial.uid] = row.ended_s[item.trial.uid] - row.ended_s[earlier.trial.uid]
    return [
        ClockedTrial(
            trial=item.trial, begun_s=_since_s(row.created, item.created), ended_s=row.ended_s[item.trial.uid],
            turn_s=turns_s.get(item.trial.uid), sampled_s=sampled_s.get(item.trial.uid, 0.0),
        )
        for item in batch
    ]  # fmt: skip


def _sampled_s(measurement: Measurement) -> float:
    """Return the seconds of warm-up and samples, or of the whole window in which the host was watched."""
    conditions = measurement.conditions
    warm_up, readings = conditions.get("warm_up"), conditions.get("readings")
    warm_ms = float(warm_up.get("elapsed_ms", 0.0)) if isinstance(warm_up, Mapping) else 0.0
    window_s = 0.0
    if isinstance(readings, Mapping) and isinstance(host := readings.get("host"), Mapping):
        window_s = float(host.get("window_s", 0.0))
    return max(warm_ms / 1e3 + sum(map(sum, measurement.samples_ms)) / 1e3, window_s)


def _since_s(begin: str, end: str) -> float:
    return (datetime.fromisoformat(end) - datetime.fromisoformat(begin)).total_seconds()
