"""Recorded studies of an H200, replayed without their kernels, whose search takes most of the computing."""

import json
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from autotune.errors import RequestError
from autotune.kernel import wants_kernels
from autotune.programs.kernel_replay.main import costs_of
from autotune.programs.study_replay.charges import LOAD_S, StudyCharges, loads_late
from autotune.programs.study_replay.main import _checks, main
from autotune.programs.study_replay.recording import read_recordings
from autotune.programs.study_replay.replay import recorded, replay, spaces_of
from autotune.records.canonical import digest
from autotune.records.configuration import Configuration

COMMITTED = Path(__file__).parents[3] / "studies" / "recordings.zip"


@pytest.fixture(scope="module")
def recordings():
    return {(recording.row.name, recording.row.batch): recording for recording in read_recordings(COMMITTED)}


@pytest.fixture(scope="module")
def vit(recordings):
    return recordings["vit-b16", 1]


def replayed(recording, build_cores=2.0, cores=16, **changes):
    charges = StudyCharges(replace(recording, problems={}, **changes), build_cores)
    return replay(charges, costs_of("nvrtc"), cores=cores, weights={})


def test_the_committed_recordings_hold_ten_studies_of_an_h200_whose_spaces_are_those_of_this_version(recordings):
    models = ("bert-base", "efficientnet-b0", "mobilenet-v2", "resnet50", "vit-b16")
    assert set(recordings) == {(name, batch) for name in models for batch in (1, 32)}
    for recording in recordings.values():
        assert digest([space.digest for space in spaces_of(recording)]) == recording.row.space_digest
        assert recording.problems and recording.before_s >= 0 and recording.after_s > 10


def test_a_recording_has_its_batches_and_the_turns_of_its_trials(vit):
    assert [len(batch) for batch in vit.batches] == [9, 8, 8]
    assert all(batch[0].turn_s is None for batch in vit.batches)
    assert all(0 < item.turn_s < 6 for batch in vit.batches for item in batch[1:])
    assert vit.split["building"] > 100 and vit.seconds > vit.row.active_s > 180


def test_a_turn_begins_when_another_trial_has_ended_and_is_unknown_if_kernels_were_timed_in_between(recordings):
    for recording in recordings.values():
        items = [item for batch in recording.batches for item in batch]
        assert all(item.turn_s is None or 0 < item.turn_s < 15 for item in items)
    (batch, *_) = recordings["resnet50", 32].batches
    ended = sorted(batch, key=lambda item: item.ended_s)
    assert ended != list(batch), "full precision waits for the builds of candidates with tuned kernels"
    unknown = [number for number, item in enumerate(ended) if item.turn_s is None]
    assert unknown[0] == 0 and len(unknown) == 2
    late = ended[unknown[1]]
    assert late.trial.configuration["precision"] == "fp32" and late.ended_s - ended[unknown[1] - 1].ended_s > 40


def test_problems_belong_to_the_precision_and_the_batch_that_they_were_tuned_for(vit):
    later = [problem for problem, number in vit.problems.items() if number == 2]
    tuned = next(item.trial.configuration for item in vit.batches[1] if wants_kernels(item.trial.configuration))
    first = vit.problems_of(tuned)
    assert first and {problem.dtype for problem in first} == {"fp16"} and not set(first) & set(later)
    bf16 = Configuration.of("native", {**dict(tuned.values), "precision": "bf16"})
    assert {problem.dtype for problem in vit.problems_of(bf16)} == {"bf16"}


