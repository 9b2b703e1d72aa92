"""Operators that give back what they were given, bit by bit."""

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

_VIEWS = {aten.view.default, aten._unsafe_view.default, aten.expand.default, aten.slice.Tensor, aten.select.int}
_VIEWS |= {aten.transpose.int, aten.permute.default, aten.t.default, aten.alias.default, aten.detach.default}
_VIEWS |= {aten.unsqueeze.default, aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims}
"""Operators that show the memory of their first argument, bit by bit, and never copy or convert it."""


def identities(module: GraphModule) -> int:
    """Take out multiplications by one, neutral sums, copies and views that change nothing; returns how many.

    A dropout in evaluation is a copy in a functional graph.
    """
    taken = 0
    for node in list(module.graph.nodes):
        if _gathered(module, node):
            taken += 1
            continue
        source = _arithmetic(module, node) or _copied(node) or _seen_again(node)
        if source is not None and same_layout(value(node), value(source)) and may_replace(node, source):
            replace(node, source)
            taken += 1
    return taken


def _gathered(module: GraphModule, node: Node) -> bool:
    """Look at a tensor in another shape where constant indices would gather each of its elements in their order."""
    if node.target is not aten.index.Tensor:
        return False
    source, given = node.args
    like, answer = value(source), value(node)
    places = [constant(module, one) for one in given]  # type: ignore[union-attr]
    if like is None or answer is None or not like.is_contiguous() or not answer.is_contiguous() or reaches_output(node):
        return False
    if like.numel() != answer.numel() or any(one is None or one.is_floating_point() for one in places):
        return False
    numbers = torch.arange(like.numel()).reshape(like.shape)
    if not torch.equal(numbers[tuple(one.cpu() for one in places if one is not None)].flatten(), numbers.flatten()):
        return False
    with node.graph.inserting_before(node):
        view = node.graph.call_function(aten.view.default, (source, list(answer.shape)))
    view.meta = dict(node.meta)
    replace(node, view)
    return True


def _arithmetic(module: GraphModule, node: Node) -> Node | None:
    """The operand that a sum, product or quotient leaves as it is; its dtype and shape are yet to be compared."""
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
        like = value(left)
        if isinstance(left, Node) and like is not None and operand is not None and holds(operand, like):
            return left
    return None


def _unscaled(node: Node) -> bool:
    alpha = node.args[2] if len(node.args) > 2 else node.kwargs.get("alpha", 1)
    return bool(alpha == 1)


def _operand(module: GraphModule, argument: object) -> Tensor | None:
    if isinstance(argument, float):
        return torch.tensor(argument, dtype=torch.float64)  # as float32 a number close to one would be one
    return torch.tensor(argument) if isinstance(argument, bool | int) else constant(module, argument)


def _is_one(operand: Tensor, like: Tensor) -> bool:
    return bool((operand == 1).all())


def _adds_nothing(operand: Tensor, like: Tensor) -> bool:
    """Whether x plus the operand is x; among floats only with -0.0, because -0.0 + 0.0 is 0.0."""
    zero = operand == 0
    return bool((zero & operand.signbit() if like.is_floating_point() else zero).all())


def _takes_nothing(operand: Tensor, like: Tensor) -> bool:
    """Whether x minus the operand is x; among floats not with -0.0, because -0.0 - -0.0 is 0.0."""
    zero = operand == 0
    return bool((zero & ~operand.signbit() if like.is_floating_point() else zero).all())


def _copied(node: Node) -> Node | None:
    source = node.args[0] if node.target is aten.clone.default else None
    return source if isinstance(source, Node) else None


def _seen_again(node: Node) -> Node | None:
    """The nearest tensor behind a chain of views at which the last of them looks in the very same way."""
    behind: object = node
    while isinstance(behind, Node) and behind.target in _VIEWS:
        behind = behind.args[0]
        if isinstance(behind, Node) and same_layout(value(node), value(behind)):
            return behind
    return None


IDENTITIES = Pass(name="identities", apply=identities)
