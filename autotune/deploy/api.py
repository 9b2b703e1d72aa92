"""The Python interface: optimize, tune, load."""

import copy
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autotune.device import Device, slug
from autotune.errors import PlanNotFoundError, RequestError
from autotune.objective import Objective
from autotune.study_request import DEFAULT_BUDGET_S, DEFAULT_TRIALS, Progress, Silent, StudyOutcome, StudyRequest

if TYPE_CHECKING:
    import torch

    from autotune.database.store import Store
    from autotune.deploy.model import OptimizedModel
    from autotune.plan import Plan
    from autotune.workload import Workload


def optimize(
    model: "torch.nn.Module", inputs: Any, *, device: str | None = None, db: str | None = None, **options: Any
) -> "OptimizedModel":
    """A callable that answers like ``model``: the stored plan where there is one, else what a search finds.

    ``inputs`` are the arguments of one call: a tensor, a tuple, or a dict by parameter name. ``device`` defaults to the
    one the model is on. ``options`` are those of :func:`tune`.
    """
    from autotune.database.store import Store
    from autotune.deploy.model import open_plan

    with Store.open(db) as store, _prepared(model, inputs, device, options) as request:
        plan = _usable(store, request) or _run(store, request, options.get("progress")).plan
        return open_plan(plan, store)


def tune(
    model: "torch.nn.Module",
    inputs: Any,
    *,
    budget: str | float = DEFAULT_BUDGET_S,
    trials: int = DEFAULT_TRIALS,
    objective: str | Objective = "latency_p50",
    device: str | None = None,
    db: str | None = None,
    name: str | None = None,
    serve_as: str = "any",
    backends: tuple[str, ...] | None = None,
    precisions: tuple[str, ...] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> StudyOutcome:
    """Search for the fastest plan of ``model`` and store it; a finished study answers at once.

    ``budget`` is seconds or text such as ``10m``; ``objective`` a name, or an Objective with its accuracy limits.
    Raises RequestError where the request is wrong, WorkError where the work failed.
    """
    from autotune.database.store import Store

    options = {
        "budget": budget, "trials": trials, "objective": objective, "name": name, "serve_as": serve_as,
        "backends": backends, "precisions": precisions, "seed": seed,
    }  # fmt: skip
    with Store.open(db) as store, _prepared(model, inputs, device, options) as request:
        return _run(store, request, progress)


def load(
    model: "torch.nn.Module",
    inputs: Any,
    *,
    device: str | None = None,
    db: str | None = None,
    objective: str | Objective = "latency_p50",
    serve_as: str = "any",
    rebuild: bool = True,
) -> "OptimizedModel":
    """The stored plan for ``model``; never searches.

    With other weights of the same structure, or under a changed toolchain, the stored configuration is built and judged
    again, unless ``rebuild`` is false. Raises PlanNotFoundError where no plan answers.
    """
    from autotune.database.store import Store
    from autotune.deploy.model import open_plan

    options = {"objective": objective, "serve_as": serve_as}
    with Store.open(db) as store, _prepared(model, inputs, device, options) as request:
        plan = _usable(store, request, rebuild=rebuild)
        if plan is None:
            raise PlanNotFoundError(
                f"no stored plan answers {request.name} at batch {request.batch} on {request.device.name}",
                found=f"{len(store.plans())} plans in {store.location}",
                expected="a plan of the same structure, device class, objective and constraints",
                run="autotune.optimize(model, inputs), or autotune plan list",
            )
        return open_plan(plan, store)


def _run(store: "Store", request: StudyRequest, progress: Progress | None) -> StudyOutcome:
    from autotune.study import run_study

    return run_study(request, store, progress or Silent())


def _usable(store: "Store", request: StudyRequest, *, rebuild: bool = True) -> "Plan | None":
    """The stored plan with an artifact that fits, rebuilt where it must be."""
    from autotune.execute.server import WorkerServer
    from autotune.runtime import toolchain
    from autotune.study import Study
    from autotune.study_memory import artifact_fits

    assert request.prepared is not None  # made by _prepared
    workload = _workload(request.prepared)
    plan = store.find_plan(
        workload.structure, request.device.device_class, request.objective, request.serve_as, workload.weights
    )
    if plan is None:
        return None
    plan = replace(plan, device=request.device)
    if artifact_fits(plan, workload.weights, toolchain.current(request.device), store):
        return plan
    if not rebuild:
        return None
    folder = Path(tempfile.mkdtemp(prefix="autotune-"))
    try:
        with WorkerServer(folder) as server:
            study = Study(request, store, Silent(), server, folder, threading.Event())
            shutil.copytree(request.prepared, study.bench.model)
            return study.rebuild(plan, workload)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _prepared(
    model: "torch.nn.Module", inputs: Any, device: str | None, options: dict[str, Any]
) -> Iterator[StudyRequest]:
    """Capture the module in this process, so that workers need nothing of it but files."""
    import torch

    from autotune.execute import steps
    from autotune.model import capture, source
    from autotune.model.inputs import perturbed
    from autotune.model.schema import bind
    from autotune.runtime import discovery

    own = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
    found: Device = discovery.find(device or ("cpu" if own.type == "cpu" else f"cuda:{own.index or 0}"))
    named = {name: tensor.detach().cpu() for name, tensor in bind(model.forward, inputs).items()}
    if own.type != "cpu" or model.training:
        model = copy.deepcopy(model).cpu().eval()
    name = options.get("name") or slug(type(model).__name__)
    batch = next((tensor.shape[0] for tensor in named.values() if tensor.dim()), 1)
    folder = Path(tempfile.mkdtemp(prefix="autotune-model-"))
    seed = int(options.get("seed", 0))
    try:
        captured = capture.capture(name, batch, model, named)
        source.write(folder, captured, named, factory=None, seed=seed)
        steps.write_sets(folder / steps.TIMING, [named, *perturbed(named, steps.TIMING_SETS - 1, seed)])
        steps.write_sets(folder / steps.HELD_OUT, perturbed(named, steps.HELD_OUT_SETS, seed + 1))
        yield StudyRequest(
            name=name, batch=batch, device=found, prepared=folder, objective=_objective(options.get("objective")),
            serve_as=options.get("serve_as", "any"), backends=options.get("backends"),
            precisions=options.get("precisions"), trials=options.get("trials", DEFAULT_TRIALS),
            budget_s=_seconds(options.get("budget", DEFAULT_BUDGET_S)), seed=seed,
        )  # fmt: skip
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _workload(folder: Path) -> "Workload":
    from autotune.model.source import CapturedModel

    return CapturedModel(folder).workload


def _objective(given: str | Objective | None) -> Objective:
    return given if isinstance(given, Objective) else Objective(name=given or "latency_p50")


def _seconds(budget: str | float) -> float:
    from autotune.study_values import parse_duration

    if isinstance(budget, int | float):
        return float(budget)
    try:
        return parse_duration(budget)
    except ValueError as error:
        raise RequestError(f"budget {budget!r}", found=str(error), expected="such as 90s, 3m or 1h30m") from error
