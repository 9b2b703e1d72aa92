import json
import math
import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from autotune.errors import WorkError
from autotune.measure.verdict import verdict_from_samples
from autotune.programs.results_table import markdown, read_results
from autotune.records.configuration import Configuration
from autotune.records.evidence import FinalistRecord, PlanEvidence
from autotune.records.objective import Objective
from autotune.records.search_curve import CurvePoint, SearchCurve
from autotune.records.study_start import HintRecord, HintSource, StudyStart
from autotune.report import words
from autotune.report.outcome import best_fp32, best_of_backends, outcome_view, sweep_view
from autotune.report.plans import plan_view
from autotune.report.results import results_document, verify_results, write_results
from autotune.report.searched import curve_line
from autotune.study.request import StudyOutcome
from tests.database import records

EAGER = Configuration.of("eager", {"precision": "fp32", "channels_last": False, "threads": 2})
FAST = Configuration.of("inductor", {"precision": "fp16", "freezing": True})
EXACT = Configuration.of("inductor", {"precision": "fp32", "freezing": True})
OTHER = Configuration.of("torchscript", {"precision": "fp32"})
RUN = "autotune tune study.yaml"
MEDIANS_MS = {EAGER: 4.0, FAST: 1.0, EXACT: 2.0, OTHER: 3.0}


