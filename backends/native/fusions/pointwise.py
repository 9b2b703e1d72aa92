"""Trees of elementwise operators become one operator, which reads and writes memory once.

A single operator is a tree, too: torch's kernel for it is slower if it broadcasts, converts or copies into another
layout, and no launch may begin before it ends.
Only the last operator of a tree is read outside of it. An operator of a smaller shape is not part of a tree, unless it
is a cast: outside it is computed once instead of for each element that it is broadcast to. The operator's answer is
contiguous: a tree whose answer is dense in another order of dimensions (channels last, transposed heads) is computed on
permuted views of its inputs, so that its strides stay; an answer with gaps is not fused.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import Argument

from autotune.backends.native.fusions.convolution_steps import release_steps
from autotune.backends.native.fusions.reading import FLOATS, arguments, call, cast_source, is_elementwise, number
from autotune.backends.native.graph import Fusion, aten, place, replace, value
from autotune.backends.native.pointwise import DTYPES, Operand, PointwiseProgram, PointwiseStep, Reference
from autotune.backends.native.refusals import refuse

_StepOperand = Node | float | str | None

INPUTS = 8
"""The most tensors that one operator reads."""

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
    """Fuse trees of elementwise operators; returns the places of their answers."""
    release_steps(module)
    # from the back, so that a tree is matched at its answer, as large as possible
    return [place(root) for root in reversed(list(module.graph.nodes)) if root.users and _fuse(module, root)]


def _fuse(module: GraphModule, root: Node) -> bool:
    meta = value(root)
    if meta is None or _step(module, root) is None:
        return refuse(root, "programs have no such step") if is_elementwise(root) else False
    order = sorted(range(meta.dim()), key=lambda dim: (-meta.stride()[dim], dim))
    back = [order.index(dim) for dim in range(meta.dim())]
    dense = meta.new_empty([meta.shape[dim] for dim in order]).permute(back)
    tree = _grow(module, root)
    if dense.stride() != meta.stride():
        return refuse(root, "its answer has gaps in memory")
    inputs = _inputs(module, tree)
    if len(tree) == 1 and torch.float64 in {value(tensor).dtype for tensor in (root, *inputs)}:  # type: ignore[union-attr]
        return refuse(root, "a single operator of float64, for which programs have no kernel")
    program = _program(module, tree, inputs)
    if program is None:
        return False
    straight = order == sorted(order)
    views = inputs if straight else [_permuted(root, source, order) for source in inputs]
    answer = call(root, torch.ops.autotune_native.pointwise.default, (views, program.text()))
    replace(root, answer if straight else call(root, aten.permute.default, (answer, back)))
    for node in sorted(tree - {root}, reverse=True):
        module.graph.erase_node(node)
    return True


def _grow(module: GraphModule, root: Node) -> set[Node]:
    """Return the operators that only ``root`` depends on, as many as the limit of inputs allows."""
    tree, meta, grown = {root}, value(root), True
    assert meta is not None
    while grown:
        grown = False
        for node in sorted(_inputs(module, tree), reverse=True):
            given = value(node)
            if given is None or _step(module, node) is None:
                continue
            if given.shape != meta.shape and not _converts(node):
                refuse(node, "it is smaller than the operators that read it")
            elif not set(node.users) <= tree:
                refuse(node, "several operators read it")
            elif len(_inputs(module, tree | {node})) > INPUTS:
                refuse(node, f"the program would read more than {INPUTS} tensors")
            else:
                tree.add(node)
                grown = True
    return tree


def _converts(node: Node) -> bool:
    """Return true if a node is a cast, but not from float64: a program that reads it has no kernel."""
    source = value(cast_source(node))
    return source is not None and source.dtype is not torch.float64


def _inputs(module: GraphModule, tree: set[Node]) -> list[Node]:
    """Return the tensors that a tree reads, each once, without stored numbers."""
    steps = [step for node in sorted(tree) if (step := _step(module, node)) is not None]
    return list(
        dict.fromkeys(
            operand
            for _, operands in steps
            for operand in operands
            if isinstance(operand, Node) and operand not in tree
        )
    )


def _program(module: GraphModule, tree: set[Node], inputs: list[Node]) -> PointwiseProgram | None:
    """Return the tree as a program, without a final cast, copies, and casts that lose nothing in the steps' dtype."""
    tensors = [value(source) for source in inputs]
    is_wide = any(tensor is not None and tensor.dtype is torch.float64 for tensor in tensors)
    wide = torch.float64 if is_wide else torch.float32
    references: dict[Node, Operand] = {source: Reference(kind="in", index=index) for index, source in enumerate(inputs)}
    steps: list[PointwiseStep] = []
    last = max(tree)
    for node in sorted(tree):
        step = _step(module, node)
        assert step is not None  # a tree has no other nodes
        name = step[0]
        operands = tuple(references[operand] if isinstance(operand, Node) else operand for operand in step[1])
        if name == "cast" and (node is last or DTYPES[str(operands[1])] in (wide, torch.float64) or _is_copy(node)):
            references[node] = operands[0]
            continue
        references[node] = Reference(kind="step", index=len(steps))
        steps.append(PointwiseStep(name=name, operands=operands))
    meta = value(last)
    if meta is None:
        return None
    if not steps:  # casts alone
        steps.append(PointwiseStep(name="cast", operands=(references[last], _name(meta))))
    return PointwiseProgram(dtype=_name(meta), steps=tuple(steps))


