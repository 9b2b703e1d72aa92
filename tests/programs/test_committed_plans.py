"""The plans of results files in one file, and what a comparison of them says."""

import json
import os
import subprocess
import zipfile
from pathlib import Path

import pytest

from autotune.comparison.comparison import compare_store
from autotune.database.exchange import export_studies, merge_file, read_records
from autotune.database.store import Store
from autotune.programs.committed_plans import main
from autotune.report.results import write_results
from autotune.study.study import run_study
from tests.finished import REQUEST

WHEN = "2026-01-02T03:04:05+00:00"
STUDY = f"""
name: toy
model: {{factory: {REQUEST.factory}}}
inputs: [{{name: input, shape: [batch, 16]}}]
batch: [2]
"""


@pytest.fixture
def studies(tmp_path, finished_study):
    """A folder of studies with the results of one, and its plan."""
    folder = tmp_path / "studies"
    (folder / "toy").mkdir(parents=True)
    (folder / "toy" / "study.yaml").write_text(STUDY)
    with Store.open(str(finished_study)) as store:
        outcome = run_study(REQUEST, store)
    written = write_results(outcome, tmp_path / "written", command="autotune tune")
    (folder / "toy" / "results").mkdir()
    written.path.rename(folder / "toy" / "results" / written.path.name)
    return folder, outcome.plan


def test_a_plan_of_results_is_merged_with_its_finals_and_stands_apart(studies, tmp_path):
    folder, plan = studies
    assert main([str(folder), "--out", str(tmp_path / "plans.zip")]) == 0
    with Store.open(str(tmp_path / "merged.db"), create=True) as store:
        merge_file(store, tmp_path / "plans.zip")
        (merged,) = store.plans.list()
        trials = store.trials.of_study(merged.evidence.study)
        ((_, cell),) = compare_store(store).cells()
        blocks = store.trials.measurements(merged.evidence.trial, "finals")[0].samples_ms
    assert (merged.structure, merged.weights, merged.latency_ms) == (plan.structure, plan.weights, plan.latency_ms)
    assert (merged.configuration, merged.created) == (plan.configuration, plan.created)
    assert {trial.configuration for trial in trials} == {entry.configuration for entry in plan.evidence.finalists}
    assert cell.state == "apart" and "earlier protocol" in [reason.name for reason in cell.reasons]
    assert sum(map(len, blocks)) == sum(len(block) for block in plan.evidence.winner.samples_ms if block)


def test_the_export_of_a_study_stands_for_its_results(studies, tmp_path, finished_study):
    folder, plan = studies
    with Store.open(str(finished_study)) as store:
        export_studies(store, ["toy"], tmp_path / "export.zip", artifacts=False)
    assert main([str(folder), "--out", str(tmp_path / "plans.zip"), "--with", str(tmp_path / "export.zip")]) == 0
    with Store.open(str(tmp_path / "merged.db"), create=True) as store:
        merge_file(store, tmp_path / "plans.zip")
        (merged,) = store.plans.list()
        ((_, cell),) = compare_store(store).cells()
    assert merged.uid == plan.uid and "earlier protocol" not in [reason.name for reason in cell.reasons]


def test_a_plan_of_an_export_that_results_have_replaced_is_left_out_with_its_study(studies, tmp_path, finished_study):
    folder, plan = studies
    with Store.open(str(finished_study)) as store:
        export_studies(store, ["toy"], tmp_path / "export.zip", artifacts=False)
    (path,) = folder.glob("toy/results/*.json")
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "measured": WHEN}))
    assert main([str(folder), "--out", str(tmp_path / "plans.zip"), "--with", str(tmp_path / "export.zip")]) == 0
    parcel = read_records(tmp_path / "plans.zip")
    (kept,) = parcel.plans
    assert (kept.created[:19], kept.latency_ms) == (WHEN[:19], plan.latency_ms)
    assert kept.uid != plan.uid
    assert [study.uid for study in parcel.studies] == [kept.evidence.study]
    assert {trial.study for trial in parcel.trials} == {kept.evidence.study} != {plan.evidence.study}
    assert {entry.trial for entry in parcel.measurements} <= {one.trial.uid for one in parcel.trials}


