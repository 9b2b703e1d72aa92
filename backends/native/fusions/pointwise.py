"""Trees of elementwise operators become one operator, which reads and writes memory once.

A tree has one answer that leaves it; an operator of a smaller shape stays outside, where it is computed once instead of
for each element that it is broadcast to. The operator's answer is contiguous: a tree whose answer is dense in another
order of dimensions (channels last, transposed heads) is computed on permuted views of its inputs, so that its strides
stay; an answer with holes is left alone.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from autotune.backends.native.fusions.reading import FLOATS, arguments, call, cast_source, number
from autotune.backends.native.graph import Fusion, aten, place, replace, value
from autotune.backends.native.pointwise import DTYPES, Operand, Program, Reference, Step

INPUTS = 8
"""How many tensors one operator reads at most."""

_UNARY = {
    aten.neg.default: "neg", aten.exp.default: "exp", aten.log.default: "log", aten.sqrt.default: "sqrt",
    aten.rsqrt.default: "rsqrt", aten.reciprocal.default: "reciprocal", aten.abs.default: "abs",
    aten.tanh.default: "tanh", aten.sigmoid.default: "sigmoid", aten.erf.default: "erf", aten.relu.default: "relu",
    aten.silu.default: "silu", aten.hardswish.default: "hardswish", aten.hardsigmoid.default: "hardsigmoid",
}  # fmt: skip
_BINARY = {
    aten.add.Tensor: "add", aten.add.Scalar: "add", aten.sub.Tensor: "sub", aten.sub.Scalar: "sub",
    aten.mul.Tensor: "mul", aten.mul.Scalar: "mul", aten.div.Tensor: "div", aten.div.Scalar: "div",
    aten.maximum.default: "maximum", aten.minimum.default: "minimum",
}  # fmt: skip
_CLAMPS: Mapping[object, tuple[str, str]] = {
    aten.clamp.default: ("min", "max"),
    aten.clamp_min.default: ("min", ""),
    aten.clamp_max.default: ("", "max"),
    aten.hardtanh.default: ("min_val", "max_val"),
}


def pointwise(module: GraphModule) -> list[str]:
    """Fuse trees of two or more elementwise operators; gives the places of their answers."""
    # from the back, so that a tree is found at its answer, with all that it can take
    return [place(root) for root in reversed(list(module.graph.nodes)) if root.users and _fuse(module, root)]


def _fuse(module: GraphModule, root: Node) -> bool:
    like = value(root)
    if like is None or _step(module, root) is None:
        return False
    order = sorted(range(like.dim()), key=lambda dim: (-like.stride()[dim], dim))
    back = [order.index(dim) for dim in range(like.dim())]
    dense = like.new_empty([like.shape[dim] for dim in order]).permute(back)
    tree = _grow(module, root)
    if dense.stride() != like.stride() or len(tree) < 2:
        return False
    inputs = _inputs(module, tree)
    program = _program(module, tree, inputs)
    if program is None:
        return False
    straight = order == sorted(order)
    views = inputs if straight else [_permuted(root, one, order) for one in inputs]
    answer = call(root, torch.ops.autotune_native.pointwise.default, (views, program.text()))
    replace(root, answer if straight else call(root, aten.permute.default, (answer, back)))
    for node in sorted(tree - {root}, reverse=True):
        module.graph.erase_node(node)
    return True


def _grow(module: GraphModule, root: Node) -> set[Node]:
    """The operators that lead to ``root`` and nowhere else, as many as the number of inputs allows."""
    tree, like, grown = {root}, value(root), True
    assert like is not None
    while grown:
        grown = False
        for node in sorted(_inputs(module, tree), reverse=True):
            given = value(node)
            if given is None or given.shape != like.shape or not set(node.users) <= tree:
                continue
            if _step(module, node) is not None and len(_inputs(module, tree | {node})) <= INPUTS:
                tree.add(node)
                grown = True
    return tree


def _inputs(module: GraphModule, tree: set[Node]) -> list[Node]:
    """The tensors that a tree reads, each once; a stored number is none."""
    steps = [_step(module, node) or () for node in sorted(tree)]
    return list(dict.fromkeys(one for step in steps for one in step if isinstance(one, Node) and one not in tree))


def _program(module: GraphModule, tree: set[Node], inputs: list[Node]) -> Program | None:
    """The tree as a program; casts that lose nothing where steps compute, and the last one, are no steps."""
    tensors = [value(one) for one in inputs]
    wide = torch.float64 if any(one is not None and one.dtype is torch.float64 for one in tensors) else torch.float32
    where: dict[Node, Operand] = {one: Reference(kind="in", index=index) for index, one in enumerate(inputs)}
    steps: list[Step] = []
    last = max(tree)
    for node in sorted(tree):
        name, *operands = _step(module, node) or ()
        known = tuple(where[one] if isinstance(one, Node) else one for one in operands)
        if name == "cast" and (node is last or DTYPES[str(known[1])] in (wide, torch.float64)):
            where[node] = known[0]
            continue
        where[node] = Reference(kind="step", index=len(steps))
        steps.append(Step(name=name, operands=known))
    like = value(last)
    if not steps or like is None:
        return None
    return Program(dtype=_name(like), steps=tuple(steps))


def _step(module: GraphModule, node: Node) -> tuple[Any, ...] | None:
    """A step's name and its operands, nodes and numbers, or ``None`` where programs have no word for a node."""
    like = value(node)
    if node.op != "call_function" or like is None or like.dtype not in FLOATS or like.layout is not torch.strided:
        return None
    if (source := cast_source(node)) is not None:
        return ("cast", source, _name(like))
    spelled = _spelled(node)
    if spelled is None:
        return None
    name, *given = spelled
    operands = []
    for one in given:
        # a stored number without dimensions never decides the dtype of an answer, so that a plain one may stand for it
        found = number(module, one)
        if found is None and not isinstance(one, Node) and not (one is None and name == "clamp"):
            return None
        operands.append(one if found is None else found)
    tensors = [value(one) for one in operands if isinstance(one, Node)]
    if not tensors:
        return None
    for tensor in tensors:
        if tensor is None or tensor.dtype not in FLOATS or tensor.device != like.device:
            return None
        if tensor.dtype is torch.float64 and like.dtype is not torch.float64:
            return None  # it has no dimensions, and would have all the others computed in float64
    return (name, *operands)


