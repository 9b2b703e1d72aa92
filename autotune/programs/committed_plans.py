"""The plans of committed results as one file to merge: ``python -m autotune.programs.committed_plans studies/ …``.

A results file has the finals of a study with every raw sample, but neither its trials nor its conditions. So its plan
is stored with a study of unknown conditions, and a comparison shows it as measured under an earlier protocol. The model
is captured again for its structure and its weights. Artifacts are not committed, so none is in the file. A results file
without the time of its measurement gets that of its commit. A plan of an export is left out, with its study, if the
results file of its model, batch and device class is of another measurement.
"""

import argparse
import json
import subprocess
import tempfile
import uuid
import zipfile
from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import Any

from autotune import standard_streams
from autotune.database.exchange import RECORDS, export_studies, merge_file, read_records
from autotune.database.rows import parse_instant
from autotune.database.store import Store
from autotune.errors import WorkError
from autotune.execute.executor import Executor
from autotune.execute.server import WorkerServer
from autotune.execute.timing import TimeSplit
from autotune.model import model_file
from autotune.programs.check_result import CheckResult
from autotune.programs.document import rows_of
from autotune.programs.frame import Run, parser_of, run_program, say
from autotune.programs.results_file import read_results_file
from autotune.programs.surroundings import environment
from autotune.records.configuration import Configuration
from autotune.records.device import Device, Toolchain
from autotune.records.evidence import FinalistRecord, ObjectiveFigures, PlanEvidence
from autotune.records.objective import Objective
from autotune.records.plan import Plan
from autotune.records.study_start import StudyStart
from autotune.records.trial import Measurement, Trial
from autotune.records.workload import Workload
from autotune.runtime import discovery
from autotune.scratch import ScratchFolder
from autotune.study.file import StudyFile, read_study

NAME = "committed_plans"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program, and return its exit code."""
    return run_program(NAME, _parser(), _collect, arguments)


def _parser() -> argparse.ArgumentParser:
    parser = parser_of(NAME, "write the number of plans of each study")
    parser.add_argument("studies", type=Path, metavar="STUDIES_FOLDER", help="the folder with study and results files")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the file for autotune db merge")
    parser.add_argument(
        "--with", dest="exports", type=Path, nargs="+", default=[], metavar="EXPORT",
        help="files of autotune db export whose studies are added; their plans replace those of the same results",
    )  # fmt: skip
    return parser


def _collect(run: Run) -> int:
    paths = sorted(run.options.studies.glob("*/results/*.json"))
    documents = [_read(path) for path in paths]
    measured = {_key(document): document["measured"] for document in documents}
    with tempfile.TemporaryDirectory() as folder, Store.open(str(Path(folder) / "plans.db"), create=True) as store:
        for export in run.options.exports:
            merge_file(store, _without_replaced(export, measured, Path(folder) / "export.zip"))
        exported = {_workload_and_class(plan) for plan in store.plans.list()}
        for path, document in zip(paths, documents, strict=True):
            if _key(document) not in exported:
                plan = store_plan(store, document, read_study(path.parents[1] / "study.yaml"))
                say(f"{path}: {plan.configuration.backend}, {plan.latency_ms:.4g} ms")
        kept = [plan.name for plan in store.plans.list()]
        if not kept:
            raise WorkError(f"plans of {run.options.studies}", found="no results file", expected="*/results/*.json")
        export_studies(store, sorted(set(kept)), run.options.out, artifacts=False)
    records = _records(run.options.out)
    leave_out_places(records, run.options.studies.name)
    _write_records(run.options.out, records)
    results = [
        CheckResult(
            check=name, figure=f"{kept.count(name)} plans", limit="figures follow from the raw samples", passed=True
        )
        for name in sorted(set(kept))
    ]
    return run.report(rows_of(results), environment("cpu"))


def _without_replaced(export: Path, measured: Mapping[tuple[str, int, str], str], file: Path) -> Path:
    """Write an export into a file, without artifacts and the plans that a results file has replaced; returns the file.

    This precedes the merge, which makes one study of two with the same identity.
    """
    replaced = {
        plan.uid for plan in read_records(export).plans
        if measured.get(_workload_and_class(plan), plan.created) != plan.created
    }  # fmt: skip
    records = _records(export)
    records["artifacts"] = {}
    leave_out_plans(records, replaced)
    _write_records(file, records)
    return file


def _key(document: Mapping[str, Any]) -> tuple[str, int, str]:
    """Return the same of a results file as :func:`_workload_and_class` of a plan."""
    return document["name"], document["batch"], document["device"]["device_class"]


def _workload_and_class(plan: Plan) -> tuple[str, int, str]:
    return plan.name, plan.batch, plan.device.device_class


def _records(exported: Path) -> dict[str, Any]:
    with zipfile.ZipFile(exported) as archive:
        records: dict[str, Any] = json.loads(archive.read(RECORDS))
    return records


def _write_records(exported: Path, records: Mapping[str, Any]) -> None:
    with zipfile.ZipFile(exported, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(zipfile.ZipInfo(RECORDS), json.dumps(records), zipfile.ZIP_DEFLATED)


def leave_out_plans(records: dict[str, Any], plans: Set[str]) -> None:
    """Remove plans, given by their uids, from an export's records, with their studies and the models of no other."""
    studies = {plan["evidence"]["study"] for plan in records["plans"] if plan["uid"] in plans}
    records["plans"] = [plan for plan in records["plans"] if plan["uid"] not in plans]
    records["studies"] = [study for study in records["studies"] if study["uid"] not in studies]
    records["trials"] = [trial for trial in records["trials"] if trial["study"] not in studies]
    trials = {trial["uid"] for trial in records["trials"]}
    records["measurements"] = [entry for entry in records["measurements"] if entry["trial"] in trials]
    models = {(study["structure"], study["weights"]) for study in records["studies"]}
    records["workloads"] = [model for model in records["workloads"] if (model["structure"], model["weights"]) in models]


