"""The Python interface: optimize, tune, load."""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from autotune.errors import PlanNotFoundError, RequestError, UndecidedError
from autotune.progress import Progress, Silent, message_reporter
from autotune.records.objective import Objective
from autotune.scratch import ScratchFolder
from autotune.study.request import DEFAULT_BUDGET_S, DEFAULT_TRIALS, StudyOutcome, StudyRequest

if TYPE_CHECKING:
    import torch

    from autotune.database.store import Store
    from autotune.deploy.model import OptimizedModel
    from autotune.deploy.prepared import Prepared
    from autotune.records.plan import Plan

log = logging.getLogger(__name__)

NOT_WRITTEN = Path("/nonexistent/autotune-model")
"""The folder of a request whose module is captured, and written down only if a worker needs it."""


def optimize(
    model: "torch.nn.Module",
    inputs: Any,
    *,
    budget: str | float = DEFAULT_BUDGET_S,
    trials: int = DEFAULT_TRIALS,
    objective: str | Objective = "latency_p50",
    constraints: Mapping[str, Any] | None = None,
    device: str | None = None,
    db: str | None = None,
    name: str | None = None,
    serve_as: str = "any",
    backends: tuple[str, ...] | None = None,
    precisions: tuple[str, ...] | None = None,
    seed: int = 0,
    tune_kernels: bool = True,
    progress: Progress | None = None,
    verify: bool = True,
) -> "OptimizedModel":
    """Return a callable that answers like ``model``: the stored plan if there is one, else what a search finds.

    ``inputs`` are the arguments of one call (a tensor, a tuple, or a dict by parameter name), or a list of several such
    sets, which are used as they are. ``device`` defaults to the one the model is on. The other options are those of
    :func:`tune` and, for ``verify``, of :func:`load`; ``backends``, ``precisions``, ``trials`` and ``budget`` limit a
    search, and not which stored plan answers. Raises UndecidedError if the finals of a search could not decide and no
    earlier plan stands.
    """
    from autotune.database.store import Store

    with Store.open(db) as store:
        prepared, request = _asked(
            model, inputs, device=device, name=name, seed=seed, objective=objective, constraints=constraints,
            budget=budget, trials=trials, serve_as=serve_as, backends=backends, precisions=precisions,
            tune_kernels=tune_kernels,
        )  # fmt: skip
        told = progress or Silent()
        found = None
        with contextlib.suppress(PlanNotFoundError):  # then it is searched for
            found = _usable(store, prepared, request, rebuild=not store.read_only, progress=told)
        plan, seconds = found or (_in_force(_searched(store, prepared, request, told), store, prepared), {})
        return _opened(plan, store, prepared, seconds, verify=verify)


def tune(
    model: "torch.nn.Module",
    inputs: Any,
    *,
    budget: str | float = DEFAULT_BUDGET_S,
    trials: int = DEFAULT_TRIALS,
    objective: str | Objective = "latency_p50",
    constraints: Mapping[str, Any] | None = None,
    device: str | None = None,
    db: str | None = None,
    name: str | None = None,
    serve_as: str = "any",
    backends: tuple[str, ...] | None = None,
    precisions: tuple[str, ...] | None = None,
    seed: int = 0,
    tune_kernels: bool = True,
    progress: Progress | None = None,
) -> StudyOutcome:
    """Search for the fastest plan of ``model`` and store it; a finished study of the same inputs answers at once.

    ``budget`` is seconds or text such as ``10m``; ``objective`` a name, or an Objective with its accuracy limits;
    ``constraints`` those limits as a study file has them (``{"signal_error": 0.01}``). Without ``tune_kernels`` kernels
    are taken as the database knows them. If the finals could not decide, the outcome's ``status`` is ``undecided`` and
    its ``plan`` the earlier one, or None. The model, its inputs and the random state stay as they were, except that
    lazy layers are initialised. Raises RequestError if the request is wrong, WorkError if the work failed.
    """
    from autotune.database.store import Store

    with Store.open(db) as store:
        prepared, request = _asked(
            model, inputs, device=device, name=name, seed=seed, objective=objective, constraints=constraints,
            budget=budget, trials=trials, serve_as=serve_as, backends=backends, precisions=precisions,
            tune_kernels=tune_kernels,
        )  # fmt: skip
        return _searched(store, prepared, request, progress or Silent())