def _spelled(node: Node) -> tuple[Any, ...] | None:
    if node.target in _UNARY:
        return (_UNARY[node.target], node.args[0])
    if node.target in _BINARY:
        given = arguments(node)
        return (_BINARY[node.target], given["self"], given["other"]) if given.get("alpha", 1) == 1 else None
    if node.target in _CLAMPS:
        given, (low, high) = arguments(node), _CLAMPS[node.target]
        return ("clamp", given["self"], given.get(low), given.get(high))
    if node.target is aten.gelu.default:
        return ({"none": "gelu", "tanh": "gelu_tanh"}[arguments(node)["approximate"]], node.args[0])
    if node.target is aten.pow.Tensor_Scalar:
        return ("pow", *node.args)
    if node.target is aten.square.default:
        return ("pow", node.args[0], 2)
    if node.target is aten.rsub.Scalar and arguments(node)["alpha"] == 1:
        return ("sub", node.args[1], node.args[0])
    return None


def _permuted(before: Node, source: Node, order: list[int]) -> Node:
    """A view of an input, of all dimensions, in the order in which the answer lies in memory."""
    tensor = value(source)
    assert tensor is not None
    if tensor.dim() < len(order):
        source = call(before, aten.expand.default, (source, [*[1] * (len(order) - tensor.dim()), *tensor.shape]))
    return call(before, aten.permute.default, (source, order))


def _name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


POINTWISE = Fusion(name="pointwise", fuse=pointwise)