def leave_out_places(records: dict[str, Any], studies: str) -> None:
    """Remove paths of the hosts that measured: factories and files lie in the folder of studies."""
    for study in records["studies"]:
        settings = study["settings"]
        settings["read"] = {"packages": (settings.get("read") or {}).get("packages", {})}
        settings["factory"] = _within(settings.get("factory"), studies)
        for entry in settings.get("inputs", ()):
            entry["file"] = _within(entry.get("file"), studies)
    for plan in records["plans"]:
        for entry in plan["evidence"].get("inputs") or ():
            entry["file"] = _within(entry.get("file"), studies)


def _within(place: str | None, studies: str) -> str | None:
    """Return a path from the folder of studies on; the source of a model file keeps its prefix."""
    if not place or f"/{studies}/" not in place:
        return place
    prefix = model_file.PREFIX if model_file.is_file(place) else ""
    return f"{prefix}{studies}/{place.split(f'/{studies}/', 1)[1]}"


def _read(path: Path) -> dict[str, Any]:
    """Return the content of a results file; WorkError if its figures do not follow from its samples."""
    try:
        read_results_file(path)
    except ValueError as problem:
        raise WorkError("a results file is wrong", found=str(problem)) from problem
    document: dict[str, Any] = json.loads(path.read_text())
    document["measured"] = parse_instant(document.get("measured") or _committed(path))
    return document


def store_plan(store: Store, document: Mapping[str, Any], study: StudyFile) -> Plan:
    """Store the plan of a results file with its finals."""
    device = Device.from_dict({k: v for k, v in document["device"].items() if k not in ("sku", "device_class")})
    workload = _captured(study, document["batch"])
    row = store.studies.begin(
        document["name"], workload, device, Objective.from_dict(document["objective"]), document["serve_as"],
        space_digest="", seed=study.search.seed, settings={},
    )  # fmt: skip
    toolchain = Toolchain.of(document["environment"]["toolchain"])
    finalists = [_finalist(store, row.uid, entry, toolchain) for entry in document["finals"]]
    store.studies.finish(row.uid, {})
    plan = _plan(document, workload, device, toolchain, row.uid, finalists, study)
    store.plans.promote(plan)
    return plan


def _committed(path: Path) -> str:
    """Return the time of the last commit of a file, in ISO 8601."""
    command = ["git", "log", "-1", "--format=%cI", "--", path.name]
    done = subprocess.run(command, cwd=path.parent, capture_output=True, text=True, check=False)
    if done.returncode != 0 or not done.stdout.strip():
        raise WorkError(
            f"the time of {path}", found=done.stderr.strip() or "no commit of the file",
            expected="an entry measured, or a file that is committed with git",
        )  # fmt: skip
    return done.stdout.strip()


def _captured(study: StudyFile, batch: int) -> Workload:
    with ScratchFolder("plans") as folder, WorkerServer(folder, work=NAME) as server:
        executor = Executor(server, folder, discovery.cpu(), TimeSplit())
        specs = study.input_specs()
        return executor.prepare(study.name, batch, study.factory, specs, study.search.seed).workload


def _finalist(store: Store, study: str, entry: Mapping[str, Any], toolchain: Toolchain) -> FinalistRecord:
    """Store the trial of a finalist with its samples, and return the finalist under the trial's uid."""
    finalist = FinalistRecord.from_dict(entry)
    trial = store.trials.claim(study, finalist.configuration, toolchain.digest)
    complete: Trial = replace(
        trial, state="complete", latency_ms=finalist.latency_ms, signal_error=finalist.signal_error,
        build_s=finalist.build_s,
    )  # fmt: skip
    blocks = tuple(block for block in finalist.samples_ms if block)
    store.trials.finish(complete, {"finals": Measurement(samples_ms=blocks)})
    return replace(finalist, uid=trial.uid, stored_keys=None)


def _plan(
    document: Mapping[str, Any],
    workload: Workload,
    device: Device,
    toolchain: Toolchain,
    study: str,
    finalists: Sequence[FinalistRecord],
    file: StudyFile,
) -> Plan:
    entry, start = document["plan"], document.get("known_at_start")
    configuration = Configuration.from_dict(entry["configuration"])
    winner = next(finalist for finalist in finalists if finalist.configuration == configuration)
    interval = (entry["interval_ms"][0], entry["interval_ms"][1])
    objective = Objective.from_dict(document["objective"])
    figures = ObjectiveFigures(
        name=objective.name, unit=objective.unit, value=winner.compared,
        interval=winner.objective_interval or interval, baseline=entry["baseline_latency_ms"],
    )  # fmt: skip
    return Plan(
        uid=uuid.uuid4().hex, name=document["name"], batch=document["batch"], structure=workload.structure,
        weights=workload.weights, device=device, toolchain=toolchain, objective=objective,
        serve_as=document["serve_as"], configuration=configuration, status=entry["status"], artifact=None,
        latency_ms=entry["latency_ms"], interval_ms=interval, baseline_latency_ms=entry["baseline_latency_ms"],
        speedup=entry["speedup"], signal_error=entry["signal_error"],
        evidence=PlanEvidence(
            study=study, trial=winner.uid, objective=figures, finalists=tuple(finalists), rounds=document.get("rounds"),
            processes=tuple(document["process_of_round"]), seed=file.search.seed, toolchain=toolchain.as_dict(),
            known_at_start=None if start is None else StudyStart.from_dict(start),
        ),
        created=document["measured"],
    )  # fmt: skip


if __name__ == "__main__":
    standard_streams.run(main)