def load(
    model: "torch.nn.Module",
    inputs: Any,
    *,
    device: str | None = None,
    db: str | None = None,
    name: str | None = None,
    objective: str | Objective = "latency_p50",
    constraints: Mapping[str, Any] | None = None,
    serve_as: str = "any",
    rebuild: bool = True,
    verify: bool = True,
) -> "OptimizedModel":
    """Return the stored plan for ``model``, answering in the model's own form; never searches.

    With other weights of the same structure, or under a changed toolchain, the stored configuration is built and judged
    again, unless ``rebuild`` is false; processes that need the same one take turns, and one of them builds. With
    ``verify`` the plan is held against the model on ``inputs`` before it is returned; ``seconds`` of the result says
    what that and the rest cost. Raises PlanNotFoundError, which says what differs, if no plan answers; ArtifactError if
    what was found does not answer like the model.
    """
    from autotune.database.location import locate
    from autotune.database.store import Store

    place = locate(db)
    if place.file is not None and not place.file.exists():
        raise PlanNotFoundError(
            "no stored plan answers", found=f"no tuning database at {place.shown}",
            expected="the database that a study was stored in (db=, or AUTOTUNE_DB)",
            run="autotune.optimize(model, inputs)",
        )  # fmt: skip
    with Store.open(db, create=False) as store:
        prepared, request = _asked(
            model, inputs, device=device, name=name, seed=0, objective=objective, constraints=constraints,
            serve_as=serve_as,
        )  # fmt: skip
        plan, seconds = _usable(store, prepared, request, rebuild=rebuild, progress=Silent())
        return _opened(plan, store, prepared, seconds, verify=verify)


def _asked(
    model: "torch.nn.Module",
    inputs: Any,
    *,
    device: str | None,
    name: str | None,
    seed: int,
    objective: str | Objective,
    constraints: Mapping[str, Any] | None,
    budget: str | float = DEFAULT_BUDGET_S,
    **options: Any,
) -> "tuple[Prepared, StudyRequest]":
    """Capture the module, and say what is asked; whatever is wrong with the request is refused first."""
    from autotune.deploy.prepared import in_memory, prepare

    if isinstance(seed, bool) or not isinstance(seed, int):
        raise RequestError(f"seed {seed!r}", found=type(seed).__name__, expected="a whole number")
    module, found = in_memory(model, device)
    request = StudyRequest(
        name=name or "model", batch=1, device=found, objective=_objective(objective, constraints), seed=seed,
        prepared=NOT_WRITTEN, budget_s=_seconds(budget), **options,
    )  # fmt: skip
    prepared = prepare(module, inputs, device=found, name=name, seed=seed)
    request.objective.refuse_other_outputs(prepared.captured.form.names)
    return prepared, replace(request, name=prepared.name, batch=prepared.batch)


def _usable(
    store: "Store", prepared: "Prepared", request: StudyRequest, *, rebuild: bool, progress: Progress
) -> "tuple[Plan, dict[str, float]]":
    """Return the stored plan with an artifact that fits, built again if it must be, and what took how long.

    Raises PlanNotFoundError.
    """
    from autotune.deploy.miss import not_found, unusable

    if request.objective.metrics:
        request = _with_metric_code(prepared, request)
    begin = time.perf_counter()
    plan = store.plans.find(prepared.key(request), prepared.captured.workload.weights)
    if plan is None:
        raise not_found(store, prepared, prepared.key(request))
    plan = replace(plan, device=request.device)
    wrong = _wrong(plan, store, prepared)
    seconds = {"look_up": time.perf_counter() - begin}
    if not wrong:
        return plan, seconds
    read_only = store.read_only or store.artifacts.read_only
    if not rebuild or read_only:
        why = "but this database is read-only" if read_only else "but rebuild=False forbids it"
        run = "autotune.load with db= a copy that can be written" if read_only else "autotune.load(model, inputs)"
        raise unusable(prepared, plan, wrong, why, run)
    begin = time.perf_counter()
    again = _rebuilt(store, prepared, request, plan, progress)
    return again, {**seconds, "rebuild": time.perf_counter() - begin}


def _rebuilt(store: "Store", prepared: "Prepared", request: StudyRequest, plan: "Plan", progress: Progress) -> "Plan":
    """Build a stored plan again for the module, once for all processes that need it; raises PlanNotFoundError."""
    from autotune.deploy.miss import unusable
    from autotune.deploy.prepared import rebuild_key

    workload = prepared.captured.workload
    with store.artifacts.turn(rebuild_key(prepared, plan.uid)):
        known = store.plans.find(prepared.key(request), workload.weights)
        plan = plan if known is None else replace(known, device=request.device)
        wrong = _wrong(plan, store, prepared)
        if not wrong:
            return plan  # another process has built it meanwhile
        said = _Said(progress)
        with _study(store, prepared, request, said, plan, message_reporter(progress)) as study:
            again = study.rebuild(plan, workload)
        if again is None:
            raise unusable(prepared, plan, wrong, f"which was tried: {said.last}", "autotune.optimize(model, inputs)")
        return replace(cast("Plan", again), device=request.device)


class _Said:
    """Passes events on, and keeps the last message for an error."""

    def __init__(self, progress: Progress) -> None:
        self._progress, self.last = progress, "it does not hold"

    def event(self, kind: str, **data: Any) -> None:
        if kind == "message":
            self.last = str(data["text"])
        self._progress.event(kind, **data)