def outcome(*, rounds=20, cached=False, winner=FAST):
    """An outcome as a study returns it, from samples with noise of a thousandth; one finalist stops early."""
    draw = random.Random(1)
    samples = {
        configuration: [[median * draw.gauss(1, 1e-3) for _ in range(5)] for _ in range(rounds)]
        for configuration, median in MEDIANS_MS.items()
    }
    samples[OTHER][-5:] = [None] * 5
    by_name = {each.digest: each for each in samples}
    processes = [3 * index // rounds for index in range(rounds)]
    verdict = verdict_from_samples(
        {each.digest: blocks for each, blocks in samples.items()}, baselines=[EAGER.digest], processes=processes
    )
    finalists = [
        {
            "uid": one.name,
            "backend": by_name[one.name].backend,
            "batch": 1,
            "configuration": by_name[one.name].as_dict(),
            "latency_ms": one.figure,
            "interval_ms": list(one.interval),
            "signal_error": 1e-3,
            "build_s": 2.5,
            "is_baseline": one.name == verdict.baseline,
            "could_be_baseline": one.name == EAGER.digest,
            "is_default": True,
            "samples_ms": samples[by_name[one.name]],
        }
        for one in verdict.finalists
    ]
    result = verdict.of(winner.digest)
    plan = records.plan(
        configuration=winner,
        status=verdict.status,
        latency_ms=result.figure,
        interval_ms=result.interval,
        baseline_latency_ms=verdict.of(EAGER.digest).figure,
        speedup=result.speedup,
        evidence={
            "finalists": finalists,
            "study": "s1",
            "rounds": rounds,
            "processes": processes,
            "toolchain": {"torch": "2.13.0", "driver": "1"},
        },
    )
    told = tuple(FinalistRecord.from_dict(each).without("samples_ms", "uid") for each in finalists)
    split = {"building": 60.0, "checking": 10.0, "sampling": 20.0, "other": 10.0}
    return outcome_of(
        plan, cached=cached, trials={"complete": 9, "failed": 2}, seconds=100.0, split=split, finalists=told
    )


def outcome_of(plan, **values):
    return StudyOutcome(
        name=plan.name, batch=plan.batch, device=plan.device, objective=plan.objective, plan=plan, status=plan.status,
        **values,
    )  # fmt: skip


def undecided(*, plan):
    values = {"plan": plan, "status": "undecided", "reason": "busy host: 3 of 5 processes disturbed", "run": RUN}
    return replace(outcome(), **values)


def printed(renderable):
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(renderable)
    return " ".join(console.export_text().replace("│", " ").split())


SOURCES = tuple(HintSource(name=name, batch=32, device_class="cpu") for name in ("bert", "vit"))
HINT = HintRecord(configuration=FAST, gain=3.0, studies=SOURCES)
START = StudyStart(kernel_trials=0, other_kernel_trials=0, model_trials=0, trials=60, budget_s=180.0)


@pytest.mark.parametrize(
    ("start", "says"),
    [
        (None, "unknown: an earlier version began the study"),
        (START, "0 kernel trials, 0 trials of this model; budget 3 min"),
        (
            replace(START, kernel_trials=1, other_kernel_trials=113, model_trials=1, budget_s=90.0),
            "1 kernel trial and 113 of other devices, 1 trial of this model; budget 90 s",
        ),
        (
            replace(START, hints=(HINT, replace(HINT, configuration=OTHER, studies=HINT.studies[:1]))),
            "0 kernel trials, 0 trials of this model, 2 hints (inductor of bert b32 and 1 other; torchscript of bert "
            "b32); budget 3 min",
        ),
        (
            START.continued(trials=60, budget_s=180.0),
            "0 kernel trials, 0 trials of this model; budget 3 min; continued",
        ),
        (
            START.continued(trials=90, budget_s=630.0),
            "0 kernel trials, 0 trials of this model; budget 3 min; continued, budget 10 min 30 s",
        ),
    ],
)
def test_what_was_known_at_the_start_is_said_everywhere_and_unknown_is_not_zero(tmp_path, start, says):
    changed = replace(outcome(), known_at_start=start)
    evidence = replace(changed.plan.evidence, known_at_start=start, stored_keys=None)
    changed = replace(changed, plan=replace(changed.plan, evidence=evidence))
    assert f"known at the start: {says} " in printed(outcome_view(changed, "here"))
    assert f"known at the start {says} " in printed(plan_view(changed.plan, "here", artifact_here=True))
    expected = None if start is None else start.as_dict()
    document = json.loads(write_results(changed, tmp_path, command="x").path.read_text())
    assert document["known_at_start"] == changed.as_dict()["known_at_start"] == expected
    assert verify_results(document) == []
    assert PlanEvidence.from_dict(json.loads(json.dumps(evidence.as_dict()))).known_at_start == start


@pytest.mark.parametrize(
    ("points", "searched_s", "says"),
    [
        (
            [(5.0, 4.0), (70.0, 1.004), (150.0, 1.0)], 180.0,
            "in screening: 90% of the gain after 70 s of 180 s of search; the last 60 s brought 0.4%",
        ),
        (
            [(0.0, 4.0), (0.5, 1.0)], 3.0,
            "in screening: 90% of the gain after 0.5 s of 3.0 s of search; the last 1.0 s brought 0.0%",
        ),
        ([(5.0, 4.0)], 180.0, "in screening: nothing was faster than the baseline in 180 s of search"),
        ([(150.0, 4.0), (170.0, 1.0)], 180.0, "in screening: 90% of the gain after 170 s of 180 s of search"),
    ],
)  # fmt: skip
def test_the_outcome_says_what_more_search_brought_and_keeps_the_curve(tmp_path, points, searched_s, says):
    ended = [CurvePoint(seconds=seconds, best=best, backend="inductor") for seconds, best in points]
    curve = SearchCurve.of(ended, baseline=4.0, searched_s=searched_s, unit="ms")
    assert curve_line(curve) == [says]
    changed = replace(outcome(), curve=curve)
    assert f" {says} trials: " in printed(outcome_view(changed, "here"))
    document = json.loads(write_results(changed, tmp_path, command="x").path.read_text())
    assert SearchCurve.from_dict(document["curve"]) == SearchCurve.from_dict(changed.as_dict()["curve"]) == curve
    assert verify_results(document) == []


def test_nothing_is_said_of_a_search_that_is_unknown_or_took_no_time():
    assert curve_line(None) == []
    point = CurvePoint(seconds=0.0, best=1.0, backend="inductor")
    assert curve_line(SearchCurve.of([point], baseline=4.0, searched_s=0.0, unit="ms")) == []


def test_the_final_table_says_what_won_and_by_how_much():
    text = printed(outcome_view(outcome(), "/data/autotune.db"))
    assert "eager (baseline)" in text
    assert "plan → inductor fp16, freezing=yes (reduced precision)" in text
    assert "4.00× the baseline" in text
    assert "best in fp32: inductor (fp32, freezing=yes)" in text
    assert "2.00× the baseline" in text
    assert "torchscript" in text
    assert "9 complete, 2 failed; why they failed: autotune trials resnet50 --batch 1 --failed" in text
    assert "building 60.0 s (60%)" in text
    assert "stored in /data/autotune.db" in text


def test_a_cached_outcome_and_a_baseline_say_so():
    assert "nothing was measured" in printed(outcome_view(outcome(cached=True), "here"))
    plan = records.plan(configuration=EAGER, status="baseline", speedup=1.0, latency_ms=2.0, evidence={})
    text = printed(outcome_view(outcome_of(plan, cached=False, trials={}, seconds=1.0), "here"))
    assert "the baseline stays, 2.000 ms" in text
    assert "trials: none" in text


def test_an_undecided_outcome_says_why_what_stands_and_what_to_run():
    kept = outcome().plan
    text = printed(outcome_view(undecided(plan=kept), "here"))
    assert "undecided: busy host: 3 of 5 processes disturbed the earlier plan stays: inductor (fp16" in text
    assert f"run again: {RUN}" in text and "eager (baseline)" in text and "the baseline stays" not in text
    text = printed(outcome_view(undecided(plan=None), "here"))
    assert f"there is no plan yet run again: {RUN}" in text and "torchscript" in text and "stored in" not in text


def test_json_has_the_status_on_top_and_no_plan_where_there_is_none():
    decided = json.loads(json.dumps(outcome().as_dict()))
    assert decided["status"] == decided["plan"]["status"] == "promoted" and "reason" not in decided
    bare = json.loads(json.dumps(undecided(plan=None).as_dict()))
    assert (bare["status"], bare["plan"], bare["baseline_latency_ms"]) == ("undecided", None, None)
    assert (bare["reason"], bare["run"]) == ("busy host: 3 of 5 processes disturbed", RUN)
    assert len(bare["finalists"]) == 4
    kept = undecided(plan=outcome().plan).as_dict()
    assert (kept["status"], kept["plan"]["status"]) == ("undecided", "promoted")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"status": "won"}, "'won' is not one of"),
        ({"status": "tie"}, "found a plan of status promoted"),
        ({"plan": None}, "found no plan"),
        ({"status": "undecided", "reason": "busy"}, "undecided needs a reason, and the command"),
        ({"status": "undecided", "run": RUN}, "undecided needs a reason, and the command"),
    ],
)
def test_an_outcome_that_contradicts_itself_is_refused(change, says):
    with pytest.raises(ValueError, match=says):
        replace(outcome(), **change)


