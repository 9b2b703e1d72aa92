"""The command that deploys what a study found: exactly its plan, and nothing is searched."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autotune.database.location import locate
from autotune.records.device import Device
from autotune.records.objective import Objective
from autotune.records.plan import Plan


def deploy_command(study: Path, plan: Plan, device: Device, database: str | None) -> str:
    """A command for a shell that loads a plan for a study file's own model on a device, and calls it once.

    ``database`` is what ``--db`` said; a password in it has to be put in again. Whatever is a default is left out.
    """
    options: dict[str, Any] = {"device": device.torch_name} if device.kind == "cuda" else {}
    if plan.objective.name != Objective().name:
        options["objective"] = plan.objective.name
    if limits := _constraints(plan.objective):
        options["constraints"] = limits
    if plan.serve_as != "any":
        options["serve_as"] = plan.serve_as
    if database is not None:
        options["db"] = locate(database).shown
    given = "".join(f", {name}={value!a}" for name, value in options.items())
    return "\n".join(
        [
            "python - <<'END'",
            "import autotune",
            f"model, inputs = autotune.from_study({str(study.resolve())!a}, batch={plan.batch})  # or your own",
            f"fast = autotune.load(model, inputs{given})",
            "print(fast, fast(**inputs), sep='\\n')",
            "END",
        ]
    )


def _constraints(objective: Objective) -> Mapping[str, Any]:
    """What differs from the defaults, as a study file has it."""
    usual = Objective()
    limits: dict[str, Any] = {}
    if objective.signal_error_by_output:
        limits["signal_error"] = {"default": objective.signal_error, **dict(objective.signal_error_by_output)}
    elif objective.signal_error != usual.signal_error:
        limits["signal_error"] = objective.signal_error
    if objective.integer_agreement != usual.integer_agreement:
        limits["integer_agreement"] = objective.integer_agreement
    if objective.metrics:
        limits["metrics"] = [
            {"function": one.function, **_bound(one.at_most, "at_most"), **_bound(one.at_least, "at_least")}
            for one in objective.metrics
        ]
    return limits


def _bound(value: float | None, name: str) -> dict[str, float]:
    return {} if value is None else {name: value}