@contextlib.contextmanager
def _study(
    store: "Store", prepared: "Prepared", request: StudyRequest, progress: Progress, plan: "Plan",
    tell: Callable[[str], None] | None,
) -> Iterator[Any]:  # fmt: skip
    """A study of the module that only rebuilds; a plan that runs the factory's module gets the factory with it."""
    from autotune.execute.server import WorkerServer
    from autotune.kernels.executor import STEPS
    from autotune.study.study import Study

    factory, seed = _factory_of(store, plan)
    with ScratchFolder("rebuild") as folder:
        model = prepared.write(folder / "model", factory=factory, seed=seed)
        with WorkerServer(folder, steps=STEPS, work=request.name, tell=tell) as server:
            yield Study(replace(request, prepared=model), store, progress, server, folder, threading.Event())


def _factory_of(store: "Store", plan: "Plan") -> tuple[str | None, int | None]:
    """The factory and the seed of the study that found a plan, if the plan or the rival of its finals needs them.

    A plan of form ``module`` runs the factory's module; one with tuned kernels may have to be timed against it again.
    """
    from autotune.kernel import wants_kernels

    if plan.configuration.get("form", "") != "module" and not wants_kernels(plan.configuration):
        return None, None
    try:
        row = store.studies.get(plan.evidence.study or "")
    except ValueError:
        return None, None
    factory = row.settings.get("factory")
    return (str(factory), row.seed) if factory else (None, None)


def _searched(store: "Store", prepared: "Prepared", request: StudyRequest, progress: Progress) -> StudyOutcome:
    from autotune.study.study import run_study

    with ScratchFolder("model") as folder:
        return run_study(replace(request, prepared=prepared.write(folder / "model")), store, progress)


def _in_force(outcome: StudyOutcome, store: "Store", prepared: "Prepared") -> "Plan":
    """The plan that a study leaves in force; raises UndecidedError if there is none that serves the module."""
    plan = outcome.plan
    if plan is not None and not outcome.undecided:
        return plan
    if plan is None or _wrong(plan, store, prepared):
        raise UndecidedError(
            f"{outcome.name}: the finals could not decide", found=outcome.reason,
            expected="a host that is quiet enough to measure on", run=outcome.run,
        )  # fmt: skip
    log.warning(
        "%s: the finals could not decide (%s), so the earlier plan is used; run again: %s",
        outcome.name, outcome.reason, outcome.run,
    )  # fmt: skip
    return plan


def _wrong(plan: "Plan", store: "Store", prepared: "Prepared") -> list[tuple[str, str, str]]:
    """Why a plan's artifact does not serve the module as it is; empty if it does."""
    from autotune import registry
    from autotune.runtime import toolchain
    from autotune.study.cache import misfits

    names = registry.backend(plan.configuration.backend).toolchain
    workload, form = prepared.captured.workload, prepared.captured.form.digest
    return misfits(plan, workload.weights, form, toolchain.current(plan.device, names), store)


def _with_metric_code(prepared: "Prepared", request: StudyRequest) -> StudyRequest:
    """The request with what the code of its metrics is, which a worker finds out: it is the user's own code."""
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
    """Load a plan for the module: it answers in the module's own form, and is held against it."""
    from autotune.deploy.model import open_plan, verified

    begin = time.perf_counter()
    fast = open_plan(plan, store, prepared.captured.form, prepared.captured.inputs)
    spent = {**prepared.seconds, **seconds, "open": time.perf_counter() - begin}
    if verify:
        begin = time.perf_counter()
        verified(fast, prepared)
        spent["verify"] = time.perf_counter() - begin
    fast.seconds = spent
    log.info("%s: %s", plan.name, ", ".join(f"{what} {taken * 1e3:.1f} ms" for what, taken in spent.items()))
    return fast


def _objective(given: str | Objective, constraints: Mapping[str, Any] | None) -> Objective:
    """The objective with its constraints; both are refused as a study file refuses them."""
    from autotune.study.file import read_constraints

    if isinstance(given, Objective) and constraints is not None:
        raise RequestError(
            "constraints stand in the objective already", found="an Objective, and constraints beside it",
            expected="an Objective, or its name with constraints={...}",
        )  # fmt: skip
    try:
        objective = given if isinstance(given, Objective) else Objective(name=given)
    except ValueError as error:
        raise RequestError(f"objective {given!r}", found=str(error), expected="a name of autotune.Objective") from error
    return objective if constraints is None else read_constraints(objective.name, constraints, Path.cwd())


def _seconds(budget: str | float) -> float:
    from autotune.study.values import parse_duration

    if isinstance(budget, int | float):
        return float(budget)
    try:
        return parse_duration(budget)
    except ValueError as error:
        raise RequestError(f"budget {budget!r}", found=str(error), expected="such as 90s, 3m or 1h30m") from error