def test_an_undecided_study_has_no_results(tmp_path):
    with pytest.raises(WorkError, match="undecided study: busy host"):
        write_results(undecided(plan=outcome().plan), tmp_path, command="x")
    assert not list(tmp_path.iterdir())


def test_a_sweep_shows_the_batches_that_were_not_decided():
    def served(batch, items_per_s):
        objective = {
            "name": "throughput", "unit": "ms/item", "value": 1e3 / items_per_s, "interval": [1.0, 2.0],
            "baseline": 3.0, "items_per_s": items_per_s, "concurrency": 1,
        }  # fmt: skip
        evidence = PlanEvidence.from_dict({"objective": objective})
        found = outcome()
        return replace(found, batch=batch, plan=replace(found.plan, batch=batch, evidence=evidence))

    bare = replace(undecided(plan=None), batch=4)
    text = printed(sweep_view([served(1, 100.0), served(2, 200.0), bare]))
    assert "4 – undecided –" in text and "saturated at batch 2: 200.0 items/s" in text
    assert "no batch was decided" in printed(sweep_view([bare]))


def test_best_of_each_backend_comes_after_the_baseline():
    finalists = outcome().finalists
    best = [finalist.configuration for finalist in best_of_backends(finalists)]
    assert best == [EAGER, FAST, OTHER]
    assert best_fp32(finalists).configuration == EXACT


def test_results_follow_from_their_samples(tmp_path):
    written = write_results(outcome(), tmp_path / "results", command="autotune tune study.yaml")
    path = written.path
    assert path == tmp_path / "results" / "resnet50" / "nvidia-h200-b1.json"
    assert (written.kept, written.differing) == (None, ())
    assert [each.name for each in path.parent.iterdir()] == [path.name]
    document = json.loads(path.read_text())
    assert verify_results(document) == []
    assert document["command"] == "autotune tune study.yaml"
    assert (document["structure"], document["study"]) == (records.workload().structure, "s1")
    assert document["environment"]["toolchain"] == {"torch": "2.13.0", "driver": "1"}
    assert document["plan"]["speedup"] == pytest.approx(4.0, rel=1e-2)
    assert [each["backend"] for each in document["backends"]] == ["eager", "inductor", "torchscript"]
    assert set(document["backends"][1]) == {
        *("backend", "batch", "configuration", "latency_ms", "interval_ms", "signal_error", "build_s"),
    }
    assert document["split_s"]["building"] == 60.0
    assert "seconds" not in results_document(outcome(cached=True), "x")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda d: d["plan"].update(latency_ms=d["plan"]["latency_ms"] * 0.999), "plan latency_ms"),
        (lambda d: d["plan"].update(speedup=4.5), "plan speedup"),
        (lambda d: d["plan"].update(status="tie"), "plan status"),
        (lambda d: d["plan"].update(configuration=OTHER.as_dict()), "another finalist won"),
        (lambda d: d["plan"]["interval_ms"].reverse(), "plan interval_ms"),
        (lambda d: d["baseline"].update(latency_ms=9.0), "baseline"),
        (lambda d: d["backends"].pop(), "backends"),
        (lambda d: d["finals"][2].update(latency_ms=1.0), "finals"),
        (lambda d: d["finals"][0]["samples_ms"].__setitem__(slice(None), [[2.5]] * 20), "finals"),
    ],
)
def test_a_figure_that_does_not_follow_is_found(change, says):
    document = json.loads(json.dumps(results_document(outcome(), "x")))
    change(document)
    assert any(wrong.startswith(says) or says in wrong for wrong in verify_results(document))


