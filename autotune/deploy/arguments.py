"""The arguments of the Python interface as records: objective_of, seconds_of."""

from collections.abc import Mapping
from pathlib import Path

from autotune.errors import RequestError
from autotune.records.objective import Objective


def objective_of(objective: str | Objective, constraints: Mapping[str, object] | None) -> Objective:
    """Return the objective with its constraints; wrong ones are refused as in a study file."""
    from autotune.study.file import read_constraints

    if isinstance(objective, Objective):
        if constraints is not None:
            raise RequestError(
                "constraints stand in the objective already", found="an Objective, and constraints beside it",
                expected="an Objective, or its name with constraints={...}",
            )  # fmt: skip
        return objective
    try:
        record = Objective(name=objective)
    except ValueError as error:
        expected = "a name of autotune.Objective"
        raise RequestError(f"objective {objective!r}", found=str(error), expected=expected) from error
    return record if constraints is None else read_constraints(record.name, constraints, Path.cwd())


def seconds_of(budget: str | float) -> float:
    """Return the seconds of a budget, a number or text such as ``3m``; raises RequestError."""
    from autotune.study.values import parse_duration

    if isinstance(budget, int | float):
        return float(budget)
    try:
        if not isinstance(budget, str):
            raise ValueError(type(budget).__name__)
        return parse_duration(budget)
    except ValueError as error:
        raise RequestError(f"budget {budget!r}", found=str(error), expected="such as 90s, 3m or 1h30m") from error
