"""The Python interface: optimize, tune, load."""

import contextlib
import logging
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from autotune.deploy.arguments import objective_of, seconds_of
from autotune.errors import PlanNotFoundError, RequestError, UndecidedError
from autotune.progress import Progress, Silent
from autotune.records.objective import Objective
from autotune.scratch import ScratchFolder
from autotune.study.request import DEFAULT_BUDGET_S, DEFAULT_TRIALS, StudyOutcome, StudyRequest

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram

    from autotune.database.store import Store
    from autotune.deploy.model import OptimizedModel
    from autotune.deploy.prepared import Prepared
    from autotune.deploy.recheck import OnMiss
    from autotune.records.plan import Plan

log = logging.getLogger(__name__)

NOT_WRITTEN = Path("/nonexistent/autotune-model")
"""The folder of a request whose module is captured in this process; it is written only if a worker needs it."""


def optimize(
    model: "torch.nn.Module | ExportedProgram",
    inputs: object,
    *,
    budget: str | float = DEFAULT_BUDGET_S,
    trials: int = DEFAULT_TRIALS,
    objective: str | Objective = "latency_p50",
    constraints: Mapping[str, object] | None = None,
    device: str | None = None,
    db: str | None = None,
    name: str | None = None,
    serve_as: str = "any",
    backends: tuple[str, ...] | None = None,
    precisions: tuple[str, ...] | None = None,
    seed: int = 0,
    tune_kernels: bool = True,
    warm_start: bool = True,
    progress: Progress | None = None,
    verify: bool = True,
) -> "OptimizedModel":
    """Return a callable that answers like ``model``: the stored plan if there is one, else the plan of a search.

    ``model`` is a module, compiled TorchScript included, or an exported program.
    ``name`` is a label of the study, by default the class of the model; a plan is found by the model itself, whatever
    its name. ``inputs`` are the arguments of one call (a tensor, a tuple, or a dict by parameter name), or a list of
    several such sets, which are used as they are. ``device`` defaults to that of the model. The other options are those
    of :func:`tune` and, for ``verify``, of :func:`load`; ``backends``, ``precisions``, ``trials`` and ``budget`` limit
    a search only: a stored plan may be outside them. Raises UndecidedError if the finals of a search could not decide
    and no earlier plan is in force.
    """
    from autotune.database.store import Store

    with Store.open(db) as store:
        prepared, request = _request(
            model, inputs, device=device, name=name, seed=seed, objective=objective, constraints=constraints,
            budget=budget, trials=trials, serve_as=serve_as, backends=backends, precisions=precisions,
            tune_kernels=tune_kernels, warm_start=warm_start,
        )  # fmt: skip
        progress = progress or Silent()
        stored = None
        with contextlib.suppress(PlanNotFoundError):  # then it is searched for
            stored = _usable(store, prepared, request, rebuild=not store.read_only, progress=progress)
        plan, seconds = stored or (_in_force(_searched(store, prepared, request, progress), store, prepared), {})
        return _opened(plan, store, prepared, seconds, verify=verify)


def tune(
    model: "torch.nn.Module | ExportedProgram",
    inputs: object,
    *,
    budget: str | float = DEFAULT_BUDGET_S,
    trials: int = DEFAULT_TRIALS,
    objective: str | Objective = "latency_p50",
    constraints: Mapping[str, object] | None = None,
    device: str | None = None,
    db: str | None = None,
    name: str | None = None,
    serve_as: str = "any",
    backends: tuple[str, ...] | None = None,
    precisions: tuple[str, ...] | None = None,
    seed: int = 0,
    tune_kernels: bool = True,
    warm_start: bool = True,
    progress: Progress | None = None,
) -> StudyOutcome:
    """Search for the fastest plan of ``model`` and store it; a finished study of the same inputs answers at once.

    ``budget`` is seconds or text such as ``10m``. ``objective`` is a name, or an Objective with its accuracy limits;
    ``constraints`` are those limits in the form of a study file (``{"signal_error": 0.01}``). Without ``tune_kernels``,
    builds get the tuned kernels that the database has already. Without ``warm_start``, the search gets no hints from
    other studies. If the finals could not decide, the outcome's ``status`` is ``undecided`` and its ``plan`` is the
    earlier one, or ``None``. The model, its inputs and the random state stay as they were, except that lazy layers are
    initialised. Raises RequestError if the request is wrong, WorkError if the work failed.
    """
    from autotune.database.store import Store

    with Store.open(db) as store:
        prepared, request = _request(
            model, inputs, device=device, name=name, seed=seed, objective=objective, constraints=constraints,
            budget=budget, trials=trials, serve_as=serve_as, backends=backends, precisions=precisions,
            tune_kernels=tune_kernels, warm_start=warm_start,
        )  # fmt: skip
        return _searched(store, prepared, request, progress or Silent())