def test_no_results_without_samples():
    bare = outcome_of(records.plan(evidence={}), cached=True, trials={}, seconds=0.0)
    with pytest.raises(WorkError, match="without the raw samples"):
        results_document(bare, "x")


def test_a_plan_that_is_level_with_a_faster_one_of_its_backend_is_the_one_shown(tmp_path):
    document = json.loads(json.dumps(results_document(outcome(), "x")))
    slower = next(entry for entry in document["finals"] if entry["configuration"] == EXACT.as_dict())
    document["plan"] |= {key: slower[key] for key in ("configuration", "latency_ms")}
    row = markdown([document]).splitlines()[4]
    assert f"**{words.milliseconds(slower['latency_ms'])}**" in row and "fp16" not in row


def test_the_markdown_table(tmp_path):
    found = outcome()
    path = write_results(found, tmp_path / "resnet50" / "results", command="x").path
    text = markdown(read_results(tmp_path))
    lines = text.splitlines()
    assert lines[0] == "**NVIDIA H200** (`nvidia-h200/whole/700w`), ms"
    assert lines[2] == "| model, batch | baseline | inductor | torchscript | speedup | signal error |"
    assert lines[4].startswith("| resnet50, 1 | 4.0")
    assert "| **1.000** fp16 |" in lines[4] or "| **0.9" in lines[4] or "| **1.0" in lines[4]
    document = json.loads(path.read_text())
    committed = path.parents[1] / path.name  # as results lay before each study had a folder
    path.replace(committed)
    assert markdown(read_results(tmp_path)) == text
    committed.replace(path)
    document["plan"]["speedup"] = 10.0
    path.write_text(json.dumps(document))
    with pytest.raises(ValueError, match="plan speedup"):
        read_results(tmp_path)
    for other in ("{}", "[]"):
        path.write_text(other)
        with pytest.raises(ValueError, match=r"nvidia-h200-b1\.json is not what"):
            read_results(tmp_path)


def test_the_markdown_table_marks_results_that_had_help_from_the_database(tmp_path):
    path = write_results(replace(outcome(), known_at_start=START), tmp_path / "resnet50" / "results", command="x").path
    document = json.loads(path.read_text())

    def table(**starts):
        for name, start in starts.items():
            path.with_name(f"{name}.json").write_text(json.dumps({**document, "name": name, "known_at_start": start}))
        path.unlink(missing_ok=True)
        return markdown(read_results(tmp_path)).splitlines()[4:]

    helped = {**START.as_dict(), "model_trials": 3}
    (row,) = table(a=START.as_dict())
    assert row.startswith("| a, 1 | ")
    rows = table(b=helped)
    assert [row[:10] for row in rows] == ["| a, 1 | 4", "| b, 1 † |", "", "† When thi"]
    rows = table(c=None)
    assert [row[:10] for row in rows[1:]] == ["| b, 1 † |", "| c, 1 ‡ |", "", "† When thi", "", "‡ The file"]
    for name in "ab":
        path.with_name(f"{name}.json").unlink()
    (row, empty, note) = table()
    assert row.startswith("| c, 1 | ") and not empty
    assert note == "The files do not record which trials the database had when these studies began."


