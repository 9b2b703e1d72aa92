"""What a step may say to the coordinator: one table of shapes, checked here and nowhere else.

A message names the step that it comes from by the identity that was given to it, and says exactly one thing. Whatever
prints, forges or breaks in a candidate, what comes through is of these shapes.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, get_args

from autotune.execute.channel import IDENTITY, NotOurs
from autotune.measure.block import Block
from autotune.records.trial import Failure, FailureKind, Measurement, Stage

WAIT = "wait"
"""The stage of a step that waits until the device is free; where it fails then, it fails in the stage before.

It may come with the line that says who has the device (``holder``) and the process ids of all who have it (``pids``).
"""
HOLDER_LIMIT = 2000


def checked(message: Mapping[str, Any], identity: str, step: str) -> dict[str, Any]:
    """The message without its identity; raises NotOurs where it is another step's, or of no known shape."""
    said = {name: value for name, value in message.items() if name != IDENTITY}
    if message.get(IDENTITY) != identity:
        raise NotOurs("a message came in the name of another step", found=f"{sorted(said)[:4]}")
    for name, shape in _SHAPES.items():
        if name in said:
            try:
                fits = shape(said) and (name != "result" or _fits(said["result"], step))
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise NotOurs(f"the {name} that a step told is of the wrong shape", found=str(error)) from error
            if not fits:
                raise NotOurs(f"the {name} that a step told is of the wrong shape", found=repr(said)[:200])
            return said
    raise NotOurs("a step told what nobody asked for", found=f"{sorted(said)[:4]}", expected=", ".join(_SHAPES))


def _stage(said: Mapping[str, Any]) -> bool:
    told = said.keys() - {"stage", "at"}
    return (
        "at" in said
        and said["stage"] in (*get_args(Stage), WAIT)
        and _finite(said["at"])
        and (not told or (said["stage"] == WAIT and told == {"holder", "pids"} and _waiting(said)))
    )


def _waiting(said: Mapping[str, Any]) -> bool:
    """Whether it names a line to be shown, and a list of process ids."""
    holder, pids = said["holder"], said["pids"]
    line = isinstance(holder, str) and len(holder) <= HOLDER_LIMIT and holder.isprintable()
    return line and isinstance(pids, list) and all(type(pid) is int and pid > 0 for pid in pids)


def _error(said: Mapping[str, Any]) -> bool:
    error = said["error"]
    raised = error.get("raised", ["", "", "", "", ""])
    return (
        said.keys() == {"error"}
        and error.keys() <= {"kind", "detail", "raised"}
        and error["kind"] in get_args(FailureKind)
        and isinstance(error["detail"], str)
        and len(raised) == 5
        and all(isinstance(part, str) for part in raised)
    )


def _rounds(said: Mapping[str, Any]) -> bool:
    for one in said["rounds"]:
        for block in one.values():
            Block.from_dict(block)
    return said.keys() == {"rounds"}


def _kernel(said: Mapping[str, Any]) -> bool:
    told = said["kernel"]
    error, samples_us = told.get("error"), told.get("samples_us", ())
    if "failure" in told:
        Failure(**told["failure"])
    return (
        said.keys() == {"kernel"}
        and told.keys() <= {"candidate", "error", "made", "samples_us", "conditions", "failure"}
        and isinstance(told["candidate"], str)
        and (error is None or (_finite(error) and error >= 0))
        and ("failure" in told) != bool(samples_us)
        and all(_finite(sample) and sample > 0 for sample in samples_us)
        and all(isinstance(name, str) and _finite(figure) for name, figure in told.get("made", {}).items())
        and isinstance(told.get("conditions", {}), dict)
    )


def _only(name: str, kind: type) -> Callable[[Mapping[str, Any]], bool]:
    return lambda said: said.keys() == {name} and isinstance(said[name], kind)


_SHAPES: Mapping[str, Callable[[Mapping[str, Any]], bool]] = {
    "stage": _stage,
    "error": _error,
    "rounds": _rounds,
    "result": _only("result", dict),
    "loaded": _only("loaded", bool),
    "ready": _only("ready", bool),
    "turn": _only("turn", str),
    "kernel": _kernel,
    "utilisation": _only("utilisation", dict),
}

_RESULTS: Mapping[str, Mapping[str, type | tuple[type, ...]]] = {
    "prepare": {"workload": dict, "imported": list, "read": dict, "notes": list},
    "metrics": {"metrics": list},
    "build": {"build_s": float, "kernels": str},
    "measure": {},
    "features": {"features": dict},
    "problems": {"problems": list},
    "footprint": {"samples_ms": list, "memory": dict},
    "compile_kernels": {"made": list},
    "time_kernels": {"timed": int},
    "prove": {"signal_error": float, "configuration": str},
}
"""What the result of a step has to hold; of others, and beyond that, anything."""


def _fits(result: Mapping[str, Any], step: str) -> bool:
    if "measurement" in result:
        Measurement.from_dict(result["measurement"])
    if "failure" in result:
        Failure(**result["failure"])
    return all(isinstance(result[name], kind) for name, kind in _RESULTS.get(step, {}).items())


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
