"""Reading nodes in fusion passes: arguments by name, numbers that are stored as tensors, casts, and users."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.fx import GraphModule, Node

from autotune.backends.native.graph import aten, constant, put_in_place, value

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def arguments(node: Node) -> dict[str, Any]:
    """Return the arguments of an operator by the names of its schema, defaults included."""
    assert isinstance(node.target, torch._ops.OpOverload)
    schema = node.target._schema.arguments
    given = {argument.name: one for argument, one in zip(schema, node.args, strict=False)}
    return {argument.name: argument.default_value for argument in schema} | given | dict(node.kwargs)


def number(module: GraphModule, operand: object) -> float | None:
    """Return an operand's finite number, in the graph or stored as a tensor without dimensions; else ``None``."""
    if isinstance(operand, bool) or not isinstance(operand, int | float | Node):
        return None
    if isinstance(operand, Node):
        tensor = constant(module, operand)
        if tensor is None or tensor.dim() or not tensor.is_floating_point():
            return None
        operand = tensor.item()
    return operand if math.isfinite(operand) else None


def cast_source(node: object) -> Node | None:
    """Return the operand of a cast from one floating dtype to another that changes nothing else; else ``None``."""
    if not isinstance(node, Node) or node.target is not aten._to_copy.default:
        return None
    source, before, after = node.args[0], value(node.args[0]), value(node)
    if not isinstance(source, Node) or before is None or after is None:
        return None
    if before.dtype not in FLOATS or after.dtype not in FLOATS or before.device != after.device:
        return None
    return source if before.stride() == after.stride() else None


def is_elementwise(node: Node) -> bool:
    """Return true if an operator computes element by element, as torch marks it, or is a cast; false for a copy."""
    is_marked = torch.Tag.pointwise in getattr(node.target, "tags", ()) and node.target is not aten.clone.default
    return is_marked or cast_source(node) is not None


def sole_user(node: Node) -> Node | None:
    """Return the only user of a node, or ``None`` if it has more or fewer."""
    return next(iter(node.users)) if len(node.users) == 1 else None


def call(
    before: Node, operator: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None
) -> Node:
    """Add an operator to the graph; its shape and strides are computed from its arguments'.

    Its module is that of the node that it is inserted before.
    """
    named = dict(kwargs or {})
    with before.graph.inserting_before(before):
        node = before.graph.call_function(operator, args, named)
    node.meta["val"] = operator(*_values(args), **_values(named))
    put_in_place(node, before)
    return node


def _values(given: Any) -> Any:
    return torch.fx.node.map_arg(given, lambda one: one.meta["val"])


def prune(*nodes: object) -> None:
    """Erase operators without users, and operators before them that only they read."""
    waiting = [node for node in nodes if isinstance(node, Node)]
    while waiting:
        node = waiting.pop()
        if node.op == "call_function" and not node.users and not node._erased:
            before = node.all_input_nodes
            node.graph.erase_node(node)
            waiting += before