@pytest.mark.parametrize(
    ("changes", "differing"),
    [
        ({"objective": Objective(name="latency_p99")}, "objective"),
        ({"objective": Objective(signal_error=1e-3)}, "constraints"),
        ({"serve_as": "torchscript"}, "serve_as"),
        ({"structure": records.digest("other")}, "structure"),
        ({"weights": records.digest("other")}, "weights"),
        ({"device": replace(records.DEVICE, power_limit_w=350)}, "device_class"),
    ],
)
def test_results_never_replace_those_of_another_study(tmp_path, changes, differing):
    first = outcome()
    usual = write_results(first, tmp_path, command="first").path
    kept = usual.read_text()
    other = replace(first, plan=replace(first.plan, **changes))
    written = write_results(other, tmp_path, command="second")
    assert written.differing == (differing,) and written.kept == usual and usual.read_text() == kept
    assert written.path.parent == usual.parent and written.path.name.startswith("nvidia-h200-b1-")
    again = write_results(other, tmp_path, command="third")
    assert again == written and json.loads(written.path.read_text())["command"] == "third"
    assert write_results(first, tmp_path, command="fourth").path == usual
    assert len(list(usual.parent.iterdir())) == 2


def test_results_replace_neither_what_is_no_results_file_nor_an_older_file_of_another_study(tmp_path):
    first = outcome()
    usual = write_results(first, tmp_path, command="first").path
    document = json.loads(usual.read_text())
    for name in ("structure", "weights", "study"):
        del document[name]
    usual.write_text(json.dumps(document))
    assert write_results(first, tmp_path, command="second").path == usual  # nothing that it says differs
    document["objective"]["signal_error"] = 0.5
    for text, differing in ((json.dumps(document), "constraints"), ("notes", "schema"), ("[]", "schema")):
        usual.write_text(text)
        written = write_results(first, tmp_path, command="third")
        assert written.path != usual and written.differing == (differing,) and usual.read_text() == text


def test_two_studies_whose_short_digests_are_equal_are_both_kept(tmp_path):
    first = outcome()
    usual = write_results(first, tmp_path, command="first").path
    other = replace(first, plan=replace(first.plan, serve_as="torchscript"))
    short = write_results(other, tmp_path, command="second").path
    short.write_text(usual.read_text())
    longer = write_results(other, tmp_path, command="third").path
    assert longer.name.startswith(short.stem) and short.read_text() == usual.read_text()


def test_what_is_committed_follows_from_its_samples():
    studies = Path(__file__).parents[2] / "studies"
    assert len(read_results(studies)) >= 12 and len(read_results(studies / "engine")) >= 4


@given(st.floats(min_value=1e-4, max_value=1e6))
def test_milliseconds_keep_their_figures(value):
    text = words.milliseconds(value)
    assert "e" not in text
    assert math.isclose(float(text), value, rel_tol=6e-4, abs_tol=6e-6)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.4451234, "0.4451"),
        (28.934, "28.93"),
        (2300.4, "2300"),
        (0.01234, "0.01234"),
        (1.0, "1.000"),
        (12345.6, "12346"),
    ],
)
def test_milliseconds(value, text):
    assert words.milliseconds(value) == text


def test_knobs_name_the_precision_first():
    assert words.knobs(EAGER) == "fp32, channels_last=no, threads=2"
    assert words.knobs(Configuration.of("eager", {})) == "default values"
    assert words.is_reduced(FAST)
    assert not words.is_reduced(EAGER)


@pytest.mark.parametrize(
    ("value", "interval", "unit", "text"),
    [
        (4.0, (3.9, 4.2), "ms", "4.000 [3.900 – 4.200] ms"),
        (0.5, (0.4, 0.8), "ms/item", "2,000.0 [1,250.0 – 2,500.0] items/s"),
        (3 * 2**20, (2**20, 4 * 2**20), "bytes", "3.0 [1.0 – 4.0] MiB"),
        (0.25, (0.2, 0.3), "J", "0.25 [0.2 – 0.3] J"),
    ],
)
def test_a_figure_has_its_interval_and_unit_the_smaller_end_first(value, interval, unit, text):
    assert words.figure_with_interval(value, interval, unit) == text


def test_percentiles_that_are_not_backed_are_said_to_need_samples():
    found = {"n": 100, "p50": 1.0, "p90": 2.0, "p99": None, "p999": None}
    assert words.percentiles(found) == "p50 1.000, p90 2.000 ms; too few samples (100) for p99, p99.9"


def test_backends_that_the_budget_left_untried_are_named():
    complete, short = outcome(), replace(outcome(), untried=("openvino", "native"))
    assert "not tried" not in printed(outcome_view(complete, "here")) and complete.as_dict()["untried"] == []
    assert "not tried within --trials and --budget: openvino, native" in printed(outcome_view(short, "here"))
    assert short.as_dict()["untried"] == ["openvino", "native"]
