"""A pass that removes operators whose result equals an argument, bit by bit."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from autotune.backends.native.graph import (
    Pass,
    aten,
    constant,
    may_replace,
    reaches_output,
    replace,
    same_layout,
    value,
)
from autotune.backends.native.refusals import refuse

_VIEWS = {aten.view.default, aten._unsafe_view.default, aten.expand.default, aten.slice.Tensor, aten.select.int}
_VIEWS |= {aten.transpose.int, aten.permute.default, aten.t.default, aten.alias.default, aten.detach.default}
_VIEWS |= {aten.unsqueeze.default, aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims}
"""Operators that return the memory of their first argument, bit by bit, and never copy or convert it."""

_PADS = {aten.pad.default, aten.constant_pad_nd.default}


def identities(module: GraphModule) -> int:
    """Remove multiplications by one, neutral sums, copies, pads and views without effect; returns their number.

    A dropout in evaluation mode is a copy in a functional graph.
    """
    removed = 0
    for node in list(module.graph.nodes):
        if _gathered(module, node):
            removed += 1
            continue
        source = _arithmetic(module, node) or _copied(node) or _same_view(node)
        if source is None:
            continue
        if not same_layout(value(node), value(source)):
            refuse(node, "its operand has other strides, another type or another shape")
        elif not may_replace(node, source):
            refuse(node, "an output would share memory with another tensor")
        else:
            replace(node, source)
            removed += 1
    return removed


def _gathered(module: GraphModule, node: Node) -> bool:
    """Replace a gather by a view if its constant indices select each element once, in order."""
    if node.target is not aten.index.Tensor:
        return False
    source, indices = node.args
    meta, answer = value(source), value(node)
    places = [constant(module, one) for one in indices]  # type: ignore[union-attr]
    if meta is None or answer is None or not meta.is_contiguous() or not answer.is_contiguous() or reaches_output(node):
        return False
    if meta.numel() != answer.numel() or any(one is None or one.is_floating_point() for one in places):
        return False
    numbers = torch.arange(meta.numel()).reshape(meta.shape)
    if not torch.equal(numbers[tuple(one.cpu() for one in places if one is not None)].flatten(), numbers.flatten()):
        return False
    with node.graph.inserting_before(node):
        view = node.graph.call_function(aten.view.default, (source, list(answer.shape)))
    view.meta = dict(node.meta)
    replace(node, view)
    return True


def _arithmetic(module: GraphModule, node: Node) -> Node | None:
    """Return the operand whose values a sum, product or quotient keeps; its dtype and shape are not compared yet."""
    positions: tuple[int, ...]
    if node.target in (aten.mul.Tensor, aten.mul.Scalar):
        positions, holds = (0, 1), _is_one
    elif node.target in (aten.div.Tensor, aten.div.Scalar):  # without a rounding mode
        positions, holds = (1,), _is_one
    elif node.target in (aten.add.Tensor, aten.add.Scalar) and _unscaled(node):
        positions, holds = (0, 1), _adds_nothing
    elif node.target in (aten.sub.Tensor, aten.sub.Scalar) and _unscaled(node):
        positions, holds = (1,), _takes_nothing
    else:
        return None
    for position in positions:
        left, operand = node.args[1 - position], _operand(module, node.args[position])
        meta = value(left)
        if isinstance(left, Node) and meta is not None and operand is not None and holds(operand, meta):
            return left
    return None


def _unscaled(node: Node) -> bool:
    alpha = node.args[2] if len(node.args) > 2 else node.kwargs.get("alpha", 1)
    return bool(alpha == 1)


def _operand(module: GraphModule, argument: object) -> Tensor | None:
    if isinstance(argument, float):
        return torch.tensor(argument, dtype=torch.float64)  # in float32 a number close to 1 would be 1
    return torch.tensor(argument) if isinstance(argument, bool | int) else constant(module, argument)


def _is_one(operand: Tensor, meta: Tensor) -> bool:
    return bool((operand == 1).all())


def _adds_nothing(operand: Tensor, meta: Tensor) -> bool:
    """Return true if x plus the operand is x; for floats only with -0.0, because -0.0 + 0.0 is 0.0."""
    zero = operand == 0
    return bool((zero & operand.signbit() if meta.is_floating_point() else zero).all())


def _takes_nothing(operand: Tensor, meta: Tensor) -> bool:
    """Return true if x minus the operand is x; for floats not with -0.0, because -0.0 - -0.0 is 0.0."""
    zero = operand == 0
    return bool((zero & ~operand.signbit() if meta.is_floating_point() else zero).all())


def _copied(node: Node) -> Node | None:
    """Return the operand of a copy, or of a pad that adds nothing."""
    adds_nothing = node.target in _PADS and not any(cast("Sequence[int]", node.args[1]))
    source = node.args[0] if adds_nothing or node.target is aten.clone.default else None
    return source if isinstance(source, Node) else None


def _same_view(node: Node) -> Node | None:
    """Return the nearest source of a chain of views that has the same layout as the last of them."""
    source: object = node
    while isinstance(source, Node) and source.target in _VIEWS:
        source = source.args[0]
        if isinstance(source, Node) and same_layout(value(node), value(source)):
            return source
    return None


IDENTITIES = Pass(name="identities", apply=identities)