def load(
    model: "torch.nn.Module | ExportedProgram | str",
    inputs: object = None,
    *,
    batch: int | None = None,
    device: str | None = None,
    db: str | None = None,
    name: str | None = None,
    objective: str | Objective = "latency_p50",
    constraints: Mapping[str, object] | None = None,
    serve_as: str = "any",
    rebuild: bool = True,
    verify: bool = True,
    on_miss: "OnMiss" = "error",
) -> "OptimizedModel":
    """Return the stored plan for ``model``, which answers in the model's own form; never searches.

    ``model`` is the module, with the ``inputs`` of one call, or the name of its study, with its ``batch`` if there are
    several. By name the model's code is not needed: the plan takes named inputs, its artifact is checked against its
    digest, and neither is it built again nor are its answers compared with the model's. RequestError if models of
    several structures or weights have the name.

    With other weights of the same structure, or under a changed toolchain, the stored configuration is built and judged
    again, unless ``rebuild`` is false; of several processes that need the same build, one builds and the others wait.
    With ``verify`` the plan's answers are compared with the model's on ``inputs`` before it is returned. ``seconds`` of
    the result has the time of each of these steps.

    ``on_miss`` is the policy if no plan answers, or its entry is damaged. ``error`` raises PlanNotFoundError, which
    names the differences. ``fallback`` warns and returns ``model`` itself as the callable, with the error as ``miss``.
    ``recheck`` takes a plan of another device of the same kind if its artifact runs on this one, answers like the
    model here, and is faster than it; by name, faster than the baseline was on that device. Raises ArtifactError if
    the plan does not answer like the model.
    """
    from autotune.deploy.fallback import MISSES, fall_back
    from autotune.deploy.prepared import in_memory
    from autotune.deploy.recheck import require_policy

    require_policy(on_miss)
    try:
        return _loaded(
            model, inputs, batch=batch, device=device, db=db, name=name, objective=objective_of(objective, constraints),
            serve_as=serve_as, rebuild=rebuild, verify=verify, on_miss=on_miss,
        )  # fmt: skip
    except MISSES as miss:
        if on_miss != "fallback":
            raise
        if isinstance(model, str):
            return fall_back(None, miss, model)
        return fall_back(in_memory(model, device)[0], miss, name)


def _loaded(
    model: "torch.nn.Module | ExportedProgram | str", inputs: object, *, batch: int | None, device: str | None,
    db: str | None, name: str | None, objective: Objective, serve_as: str, rebuild: bool, verify: bool,
    on_miss: "OnMiss",
) -> "OptimizedModel":  # fmt: skip
    """Return the plan that a request finds, see :func:`load`; raises PlanNotFoundError if there is none."""
    from autotune.database.location import locate
    from autotune.database.store import Store
    from autotune.deploy.by_name import open_by_name, refuse_beside_name
    from autotune.deploy.near import near_plan_of_model

    location = locate(db)
    if location.file is not None and not location.file.exists():
        raise PlanNotFoundError(
            "no stored plan answers", found=f"no tuning database at {location.shown}",
            expected="the database with the study (db=, or AUTOTUNE_DB)",
            run="autotune.optimize(model, inputs)",
        )  # fmt: skip
    with Store.open(db, create=False) as store:
        if isinstance(model, str):
            refuse_beside_name(inputs, name)
            return open_by_name(store, model, batch, device, objective, serve_as, on_miss)
        if batch is not None or inputs is None:
            found = "no inputs" if batch is None else f"batch={batch} beside the module"
            raise RequestError("the plan of a module", found=found, expected="the inputs of one call, at their batch")
        prepared, request = _request(
            model, inputs, device=device, name=name, seed=0, objective=objective, constraints=None, serve_as=serve_as
        )
        try:
            plan, seconds = _usable(store, prepared, request, rebuild=rebuild, progress=Silent())
            return _opened(plan, store, prepared, seconds, verify=verify)
        except PlanNotFoundError as miss:
            if on_miss != "recheck":
                raise
            return near_plan_of_model(store, prepared, prepared.key(request), miss)


def _request(
    model: "torch.nn.Module | ExportedProgram",
    inputs: object,
    *,
    device: str | None,
    name: str | None,
    seed: int,
    objective: str | Objective,
    constraints: Mapping[str, object] | None,
    serve_as: str,
    budget: str | float = DEFAULT_BUDGET_S,
    trials: int = DEFAULT_TRIALS,
    backends: tuple[str, ...] | None = None,
    precisions: tuple[str, ...] | None = None,
    tune_kernels: bool = True,
    warm_start: bool = True,
) -> "tuple[Prepared, StudyRequest]":
    """Return the captured module and the request for it; a wrong request is refused before the capture."""
    from autotune.deploy.prepared import in_memory, prepare

    if isinstance(seed, bool) or not isinstance(seed, int):
        raise RequestError(f"seed {seed!r}", found=type(seed).__name__, expected="a whole number")
    module, target = in_memory(model, device)
    request = StudyRequest(
        name=name or "model", batch=1, device=target, objective=objective_of(objective, constraints), seed=seed,
        prepared=NOT_WRITTEN, budget_s=seconds_of(budget), trials=trials, serve_as=serve_as, backends=backends,
        precisions=precisions, tune_kernels=tune_kernels, warm_start=warm_start,
    )  # fmt: skip
    prepared = prepare(module, inputs, device=target, name=name, seed=seed)
    request.objective.refuse_other_outputs(prepared.captured.form.names)
    return prepared, replace(request, name=prepared.name, batch=prepared.batch, own_file=prepared.own_file)


