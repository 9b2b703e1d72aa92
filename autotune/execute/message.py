"""The messages that a step may send to the coordinator: one table of shapes, checked here and nowhere else.

A message names the step that it comes from by the identity that the step was given, and reports exactly one thing.
Whatever a candidate prints, forges or breaks, only messages of these shapes come through.
"""

import math
from collections.abc import Callable, Mapping
from typing import get_args

from autotune.errors import WorkerError
from autotune.execute.answers import ANSWERS
from autotune.execute.channel import IDENTITY, Message, NotOurs
from autotune.measure.block import Block
from autotune.records.trial import Failure, FailureKind, Stage

WAIT = "wait"
"""The stage of a step that waits until the device is free; if it fails then, it fails in the stage before.

It may come with a line about the processes that have the device (``holder``), and their process ids (``pids``).
"""
HOLDER_LIMIT = 2000

Shape = Callable[[Message], bool]
"""Returns whether a message, without its identity, has the shape of its kind; it may raise instead."""


def checked(message: Message, identity: str, step: str) -> Message:
    """Return the message without its identity; raises NotOurs if it is another step's, or of no shape in the table."""
    content = {name: value for name, value in message.items() if name != IDENTITY}
    if message.get(IDENTITY) != identity:
        raise NotOurs("a message came in the name of another step", found=f"{sorted(content)[:4]}")
    for name, has_shape in _SHAPES.items():
        if name in content:
            try:
                fits = has_shape(content) and (name != "result" or _fits(content["result"], step))
            except WorkerError as error:
                raise NotOurs(error.asked, found=error.found, expected=error.expected, run=error.run) from error
            except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
                raise NotOurs(f"the {name} of a step is of the wrong shape", found=str(error)) from error
            if not fits:
                raise NotOurs(f"the {name} of a step is of the wrong shape", found=repr(content)[:200])
            return content
    raise NotOurs("a step sent a message of no kind", found=f"{sorted(content)[:4]}", expected=", ".join(_SHAPES))


def _stage(message: Message) -> bool:
    beside = message.keys() - {"stage", "at"}
    return (
        "at" in message
        and message["stage"] in (*get_args(Stage), WAIT)
        and _finite(message["at"])
        and (not beside or (message["stage"] == WAIT and beside == {"holder", "pids"} and _waiting(message)))
    )


def _waiting(message: Message) -> bool:
    """Return whether the message holds a line to be shown, and a list of process ids."""
    holder, pids = message["holder"], message["pids"]
    is_line = isinstance(holder, str) and len(holder) <= HOLDER_LIMIT and holder.isprintable()
    return is_line and isinstance(pids, list) and all(type(pid) is int and pid > 0 for pid in pids)


def _error(message: Message) -> bool:
    error = message["error"]
    raised = error.get("raised", ["", "", "", "", ""])
    return (
        message.keys() == {"error"}
        and error.keys() <= {"kind", "detail", "raised"}
        and error["kind"] in get_args(FailureKind)
        and isinstance(error["detail"], str)
        and len(raised) == 5
        and all(isinstance(part, str) for part in raised)
    )


def _rounds(message: Message) -> bool:
    for blocks in message["rounds"]:
        for block in blocks.values():
            Block.from_dict(block)
    return message.keys() == {"rounds"}


def _kernel(message: Message) -> bool:
    kernel = message["kernel"]
    error, samples_us = kernel.get("error"), kernel.get("samples_us", ())
    if "failure" in kernel:
        Failure(**kernel["failure"])
    return (
        message.keys() == {"kernel"}
        and kernel.keys() <= {"candidate", "error", "made", "samples_us", "conditions", "failure"}
        and isinstance(kernel["candidate"], str)
        and (error is None or (_finite(error) and error >= 0))
        and ("failure" in kernel) != bool(samples_us)
        and all(_finite(sample) and sample > 0 for sample in samples_us)
        and all(isinstance(name, str) and _finite(figure) for name, figure in kernel.get("made", {}).items())
        and isinstance(kernel.get("conditions", {}), dict)
    )


def _only(name: str, kind: type) -> Shape:
    return lambda message: message.keys() == {name} and isinstance(message[name], kind)


_SHAPES: Mapping[str, Shape] = {
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
    "compile_kernels": {"made": list},
    "time_kernels": {"timed": int},
}
"""The content of the results of steps of tuned kernels; the answers of other steps are :data:`ANSWERS`."""


def _fits(result: Mapping[str, object], step: str) -> bool:
    """Return whether a result is an answer of the step; the result of a step that is in no table may hold anything."""
    if step in ANSWERS:
        ANSWERS[step].from_dict(result)
    return all(isinstance(result[name], kind) for name, kind in _RESULTS.get(step, {}).items())


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
