"""The command ``autotune tune``."""

import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autotune import environment
from autotune.cli.output import Batch, Db, Json, errors, nothing_on_stdout, open_store, print_json, show
from autotune.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rich.console import RenderableType

    from autotune.database.store import Store
    from autotune.records.configuration import Configuration
    from autotune.records.plan import Plan
    from autotune.records.trial import Trial
    from autotune.study.file import StudyFile
    from autotune.study.request import StudyOutcome, StudyRequest


def tune(
    study: Annotated[
        Path,
        typer.Argument(metavar="STUDY_FILE", help="The study file (studies/resnet50/study.yaml), or a model file."),
    ],
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--inputs",
            metavar="[NAME=]SHAPE[:DTYPE[:VALUES]]",
            help="An input of a model file, such as 1x3x224x224 or ids=1x128:int64:0..30522. Repeatable.",
        ),
    ] = None,
    batch: Batch = None,
    serve_as: Annotated[
        str | None,
        typer.Option(
            "--serve-as", metavar="FORMAT", help="The format that a server loads, or any; otherwise that of the file."
        ),
    ] = None,
    db: Db = None,
    device: Annotated[
        str | None,
        typer.Option("--device", metavar="DEVICE", help="auto, cpu, cuda or cuda:N; otherwise that of the file."),
    ] = None,
    trials: Annotated[
        int | None, typer.Option("--trials", metavar="N", help="The most distinct builds, over all runs of the study.")
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option("--budget", metavar="TIME", help="The most time of active search, over all runs: 90s, 3m, 1h."),
    ] = None,
    results: Annotated[
        Path | None, typer.Option("--results", metavar="DIR", help="Also write DIR/<study>/<sku>-b<batch>.json.")
    ] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Run the finals again, such as after an upgrade, also if there is a plan.")
    ] = False,
    carry: Annotated[
        list[str] | None,
        typer.Option("--carry", metavar="DEVICE", help="Time the plan of another device as well; or all. Repeatable."),
    ] = None,
    json: Json = False,
) -> None:
    """Find the fastest way to run a study's model on a device, and keep it as its plan.

    A model file (TorchScript, a .pt2 of torch.export.save, or ONNX) needs no study file: its study has the file's name.
    A study that was stopped is continued; a finished study prints its plan and measures nothing, unless it is told to
    run its finals --again, or has plans to --carry. Exit code 1 if the finals of a study could not decide, after the
    studies of the other batches.
    """
    from autotune.report.outcome import sweep_view

    file = _study(study, inputs or [], batch)
    if serve_as is not None:
        file = file.model_copy(update={"serve_as": serve_as})
    requests = study_requests(file, batch=batch, device=device, trials=trials, budget=budget)
    requests = [replace(request, again=again, carry=tuple(carry or ())) for request in requests]
    swept = file.sweeps and batch is None
    if results is not None and results.exists() and not results.is_dir():
        raise RequestError(
            f"cannot write results to {results}",
            found="a file",
            expected="a folder, or a path at which there is nothing yet",
        )
    if not json:
        outcomes = _run(study, requests, db, results, show, swept=swept)
        if swept:
            show(sweep_view(outcomes))
    else:
        with nothing_on_stdout():
            outcomes = _run(study, requests, db, results, lambda view: show(view, sys.stderr), swept=swept)
        print_json({"studies": [_document(outcome, _deploy(study, outcome, requests[0], db)) for outcome in outcomes]})
    if any(outcome.undecided for outcome in outcomes):
        raise typer.Exit(1)


def _study(path: Path, inputs: "Sequence[str]", batch: int | None) -> "StudyFile":
    """Read a study file, or make the study of a model file."""
    from autotune.study.file import read_study
    from autotune.study.model_study import is_model_file, read_model_study

    if not is_model_file(path):
        if inputs:
            raise RequestError(
                f"--inputs beside the study file {path}", found=f"--inputs {inputs[0]}",
                expected="the inputs in the study file, or a model file instead of it",
            )  # fmt: skip
        return read_study(path)
    if batch is not None:
        raise RequestError(
            f"--batch {batch} beside the model file {path}", found="no study file",
            expected="the batch as the first size of the first of --inputs",
        )  # fmt: skip
    return read_model_study(path, inputs)


