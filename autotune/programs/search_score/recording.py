"""Recorded studies of a model on a device, pooled into one table of trials with their costs: StudyRecording."""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from statistics import median

from autotune.database.parcel import Parcel, TravellingTrial
from autotune.database.rows import StudyRow
from autotune.records.configuration import Configuration
from autotune.records.device import Device
from autotune.records.plan import Plan
from autotune.records.trial import Trial
from autotune.records.workload import Workload
from autotune.search.history import TrialOutcome

OBJECTIVE = "latency_p50"
"""Only studies of this objective are read: every study measures it, and those of others stop other candidates early."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedTrial:
    """The outcome of a configuration, and the seconds that it cost: its build, and the device's time after that."""

    outcome: TrialOutcome
    cost_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyRecording:
    """All trials of a workload on a device class.

    ``studies`` is the number of studies that searched; ``spread`` is the median ratio between the largest and the
    smallest latency of a configuration that several of them timed, 1 if there is none. The latency and the cost of such
    a configuration are the medians of them.
    """

    workload: Workload
    device: Device
    has_factory: bool
    studies: int
    spread: float
    trials: tuple[RecordedTrial, ...]

    @property
    def name(self) -> str:
        """The model, its batch and the device, as a table shows them."""
        return f"{self.workload.name} b{self.workload.batch} on {self.device.sku}"


def recordings(parcels: Iterable[Parcel]) -> list[StudyRecording]:
    """Return a recording for each workload and device class of which a study searched, by name.

    A study that has only finals is left out: the committed plans of earlier versions are stored so, and their trials
    have neither costs nor losers. Trials whose result was adopted from another study count once, where they were run.
    """
    workloads: dict[tuple[str, str], Workload] = {}
    devices: dict[str, Device] = {}
    rows: dict[str, StudyRow] = {}
    of_study: dict[str, dict[str, TravellingTrial]] = defaultdict(dict)
    for parcel in parcels:
        workloads |= {(workload.structure, workload.weights): workload for workload in parcel.workloads}
        devices |= {device.device_class: device for device in parcel.devices}
        rows |= {row.uid: row for row in parcel.studies if row.active_s > 0 and row.objective.name == OBJECTIVE}
        for item in parcel.trials:
            if not item.trial.reused:
                of_study[item.study][item.trial.uid] = item
    groups: dict[tuple[str, str], list[StudyRow]] = defaultdict(list)
    for row in rows.values():
        if of_study[row.uid]:
            groups[row.structure, row.device_class].append(row)
    pooled = [
        _pooled(
            workloads[group[0].structure, group[0].weights], devices[group[0].device_class],
            [tuple(of_study[row.uid].values()) for row in group],
        )
        for group in groups.values()
    ]  # fmt: skip
    return sorted(pooled, key=lambda recording: (recording.device.sku, recording.workload.name, recording.name))


def plans_of(parcels: Iterable[Parcel]) -> list[Plan]:
    """Return the plans, former ones included, each once."""
    plans = {plan.uid: plan for parcel in parcels for plan in (*parcel.former_plans, *parcel.plans)}
    return [plan for _, plan in sorted(plans.items())]


def costs_s(trials: Sequence[TravellingTrial]) -> dict[str, float]:
    """Return the seconds that each trial of a study cost, by its uid.

    A trial costs its build and the time from the end of its build, or from the end of the trial before it if that is
    later, to its own end: loading, checking and timing. Trials that were begun together are built side by side, and the
    first of them ends only after all these builds, so that it gets the median of the others.
    """
    ordered = sorted(trials, key=lambda item: (item.finished, item.trial.number))
    batches: list[list[TravellingTrial]] = []
    for item in ordered:
        if not batches or item.created >= batches[-1][0].finished:
            batches.append([])
        batches[-1].append(item)
    after_s: dict[str, float] = {}
    heads = []
    before = -math.inf
    for batch in batches:
        for place, item in enumerate(batch):
            finished = _seconds(item.finished)
            built = _seconds(item.created) + (item.trial.build_s or 0.0)
            after_s[item.trial.uid] = max(0.0, finished - max(built, before))
            before = finished
            if not place and len(batch) > 1:
                heads.append(item.trial.uid)
    others = [seconds for uid, seconds in after_s.items() if uid not in heads]
    after_s |= {uid: median(others) for uid in heads if others}
    return {item.trial.uid: (item.trial.build_s or 0.0) + after_s[item.trial.uid] for item in ordered}


def _seconds(moment: str) -> float:
    return datetime.fromisoformat(moment).timestamp()


def _pooled(workload: Workload, device: Device, studies: Sequence[Sequence[TravellingTrial]]) -> StudyRecording:
    by_configuration: dict[Configuration, list[tuple[Trial, float]]] = defaultdict(list)
    for items in studies:
        cost_s = costs_s(items)
        for item in items:
            by_configuration[item.trial.configuration].append((item.trial, cost_s[item.trial.uid]))
    ratios = []
    for measured in by_configuration.values():
        latencies = [trial.latency_ms for trial, _ in measured if trial.latency_ms is not None]
        if len(latencies) > 1:
            ratios.append(max(latencies) / min(latencies))
    return StudyRecording(
        workload=workload,
        device=device,
        has_factory=any(configuration.get("form", "") == "module" for configuration in by_configuration),
        studies=len(studies),
        spread=median(ratios) if ratios else 1.0,
        trials=tuple(_of_several(configuration, measured) for configuration, measured in by_configuration.items()),
    )


def _of_several(configuration: Configuration, measured: Sequence[tuple[Trial, float]]) -> RecordedTrial:
    """Return the outcome of trials of the same configuration: complete if one of them was, else pruned, else failed."""
    states = {trial.state for trial, _ in measured}
    state = next(state for state in ("complete", "pruned", "infeasible", "failed") if state in states)
    scores = [trial.latency_ms for trial, _ in measured if trial.state == state and trial.latency_ms is not None]
    builds_s = [trial.build_s for trial, _ in measured if trial.build_s is not None]
    return RecordedTrial(
        outcome=TrialOutcome(
            configuration=configuration,
            state=state,
            score=median(scores) if scores and state in ("complete", "pruned") else None,
            build_s=median(builds_s) if builds_s else None,
            inaccurate=all(trial.is_inaccurate for trial, _ in measured),
        ),
        cost_s=median(seconds for _, seconds in measured),
    )