def test_a_study_that_was_repeated_has_the_trials_of_its_newest_run_alone(studies, tmp_path, finished_study):
    """Both runs have the same identity, so a merge of their exports would make one study of them."""
    folder, plan = studies
    with Store.open(str(finished_study)) as store:
        export_studies(store, ["toy"], tmp_path / "newest.zip", artifacts=False)
    with Store.open(str(tmp_path / "earlier.db"), create=True) as store:
        earlier = run_study(REQUEST, store).plan
        export_studies(store, ["toy"], tmp_path / "earlier.zip")
    exports = [str(tmp_path / "newest.zip"), str(tmp_path / "earlier.zip")]
    for ordered in (exports, exports[::-1]):
        assert main([str(folder), "--out", str(tmp_path / "plans.zip"), "--with", *ordered]) == 0
        parcel, newest = read_records(tmp_path / "plans.zip"), read_records(tmp_path / "newest.zip")
        assert [kept.uid for kept in parcel.plans] == [plan.uid] != [earlier.uid]
        assert [study.created for study in parcel.studies] == [study.created for study in newest.studies]
        assert {item.trial.uid for item in parcel.trials} == {item.trial.uid for item in newest.trials}


def test_results_without_a_time_get_that_of_their_commit(studies, tmp_path, capsys):
    folder, _ = studies
    (path,) = folder.glob("toy/results/*.json")
    lines = [line for line in path.read_text().splitlines() if '"measured"' not in line]
    path.write_text("\n".join(lines))
    assert main([str(folder), "--out", str(tmp_path / "plans.zip")]) == 1
    assert "git repository" in capsys.readouterr().err
    git = ("git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b")
    for command in (("init", "-q"), ("add", "."), ("commit", "-qm", "results", "--date", WHEN)):
        subprocess.run([*git, *command], check=True, env={**os.environ, "GIT_COMMITTER_DATE": WHEN})
    assert main([str(folder), "--out", str(tmp_path / "plans.zip")]) == 0
    with Store.open(str(tmp_path / "merged.db"), create=True) as store:
        merge_file(store, tmp_path / "plans.zip")
        (merged,) = store.plans.list()
    assert merged.created.startswith("2026-01-02T03:04:05")


def test_figures_that_do_not_follow_from_the_samples_are_refused(studies, tmp_path, capsys):
    folder, _ = studies
    (path,) = folder.glob("toy/results/*.json")
    path.write_text(path.read_text().replace('"speedup": ', '"speedup": 9'))
    assert main([str(folder), "--out", str(tmp_path / "plans.zip")]) == 1
    assert "speedup" in capsys.readouterr().err
    assert not (tmp_path / "plans.zip").exists()


def test_the_committed_file_has_the_plan_of_every_results_file(tmp_path):
    """``db merge studies/plans.zip`` and ``compare`` have the figures of the documentation."""
    studies = Path(__file__).parents[2] / "studies"
    with Store.open(str(tmp_path / "committed.db"), create=True) as store:
        merge_file(store, studies / "plans.zip")
        comparison = compare_store(store)
    shown = {
        (workload.name, workload.batch, cell.device_class): cell.plan
        for workload, cell in comparison.cells() if cell.plan is not None
    }  # fmt: skip
    paths = sorted(studies.glob("*/results/*.json"))
    for path in paths:
        document = json.loads(path.read_text())
        plan = shown[document["name"], document["batch"], document["device"]["device_class"]]
        assert (plan.latency_ms, plan.speedup) == (document["plan"]["latency_ms"], document["plan"]["speedup"]), path
        assert plan.configuration.as_dict() == document["plan"]["configuration"]
    assert len(shown) == len(paths)
    page = (studies.parent / "docs" / "comparison-example.html").read_text()
    newest = max(plan.created for plan in shown.values())[:16].replace("T", " ")
    assert f"The newest plan is of {newest}" in page


def test_the_committed_file_has_no_path_of_a_host():
    with zipfile.ZipFile(Path(__file__).parents[2] / "studies" / "plans.zip") as archive:
        records = json.loads(archive.read("records.json"))
    for study in records["studies"]:
        assert not (study["settings"].get("factory") or "").startswith("/"), study["name"]
        assert set(study["settings"].get("read") or {}) <= {"packages"}
    assert '"/' not in json.dumps([records["studies"], records["plans"]])