def _usable(
    store: "Store", prepared: "Prepared", request: StudyRequest, *, rebuild: bool, progress: Progress
) -> "tuple[Plan, dict[str, float]]":
    """Return the stored plan with an artifact that fits, built again if needed, and the seconds of each step.

    Raises PlanNotFoundError if there is none.
    """
    from autotune.deploy.miss import not_found, unreadable_is_a_miss, unusable
    from autotune.deploy.rebuilding import misfits_of, rebuilt

    if request.objective.metrics:
        request = _with_metric_code(prepared, request)
    begin = time.perf_counter()
    with unreadable_is_a_miss():
        plan = store.plans.find(prepared.key(request), prepared.captured.workload.weights)
        if plan is None:
            raise not_found(store, prepared, prepared.key(request))
    plan = replace(plan, device=request.device)
    differences = misfits_of(plan, store, prepared)
    seconds = {"look_up": time.perf_counter() - begin}
    if not differences:
        return plan, seconds
    read_only = store.read_only or store.artifacts.read_only
    if not rebuild or read_only:
        why = "but this database is read-only" if read_only else "but rebuild=False forbids it"
        run = "autotune.load with db= a copy that can be written" if read_only else "autotune.load(model, inputs)"
        raise unusable(prepared, plan, differences, why, run)
    begin = time.perf_counter()
    again = rebuilt(store, prepared, request, plan, progress)
    return again, {**seconds, "rebuild": time.perf_counter() - begin}


def _searched(store: "Store", prepared: "Prepared", request: StudyRequest, progress: Progress) -> StudyOutcome:
    from autotune.study.study import run_study

    with ScratchFolder("model") as folder:
        return run_study(replace(request, prepared=prepared.write(folder / "model")), store, progress)


def _in_force(outcome: StudyOutcome, store: "Store", prepared: "Prepared") -> "Plan":
    """Return the plan in force after a study; raises UndecidedError if there is none that serves the module."""
    from autotune.deploy.rebuilding import misfits_of

    plan = outcome.plan
    if plan is not None and not outcome.undecided:
        return plan
    if plan is None or misfits_of(plan, store, prepared):
        raise UndecidedError(
            f"{outcome.name}: the finals could not decide", found=outcome.reason,
            expected="a host with little other work while it measures", run=outcome.run,
        )  # fmt: skip
    log.warning(
        "%s: the finals could not decide (%s), so the earlier plan is used; run again: %s",
        outcome.name, outcome.reason, outcome.run,
    )  # fmt: skip
    return plan


def _with_metric_code(prepared: "Prepared", request: StudyRequest) -> StudyRequest:
    """Return the request with the digests of its metrics' code, which a worker reads: it is the user's own code."""
    from autotune.execute.executor import Executor
    from autotune.execute.server import WorkerServer
    from autotune.execute.timing import TimeSplit
    from autotune.study.identity import with_metric_code

    with ScratchFolder("metrics") as folder:
        prepared.write(folder / "model")
        with WorkerServer(folder) as server:
            executor = Executor(server, folder, request.device, TimeSplit())
            return replace(request, objective=with_metric_code(request.objective, executor)[0])


def _opened(
    plan: "Plan", store: "Store", prepared: "Prepared", seconds: Mapping[str, float], *, verify: bool
) -> "OptimizedModel":
    """Load a plan for the module, in whose form it answers; with ``verify``, compare its answers with the module's."""
    from autotune.deploy.miss import damaged_is_a_miss
    from autotune.deploy.model import open_plan, verified

    begin = time.perf_counter()
    with damaged_is_a_miss(plan):
        fast = open_plan(plan, store, prepared.captured.form, prepared.captured.inputs)
    spent = {**prepared.seconds, **seconds, "open": time.perf_counter() - begin}
    if verify:
        begin = time.perf_counter()
        verified(fast, prepared)
        spent["verify"] = time.perf_counter() - begin
    fast.seconds = spent
    log.info("%s: %s", plan.name, ", ".join(f"{step} {step_s * 1e3:.1f} ms" for step, step_s in spent.items()))
    return fast