def test_a_recorded_configuration_is_charged_with_its_own_seconds_and_another_with_the_medians_of_its_backend(vit):
    charges = StudyCharges(vit, 2.0)
    item = vit.batches[0][3]
    charge = charges.of(item.trial.configuration)
    assert (charge.latency_ms, charge.assumed) == (item.trial.latency_ms, False)
    assert charge.build_s == pytest.approx(item.trial.build_s, rel=0.01)
    assert charge.turn_s + charge.sampled_s == pytest.approx(item.turn_s)
    values = dict(item.trial.configuration.values)
    unknown = Configuration.of("native", {**values, "programmatic_launch": False, "cudnn_benchmark": False})
    assumed = charges.of(unknown)
    assert assumed.assumed and assumed.latency_ms in {other.trial.latency_ms for other in vit.trials}
    native = sorted(other.trial.build_s for other in vit.trials if other.trial.configuration.backend == "native")
    assert native[0] < assumed.build_s < native[-1]
    late = charges.of(Configuration.of("native", {**dict(unknown.values), "cudnn_benchmark": True}))
    assert late.assumed and late.turn_s > assumed.turn_s, "only cuDNN's benchmark loads in the turn"


def test_a_turn_with_a_late_load_has_the_device_alone_for_it(vit):
    charges = StudyCharges(vit, 2.0)
    late = next(item for item in vit.batches[0][1:] if loads_late(item.trial.configuration))
    stages = {stage.name: stage for stage in charges.turn(late.trial.configuration, loaded=False)}
    assert stages["load"].seconds > 1 and stages["load"].hold == stages["measure"].hold == "exclusive"
    assert sum(stage.seconds for stage in stages.values()) == pytest.approx(late.turn_s)


def test_a_build_holds_the_device_only_for_the_parts_that_compute_unless_it_is_alone(vit):
    charges = StudyCharges(vit, 2.0)
    first = next(item.trial.configuration for item in vit.trials if item.trial.configuration.backend == "inductor")
    values = dict(first.values)
    in_turn, alone = (Configuration.of("inductor", {**values, "max_autotune": alone}) for alone in (False, True))
    stages = [stage for stage in charges.build(in_turn, first=False) if stage.name == "build"]
    seconds = charges.of(in_turn).build_s
    assert sum(stage.seconds for stage in stages) == pytest.approx(seconds)
    held_s = sum(stage.seconds for stage in stages if stage.hold == "shared")
    assert 0 < held_s < 0.1 * seconds and all(stage.hold != "exclusive" for stage in stages)
    assert [stage.hold for stage in charges.build(alone, first=False) if stage.name == "build"] == ["exclusive"]
    native = next(item.trial.configuration for item in vit.trials if item.trial.configuration.backend == "native")
    assert [stage.hold for stage in charges.build(native, first=False) if stage.name == "build"] == ["none"]


def test_an_early_load_holds_the_device_as_its_backend_does(vit):
    """One in turn at its end, as it computes; one that times kernels does that in its own turn."""
    charges, held_s = StudyCharges(vit, 2.0), {}
    for name, values in (
        ("native", {}), ("native", {"cudnn_benchmark": True}), ("onnxruntime", {"conv_algo_search": "DEFAULT"}),
    ):  # fmt: skip
        stages = charges.early_load(Configuration.of(name, values))
        held_s[name, bool(values)] = sum(stage.seconds for stage in stages if stage.hold == "shared")
        assert sum(stage.seconds for stage in stages if stage.name == "load") == pytest.approx(LOAD_S)
        assert [stage.hold for stage in stages if stage.seconds][:-1].count("shared") == 0, "it computes at its end"
    assert 0 == held_s["native", True] < held_s["native", False] < held_s["onnxruntime", True] == LOAD_S


def test_without_kernels_to_tune_the_real_search_tries_what_was_recorded(vit):
    timeline, real = replayed(vit), recorded(vit)
    first = [item.trial.configuration for item in vit.batches[0]]
    assert {end.trial.configuration for end in timeline.trials} >= {
        *first,
        *(d for s in spaces_of(vit) for d in s.hints),
    }
    assert timeline.gain_s < 0.7 * real.gain_s, "candidates are timed as their builds end, not when all have ended"
    assert timeline.best_ms == real.best_ms and timeline.kernel_trials == 0
    assert timeline.searched_s < timeline.total_s == pytest.approx(sum(timeline.split.values()))
    assert 0 < timeline.idle_s < timeline.searched_s
    ended_s = [end.ended_s for end in timeline.trials]
    assert len(set(ended_s)) == len(ended_s) and max(ended_s) <= timeline.searched_s