def _step(module: GraphModule, node: Node) -> tuple[str, list[_StepOperand]] | None:
    """Return a step's name and its operands, nodes and numbers, or ``None`` if programs have no such step."""
    meta = value(node)
    if node.op != "call_function" or meta is None or meta.dtype not in FLOATS or meta.layout is not torch.strided:
        return None
    if (source := cast_source(node) or _copied(node, meta)) is not None:
        return "cast", [source, _name(meta)]
    spelled = _spelled(node)
    if spelled is None:
        return None
    name, spelled_operands = spelled
    operands: list[_StepOperand] = []
    for operand in spelled_operands:
        # a stored number without dimensions never decides the dtype of an answer, so a plain number can replace it
        stored = number(module, operand)
        if stored is not None or (operand is None and name == "clamp"):
            operands.append(stored)
        elif isinstance(operand, Node):
            operands.append(operand)
        else:
            return None
    tensors = [value(operand) for operand in operands if isinstance(operand, Node)]
    if not tensors:
        return None
    for tensor in tensors:
        if tensor is None or tensor.dtype not in FLOATS or tensor.device != meta.device:
            return None
        if tensor.dtype is torch.float64 and meta.dtype is not torch.float64:
            return None  # it has no dimensions, and all others would be computed in float64
    return name, operands


def _copied(node: Node, meta: Tensor) -> Node | None:
    """Return the operand of a copy into another layout: a program reads it in its own layout."""
    source = node.args[0] if _is_copy(node) else None
    before = value(source)
    is_alike = before is not None and (before.dtype, before.device) == (meta.dtype, meta.device)
    return source if isinstance(source, Node) and is_alike else None


def _is_copy(node: Node) -> bool:
    return node.target is aten.clone.default


def _spelled(node: Node) -> tuple[str, Sequence[Argument]] | None:
    if node.target in _UNARY:
        return _UNARY[node.target], node.args[:1]
    if node.target in _BINARY:
        named = arguments(node)
        return (_BINARY[node.target], (named["self"], named["other"])) if named.get("alpha", 1) == 1 else None
    if node.target in _CLAMPS:
        named, (low, high) = arguments(node), _CLAMPS[node.target]
        return "clamp", (named["self"], named.get(low), named.get(high))
    if node.target is aten.gelu.default:
        return {"none": "gelu", "tanh": "gelu_tanh"}[arguments(node)["approximate"]], node.args[:1]
    if node.target is aten.relu6.default:
        return "clamp", (node.args[0], 0, 6)
    if node.target is aten.leaky_relu.default:
        named = arguments(node)
        return "leaky_relu", (named["self"], named["negative_slope"])
    if node.target is aten.pow.Tensor_Scalar:
        return "pow", node.args
    if node.target is aten.square.default:
        return "pow", (node.args[0], 2)
    if node.target is aten.rsub.Scalar and arguments(node)["alpha"] == 1:
        return "sub", node.args[1::-1]
    return None


def _permuted(before: Node, source: Node, order: list[int]) -> Node:
    """Return a view of an input, of all dimensions, in the order of the answer's memory."""
    tensor = value(source)
    assert tensor is not None
    if tensor.dim() < len(order):
        source = call(before, aten.expand.default, (source, [*[1] * (len(order) - tensor.dim()), *tensor.shape]))
    return call(before, aten.permute.default, (source, order))


def _name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


POINTWISE = Fusion(name="pointwise", fuse=pointwise)
