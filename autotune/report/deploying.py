"""The command that deploys the plan of a study, without any search."""

from pathlib import Path

from autotune.database.location import locate
from autotune.records.device import Device
from autotune.records.objective import Objective
from autotune.records.plan import Plan


def deploy_command(study: Path, plan: Plan, device: Device, database: str | None) -> str:
    """Return a shell command that loads a plan for the model of a study file on a device, and calls it once.

    ``database`` is the value of ``--db``. The command has no password of a database: its user adds it. Options with
    their default values are left out.
    """
    return _command(
        f"model, inputs = autotune.from_study({str(study.resolve())!a}, batch={plan.batch})  # or your own",
        f"fast = autotune.load(model, inputs{_options(plan, device, database)})",
        "print(fast, fast(**inputs), sep='\\n')",
    )


def deploy_by_name_command(plan: Plan, device: Device, database: str | None) -> str:
    """Return a shell command that loads a plan by its name, without the model; see :func:`deploy_command`."""
    return _command(
        f"fast = autotune.load({plan.name!a}, batch={plan.batch}{_options(plan, device, database)})",
        "print(fast)  # call it with the inputs of the model",
    )


def _command(*lines: str) -> str:
    return "\n".join(["python - <<'END'", "import autotune", *lines, "END"])


def _options(plan: Plan, device: Device, database: str | None) -> str:
    """Return the options of a load that are not the default, as text after other arguments."""
    options: dict[str, object] = {"device": device.torch_name} if device.kind == "cuda" else {}
    if plan.objective.name != Objective().name:
        options["objective"] = plan.objective.name
    if limits := _constraints(plan.objective):
        options["constraints"] = limits
    if plan.serve_as != "any":
        options["serve_as"] = plan.serve_as
    if database is not None:
        options["db"] = locate(database).shown
    return "".join(f", {name}={value!a}" for name, value in options.items())


def _constraints(objective: Objective) -> dict[str, object]:
    """Return the constraints that differ from their defaults, in the form of a study file."""
    defaults = Objective()
    limits: dict[str, object] = {}
    if objective.signal_error_by_output:
        limits["signal_error"] = {"default": objective.signal_error, **dict(objective.signal_error_by_output)}
    elif objective.signal_error != defaults.signal_error:
        limits["signal_error"] = objective.signal_error
    if objective.integer_agreement != defaults.integer_agreement:
        limits["integer_agreement"] = objective.integer_agreement
    if objective.metrics:
        limits["metrics"] = [
            {"function": metric.function, **_bound(metric.at_most, "at_most"), **_bound(metric.at_least, "at_least")}
            for metric in objective.metrics
        ]
    return limits


def _bound(value: float | None, name: str) -> dict[str, float]:
    return {} if value is None else {name: value}