def test_a_trial_that_failed_when_it_was_recorded_fails_in_the_replay(recordings):
    recording = recordings["efficientnet-b0", 32]
    failed = {item.trial.configuration for item in recording.trials if item.trial.state == "failed"}
    timeline = replayed(recording)
    assert {end.trial.configuration for end in timeline.trials if end.trial.state == "failed"} >= failed != set()
    assert timeline.best_ms == pytest.approx(min(item.trial.latency_ms or 9.0 for item in recording.trials))


def test_a_replay_is_a_function_of_its_recording(vit):
    assert [end.ended_s for end in replayed(vit).trials] == [end.ended_s for end in replayed(vit).trials]


def test_builds_that_had_too_few_cores_in_the_recording_are_charged_with_less(vit):
    large = [item.trial for item in vit.batches[0] if item.trial.build_s > 1]
    wide, narrow = StudyCharges(vit, 4.0), StudyCharges(vit, 2.0)
    for trial in large:
        assert narrow.of(trial.configuration).build_s == pytest.approx(trial.build_s, rel=0.01)
        assert wide.of(trial.configuration).build_s < 0.95 * trial.build_s


def test_builds_that_want_more_cores_than_there_are_take_longer(vit):
    wide, narrow = replayed(vit, build_cores=4.0), replayed(vit)
    assert wide.crowded_s > narrow.crowded_s and wide.defaults_s > narrow.defaults_s


def test_candidates_in_full_precision_are_timed_when_the_device_would_be_idle(vit):
    timeline = replayed(vit)
    ended_s = {end.trial.configuration: end.ended_s for end in timeline.trials}
    exact = [item.trial.configuration for item in vit.batches[0] if item.trial.configuration["precision"] == "fp32"]
    half = [item.trial.configuration for item in vit.batches[0] if item.trial.configuration["precision"] == "fp16"]
    last_s = max(ended_s[one] for one in half)
    assert exact and min(ended_s[one] for one in exact) < last_s, "beside the longest builds"
    assert sum(ended_s[one] < min(ended_s[two] for two in exact) for one in half) >= len(half) // 2


def test_the_replay_ends_within_the_budget(recordings):
    for recording in recordings.values():
        timeline = replayed(recording)
        assert timeline.searched_s <= recording.row.timings["asked"]["budget_s"] + 5


def test_the_program_prints_the_recording_and_the_replay_and_says_what_is_assumed(tmp_path, capsys):
    with zipfile.ZipFile(COMMITTED) as archive:
        records = json.loads(archive.read("records.json"))
    records["kernel_trials"] = []
    path = tmp_path / "small.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("records.json", json.dumps(records))
    out = tmp_path / "out.json"
    assert main([str(path), "--only", "bert-base-1", "--json", str(out)]) in (0, 1)
    printed = capsys.readouterr().out
    rows = [line for line in printed.splitlines() if line.startswith("| bert-base, 1 |")]
    assert [row.split(" | ")[1] for row in rows] == ["recorded", "replayed"]
    (study,) = json.loads(out.read_text())["studies"]
    assert study["replayed"]["trials"] and study["recorded"]["idle_s"] is None
    assert (study["replayed"]["assumed"] > 0) == ("not recorded" in printed)


def test_a_replay_that_is_later_than_its_recording_fails(vit):
    real = recorded(vit)
    assert all(check.passed for check in _checks(real, replace(real, total_s=1.1 * real.total_s)))
    late = _checks(real, replace(real, total_s=1.2 * real.total_s, curve=None))
    assert [check.passed for check in late] == [True, False, True, False]
    assert late[1].figure == "never" and "(+20%)" in late[3].figure


def test_a_file_without_a_study_to_replay_is_refused(tmp_path):
    path = tmp_path / "none.zip"
    path.write_bytes(b"no zip")
    with pytest.raises(RequestError, match="autotune db export"):
        read_recordings(path)
