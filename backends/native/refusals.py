"""Reasons why an operator was not fused or got no kernel, reported by the function that decided it."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal

from torch.fx import Node

from autotune.records.graph_coverage import OperatorRefusal

Refused = dict[Node, list[OperatorRefusal]]
"""The refusals of each operator in the order in which they were reported, each once."""

_recorded: ContextVar[Refused | None] = ContextVar("recorded", default=None)


@contextmanager
def recording() -> Iterator[Refused]:
    """Record all refusals within the block."""
    refused: Refused = {}
    token = _recorded.set(refused)
    try:
        yield refused
    finally:
        _recorded.reset(token)


def refuse(node: Node, reason: str) -> Literal[False]:
    """Report that the calling function leaves ``node`` as it is; returns false, for functions that return that.

    Nothing is kept outside of :func:`recording`.
    """
    refused = _recorded.get()
    if refused is not None:
        caller = sys._getframe(1)
        module = str(caller.f_globals["__name__"]).rpartition(".")[2]
        refusal = OperatorRefusal(function=f"{module}.{caller.f_code.co_name}", reason=reason)
        if refusal not in refused.setdefault(node, []):
            refused[node].append(refusal)
    return False


def operator_name(node: Node) -> str:
    """Return an operator's name without its namespace and overload, such as ``hardtanh``; a conversion is a cast."""
    schema = getattr(node.target, "_schema", None)
    name = str(getattr(node.target, "__name__", node.target)) if schema is None else schema.name.rpartition("::")[2]
    return "cast" if name == "_to_copy" else name
