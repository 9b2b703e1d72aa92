"""Recorded studies as tables: costs of trials, and studies of one workload that are pooled."""

from dataclasses import replace
from pathlib import Path

import pytest

from autotune.database.exchange import read_records
from autotune.database.parcel import Parcel, TravellingTrial
from autotune.database.rows import StudyRow
from autotune.errors import DatabaseError
from autotune.programs.search_score.recording import costs_s, plans_of, recordings
from autotune.programs.search_score.table import table_of
from autotune.records.configuration import Configuration
from autotune.records.trial import Failure, Trial
from autotune.runtime import discovery
from autotune.testing import sample_records as samples

COMMITTED = Path(__file__).parents[3] / "studies" / "recordings.zip"
CPU = replace(discovery.cpu(), cores=2, isa=("avx2",))
MODEL = samples.sample_workload("toy")
POINTS = [
    Configuration.of("torchscript", {"precision": "fp32", "optimize": o, "threads": t})
    for o in (True, False)
    for t in (2, 1)
]


def moment(second: float) -> str:
    return f"2026-01-01T00:{int(second) // 60:02}:{second % 60:09.6f}+00:00"


def item(
    number: int, began: float, ended: float, build_s: float | None = 2.0, latency_ms: float | None = 1.0,
    study: str = "s1", configuration: Configuration | None = None, **changes: object,
) -> TravellingTrial:  # fmt: skip
    failed = latency_ms is None
    trial = Trial(
        uid=f"{study}-{number}", number=number, configuration=configuration or POINTS[number], latency_ms=latency_ms,
        state="failed" if failed else "complete", build_s=build_s,
        failure=Failure(stage="build", kind="error", detail="no") if failed else None, **changes,  # type: ignore[arg-type]
    )  # fmt: skip
    return TravellingTrial(study=study, trial=trial, created=moment(began), finished=moment(ended))


def row(uid: str, active_s: float = 60.0) -> StudyRow:
    return StudyRow(
        uid=uid, name="toy", batch=1, structure=MODEL.structure, weights=MODEL.weights, device_class=CPU.device_class,
        objective=samples.OBJECTIVE, serve_as="any", space_digest="", seed=0, settings={}, state="finished",
        active_s=active_s, timings={}, created=moment(0),
    )  # fmt: skip


def parcel(studies: list[StudyRow], trials: list[TravellingTrial]) -> Parcel:
    return Parcel(
        workloads=(MODEL,), devices=(CPU,), studies=tuple(studies), trials=tuple(trials), measurements=(),
        kernel_trials=(), kernel_finals=(), roofs=(), plans=(), former_plans=(), artifacts={},
    )  # fmt: skip


def test_trials_one_after_the_other_cost_the_time_from_their_begin_to_their_end() -> None:
    """Whatever lies between two trials is no cost; a failed build has no build time."""
    trials = [item(0, 0, 5), item(1, 10, 13), item(2, 13, 20, build_s=None, latency_ms=None)]
    assert costs_s(trials) == pytest.approx({"s1-0": 5.0, "s1-1": 3.0, "s1-2": 7.0})


def test_trials_that_are_built_together_cost_their_build_and_the_device_s_time() -> None:
    """The first one ends after all builds, which is not its cost: it gets the median of the others."""
    trials = [item(0, 0, 30, build_s=4), item(1, 0, 33, build_s=20), item(2, 0, 38, build_s=2), item(3, 40, 47, 3)]
    assert costs_s(trials) == pytest.approx({"s1-0": 4 + 4, "s1-1": 20 + 3, "s1-2": 2 + 5, "s1-3": 3 + 4})


def test_studies_of_one_workload_are_one_recording_with_medians() -> None:
    trials = [
        *(
            item(0, 0, 5, latency_ms=2.0),
            item(1, 5, 10, latency_ms=3.0),
            item(3, 10, 15, latency_ms=None, build_s=None),
        ),
        *(item(0, 0, 7, latency_ms=3.0, study="s2"), item(3, 10, 15, latency_ms=9.0, study="s2")),
        item(2, 0, 5, study="s2", reused=True),
    ]
    (recording,) = recordings([parcel([row("s1"), row("s2")], trials)])
    outcomes = {trial.outcome.configuration: trial for trial in recording.trials}
    assert recording.studies == 2 and recording.spread == pytest.approx(1.5)
    assert outcomes[POINTS[0]].outcome.score == 2.5 and outcomes[POINTS[0]].cost_s == pytest.approx(6.0)
    assert outcomes[POINTS[3]].outcome.state == "complete" and outcomes[POINTS[3]].outcome.score == 9.0
    assert POINTS[2] not in outcomes, "a reused trial was run by another study"


def test_a_study_of_finals_alone_is_no_recording() -> None:
    assert recordings([parcel([row("s1", active_s=0.0)], [item(0, 0, 0)])]) == []


def test_the_same_study_in_two_files_counts_once() -> None:
    both = parcel([row("s1")], [item(0, 0, 5)])
    (recording,) = recordings([both, both])
    assert recording.studies == 1 and len(recording.trials) == 1


def test_a_table_has_the_axes_of_the_whole_space_and_only_recorded_points() -> None:
    foreign = Configuration.of("torchscript", {"precision": "fp32", "optimize": True, "threads": 64})
    trials = [
        *(item(n, 5 * n, 5 * n + 5, latency_ms=4.0 - n) for n in range(3)),
        item(9, 50, 55, configuration=foreign),
    ]
    (recording,) = recordings([parcel([row("s1")], trials)])
    table = table_of(recording)
    (space,) = table.spaces
    assert set(space) == set(POINTS[:3]) and table.outside == 1 and table.size == 4
    assert space.parameters == table.whole[0].parameters
    assert space.refusal(POINTS[0]) is None and space.refusal(POINTS[3]) == "it was recorded"
    assert table.defaults == (POINTS[0],) and table.best_of(table.trials) == 2.0 and table.best_of([]) is None


def test_the_committed_recordings_are_those_of_searches() -> None:
    parcels = [read_records(COMMITTED)]
    found = {recording.name: recording for recording in recordings(parcels)}
    assert len(found) == 18 and found["vit-b16 b1 on nvidia-h200"].device.kind == "cuda"
    assert all(trial.cost_s > 0 for recording in found.values() for trial in recording.trials)
    newest = table_of(found["resnet50 b1 on nvidia-h200"])
    assert newest.best_of(newest.trials) == pytest.approx(0.229, abs=1e-3), "a later version matches more features"
    assert len({plan.uid for plan in plans_of([*parcels, *parcels])}) == len(plans_of(parcels)) >= 20


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_bytes(b"no zip")
    with pytest.raises(DatabaseError, match=r"x\.zip"):
        read_records(tmp_path / "x.zip")
    with pytest.raises(DatabaseError, match=r"absent\.zip cannot be read"):
        read_records(tmp_path / "absent.zip")
