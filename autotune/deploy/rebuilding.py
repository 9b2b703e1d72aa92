"""A stored plan, built again for a module whose artifact does not serve it: misfits_of, rebuilt."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from autotune.progress import Progress, message_sender
from autotune.scratch import ScratchFolder
from autotune.study.request import StudyRequest

if TYPE_CHECKING:
    from autotune.database.store import Store
    from autotune.deploy.prepared import Prepared
    from autotune.records.plan import Plan
    from autotune.study.study import Study


def rebuilt(store: "Store", prepared: "Prepared", request: StudyRequest, plan: "Plan", progress: Progress) -> "Plan":
    """Build a stored plan again for the module, once for all processes that need it; raises PlanNotFoundError."""
    from autotune.deploy.miss import unusable
    from autotune.deploy.prepared import rebuild_key

    workload = prepared.captured.workload
    with store.artifacts.turn(rebuild_key(prepared, plan.uid)):
        present = store.plans.find(prepared.key(request), workload.weights)
        plan = plan if present is None else replace(present, device=request.device)
        differences = misfits_of(plan, store, prepared)
        if not differences:
            return plan  # another process has built it meanwhile
        messages = _Messages(progress)
        with _study(store, prepared, request, messages, plan, message_sender(progress)) as study:
            rebuilt = study.rebuild(plan, workload)
        if rebuilt is None:
            why = f"which was tried: {messages.last}"
            raise unusable(prepared, plan, differences, why, "autotune.optimize(model, inputs)")
        return replace(rebuilt, device=request.device)


class _Messages:
    """Passes events on, and keeps the last message for an error."""

    def __init__(self, progress: Progress) -> None:
        self._progress, self.last = progress, "it does not hold"

    def event(self, kind: str, **data: object) -> None:
        if kind == "message":
            self.last = str(data["text"])
        self._progress.event(kind, **data)


@contextlib.contextmanager
def _study(
    store: "Store", prepared: "Prepared", request: StudyRequest, progress: Progress, plan: "Plan",
    tell: Callable[[str], None] | None,
) -> "Iterator[Study]":  # fmt: skip
    """Yield a study of the module that only rebuilds; it has the factory if the plan runs the factory's module."""
    from autotune.execute.server import WorkerServer
    from autotune.kernels.executor import STEPS
    from autotune.study.study import Study

    factory, seed = _factory_of(store, plan)
    with ScratchFolder("rebuild") as folder:
        model = prepared.write(folder / "model", factory=factory, seed=seed)
        with WorkerServer(folder, steps=STEPS, work=request.name, tell=tell) as server:
            yield Study(replace(request, prepared=model), store, progress, server, folder, threading.Event())


def _factory_of(store: "Store", plan: "Plan") -> tuple[str | None, int | None]:
    """Return the factory and the seed of a plan's study if a rebuild needs them, else twice ``None``.

    A plan of form ``module`` runs the factory's module; one with tuned kernels may have to be timed against it again.
    """
    from autotune.kernel import wants_kernels
    from autotune.model import model_file

    if plan.configuration.get("form", "") != "module" and not wants_kernels(plan.configuration):
        return None, None
    try:
        row = store.studies.get(plan.evidence.study or "")
    except ValueError:
        return None, None
    factory = row.settings.get("factory")
    # The file of a study has its own weights, and the module at hand may have others.
    return (str(factory), row.seed) if factory and not model_file.is_file(str(factory)) else (None, None)


def misfits_of(plan: "Plan", store: "Store", prepared: "Prepared") -> list[tuple[str, str, str]]:
    """Return the reasons why a plan's artifact does not serve the module, see :func:`misfits`; empty if it does."""
    from autotune import registry
    from autotune.runtime import toolchain
    from autotune.study.cache import misfits

    names = registry.backend(plan.configuration.backend).toolchain
    workload, form = prepared.captured.workload, prepared.captured.form.digest
    return misfits(plan, workload.weights, form, toolchain.current(plan.device, names), store)