def _run(
    study: Path,
    requests: "Sequence[StudyRequest]",
    db: str | None,
    results: Path | None,
    show_view: "Callable[[RenderableType], None]",
    *,
    swept: bool,
) -> "list[StudyOutcome]":
    """Run one study after the other, and show each outcome as soon as it is there."""
    from autotune.cli.progress import TuneProgress
    from autotune.report.outcome import outcome_view
    from autotune.study.study import run_study
    from autotune.study.sweep import sweep

    outcomes = []
    with open_store(db, create=True) as store:

        def run(request: "StudyRequest") -> "StudyOutcome":
            with TuneProgress(errors(), request, lambda *running: _earlier(store, request, *running)) as progress:
                return run_study(request, store, progress)

        for outcome in sweep(requests, run) if swept else map(run, requests):
            if outcome.undecided:
                outcome = replace(outcome, run=shlex.join(["autotune", *sys.argv[1:]]))
            deploy = _deploy(study, outcome, requests[0], db)
            show_view(
                outcome_view(
                    outcome, store.location, deploy=deploy, db=db, unconstrained=_unconstrained(store, outcome)
                )
            )
            if results is not None:
                _write_results(outcome, results)
            outcomes.append(outcome)
    return outcomes


def _unconstrained(store: "Store", outcome: "StudyOutcome") -> "Plan | None":
    """Return the fastest stored plan in any format for the model of a study for a serving format."""
    plan = outcome.plan
    if plan is None or plan.serve_as == "any":
        return None
    return store.plans.find(replace(plan.key, serve_as="any"))


def _deploy(study: Path, outcome: "StudyOutcome", request: "StudyRequest", db: str | None) -> str:
    """Return the command that deploys the plan of an outcome; empty if it has no plan."""
    from autotune.model.file_kind import TORCH
    from autotune.report.deploying import deploy_by_name_command, deploy_command
    from autotune.study.model_study import is_model_file

    database = db or environment.database_url()  # another shell may not have the variable
    if outcome.plan is None:
        return ""
    if is_model_file(study) or request.model_format != TORCH:
        return deploy_by_name_command(outcome.plan, request.device, database)
    return deploy_command(study, outcome.plan, request.device, database)


def _document(outcome: "StudyOutcome", deploy: str) -> dict[str, object]:
    """Return one entry of ``--json``: the outcome with the limit of its signal error, and the command to deploy it."""
    return {**outcome.as_dict(), "signal_error_limit": outcome.objective.signal_error, "deploy": deploy or None}


def _earlier(
    store: "Store", request: "StudyRequest", number: int, configuration: "Configuration"
) -> "tuple[list[Trial], float]":
    """Return the finished trials and the seconds of search of the study in which this trial runs now."""
    for row in reversed(store.studies.list(request.name, request.batch)):
        trials = store.trials.of_study(row.uid)
        if any(
            (trial.number, trial.configuration, trial.state) == (number, configuration, "running") for trial in trials
        ):
            return [trial for trial in trials if trial.state != "running"], row.active_s
    return [], 0.0


def _write_results(outcome: "StudyOutcome", folder: Path) -> None:
    """Write the results file of a study and print its path; an undecided study has no results."""
    from autotune.report.results import write_results

    if outcome.undecided:
        study = f"{outcome.name} at batch {outcome.batch}"
        errors().print(f"no results are written for {study}: it is undecided", markup=False)
        return
    written = write_results(outcome, folder, command=shlex.join(["autotune", *sys.argv[1:]]))
    if written.kept is not None:
        differing = ", ".join(written.differing)
        errors().print(f"{written.kept} stays: it is of another study, with another {differing}", markup=False)
    errors().print(f"wrote {written.path}", markup=False)


def study_requests(
    file: "StudyFile", *, batch: int | None, device: str | None, trials: int | None, budget: str | None
) -> "list[StudyRequest]":
    """Return one request per batch from a study file and the options that override it."""
    from autotune import registry
    from autotune.runtime import discovery
    from autotune.study.file import parse_duration
    from autotune.study.request import StudyRequest

    if batch is not None and batch not in file.batch:
        raise RequestError(
            f"study {file.name} at batch {batch}",
            found=f"a study file with batch {', '.join(map(str, file.batch))}",
            expected="one of these, or another batch written into the file",
        )
    try:
        budget_s = file.search.budget if budget is None else parse_duration(budget)
    except ValueError as error:
        raise RequestError(f"--budget {budget}", found=str(error), expected="such as 90s, 3m or 1h30m") from None
    unknown = sorted(set(file.space.backends or ()) - set(registry.names()))
    if unknown:
        raise RequestError(
            f"study {file.name} asks for backend {', '.join(unknown)}",
            found="no backend of that name",
            expected=f"some of {', '.join(registry.names())}",
        )
    target = discovery.find(device or file.device)
    return [
        StudyRequest(
            name=file.name,
            batch=size,
            device=target,
            objective=file.objective_record(),
            factory=file.factory,
            model_format=file.model_format,
            inputs=file.input_specs(),
            serve_as=file.serve_as,
            backends=file.space.backends,
            precisions=file.space.precision,
            trials=file.search.trials if trials is None else trials,
            budget_s=budget_s,
            seed=file.search.seed,
            tune_kernels=file.search.tune_kernels,
            warm_start=file.search.warm_start,
        )
        for size in ([batch] if batch is not None else file.batch)
    ]
