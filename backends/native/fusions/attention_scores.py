"""Matching from attention's weights back to the product of queries and keys, through softmax, masks and scales."""

import math
import operator
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch.fx import GraphModule, Node

from autotune.backends.native.fusions.attention_masks import Term
from autotune.backends.native.fusions.reading import FLOATS, arguments, cast_source, number
from autotune.backends.native.graph import aten, constant, value

_VIEWS = {aten.view.default, aten._unsafe_view.default}


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchedProduct:
    """A product of matrices: ``left`` [..., i, k] and ``right`` [..., k, j], each in this order of its dimensions.

    ``answer_order`` has the positions of the answer's dimensions in [..., i, j].
    """

    left: Node
    right: Node
    left_order: list[int]
    right_order: list[int]
    answer_order: list[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """The operand of the softmax: a scaled product, with masks in order from the product outwards.

    ``shapes`` are all shapes of the scores in between, of three dimensions or four.
    """

    product: BatchedProduct
    scale: float
    terms: tuple[Term, ...]
    shapes: tuple[torch.Size, ...]


def product(node: Node) -> BatchedProduct | None:
    """Read a product of two batches of matrices; ``None`` if a node is something else."""
    if node.target is aten.einsum.default:
        return _einsum(node)
    operands = node.args[1:3] if node.target is aten.baddbmm.default else node.args[:2]
    if node.target not in (aten.matmul.default, aten.bmm.default, aten.baddbmm.default):
        return None
    left, right = operands
    first, second = value(left), value(right)
    if first is None or second is None or first.dim() != second.dim() or first.dim() not in (3, 4):
        return None
    if first.shape[:-2] != second.shape[:-2]:
        return None
    assert isinstance(left, Node) and isinstance(right, Node)
    order = list(range(first.dim()))
    return BatchedProduct(left=left, right=right, left_order=order, right_order=order, answer_order=order)


def _einsum(node: Node) -> BatchedProduct | None:
    equation, operands = str(node.args[0]).replace(" ", ""), node.args[1]
    inputs, arrow, out = equation.partition("->")
    left, comma, right = inputs.partition(",")
    if not arrow or not comma or not isinstance(operands, list | tuple) or len(operands) != 2:
        return None
    if not (left + right + out).isalpha() or any(len(set(labels)) != len(labels) for labels in (left, right, out)):
        return None
    batch = "".join(label for label in out if label in left and label in right)
    rows, columns = ("".join(label for label in out if label in side and label not in batch) for side in (left, right))
    summed = "".join(label for label in left if label in right and label not in out)
    if any(len(labels) != 1 for labels in (rows, columns, summed)) or len(batch) not in (1, 2):
        return None
    if any(len(labels) != len(batch) + 2 for labels in (left, right, out)):
        return None
    return BatchedProduct(
        left=operands[0],  # type: ignore[arg-type]
        right=operands[1],  # type: ignore[arg-type]
        left_order=[left.index(label) for label in batch + rows + summed],
        right_order=[right.index(label) for label in batch + summed + columns],
        answer_order=[(batch + rows + columns).index(label) for label in out],
    )


def followed(module: GraphModule, weights: Node, reader: Node) -> Scores | None:
    """Follow attention's weights, which only ``reader`` may read, back to the product of queries and keys."""
    shapes = []
    while (meta := value(weights)) is not None and set(weights.users) == {reader}:
        shapes.append(meta.shape)
        source = _behind(weights)
        if source is None:
            exponents = _softmax(weights)
            scores = _scores(module, *exponents, 1.0) if exponents is not None else None
            return None if scores is None else replace(scores, shapes=(*scores.shapes, *shapes))
        weights, reader = source, weights
    return None


def _behind(node: Node) -> Node | None:
    """Return the source of a cast, or of a view that only splits or joins the batch."""
    source = node.args[0] if node.target in _VIEWS else cast_source(node)
    before, after = value(source), value(node)
    if not isinstance(source, Node) or before is None or after is None or before.dim() not in (3, 4):
        return None
    return source if after.dim() in (3, 4) and before.shape[-2:] == after.shape[-2:] else None


def _softmax(node: Node) -> tuple[Node, set[Node]] | None:
    """Return the operand of a softmax over the last dimension, and the nodes that read it."""
    if node.target in (aten.softmax.int, aten._softmax.default):
        return (node.all_input_nodes[0], {node}) if _is_last(node.args[1], node) else None
    if node.target is not aten.div.Tensor:
        return None
    powers, sums = node.args
    if not isinstance(powers, Node) or not isinstance(sums, Node) or set(sums.users) != {node}:
        return None
    if powers.target is not aten.exp.default or sums.target is not aten.sum.dim_IntList or sums.args[0] is not powers:
        return None
    shifted = powers.all_input_nodes[0]
    if set(powers.users) != {node, sums} or set(shifted.users) != {powers} or not _keeps_last(sums):
        return None
    if shifted.target is not aten.sub.Tensor or arguments(shifted)["alpha"] != 1:
        return None
    scores, largest = shifted.args
    if not isinstance(scores, Node) or not isinstance(largest, Node) or set(largest.users) != {shifted}:
        return None
    if largest.target is operator.getitem and largest.args[1] == 0:
        largest = largest.all_input_nodes[0]
        if len(largest.users) != 1:
            return None
    if largest.target not in (aten.amax.default, aten.max.dim) or largest.args[0] is not scores:
        return None
    return (scores, {shifted, largest}) if _keeps_last(largest) else None


def _keeps_last(node: Node) -> bool:
    given = arguments(node)
    return bool(given["keepdim"]) and _is_last(given["dim"], node.all_input_nodes[0])


def _is_last(dim: object, node: Node) -> bool:
    meta = value(node)
    dims = list(dim) if isinstance(dim, list | tuple) else [dim]
    return meta is not None and dims in ([-1], [meta.dim() - 1])


def _scores(module: GraphModule, node: Node, readers: set[Node], scale: float) -> Scores | None:
    """Read scores that only ``readers`` read and that are multiplied by ``scale`` after this."""
    meta = value(node)
    if meta is None or set(node.users) != readers or meta.dtype not in FLOATS or meta.dim() not in (3, 4):
        return None
    matched_product = product(node)
    if matched_product is not None:
        return _at_product(node, matched_product, scale, meta.shape)
    for source, factor, term in _steps(module, node, meta.dim(), scale):
        before = value(source)
        if before is None or (before.shape != meta.shape and node.target not in _VIEWS):
            continue
        scores = _scores(module, source, {node}, scale * factor)
        if scores is not None:
            terms = scores.terms if term is None else (*scores.terms, term)
            return replace(scores, terms=terms, shapes=(*scores.shapes, meta.shape))
    return None


def _at_product(node: Node, matched_product: BatchedProduct, scale: float, shape: torch.Size) -> Scores | None:
    terms: tuple[Term, ...] = ()
    if node.target is aten.baddbmm.default:
        given = arguments(node)
        if not given["alpha"] > 0:
            return None
        if given["beta"]:
            terms = (Term(node=given["self"], dims=3, factor=scale * given["beta"]),)
        scale *= given["alpha"]
    return Scores(product=matched_product, scale=scale, terms=terms, shapes=(shape,))


def _steps(module: GraphModule, node: Node, dims: int, scale: float) -> Iterator[tuple[Node, float, Term | None]]:
    """Yield each reading of a node as scores times a factor plus a term; in a sum either operand may be the scores."""
    source = _behind(node)
    if source is not None:
        yield source, 1.0, None
    elif node.target in (aten.mul.Tensor, aten.div.Tensor):
        factored = factor_of(module, node)
        if factored is not None:
            yield *factored, None
    elif node.target is aten.add.Tensor and arguments(node)["alpha"] == 1:
        for scores, mask in (node.args, node.args[::-1]):
            meta = value(mask)
            if isinstance(scores, Node) and isinstance(mask, Node) and meta is not None and meta.dtype in FLOATS:
                yield scores, 1.0, Term(node=mask, dims=dims, factor=scale)
    else:
        filled = _filled(module, node)
        if filled is not None:
            scores, condition, fill, inverted = filled
            yield scores, 1.0, Term(node=condition, dims=dims, fill=fill * scale, inverted=inverted)


def factor_of(module: GraphModule, node: Node) -> tuple[Node, float] | None:
    """Return the operand that a node multiplies by a positive number, and that number."""
    if node.target is aten.div.Tensor:
        divisor = number(module, node.args[1])
        if divisor is not None and divisor > 0 and isinstance(node.args[0], Node):
            return node.args[0], 1 / divisor
    elif node.target is aten.mul.Tensor:
        for source, other in (node.args[:2], node.args[1::-1]):
            factor = number(module, other)
            if factor is not None and factor > 0 and isinstance(source, Node):
                return source, float(factor)
    return None


def _filled(module: GraphModule, node: Node) -> tuple[Node, Node, float, bool] | None:
    """Return scores, condition and number of a masked fill; last, true if it fills where the condition is false."""
    if node.target in (aten.masked_fill.Scalar, aten.masked_fill.Tensor):
        scores, condition, fill = node.args
        choices = [(scores, fill, False)]
    elif str(node.target) in ("aten.where.self", "aten.where.ScalarOther", "aten.where.ScalarSelf"):
        condition, on_true, on_false = node.args
        choices = [(on_true, on_false, True), (on_false, on_true, False)]
    else:
        return None
    meta = value(condition)
    if not isinstance(condition, Node) or meta is None or meta.dtype is not torch.bool:
        return None
    for scores, fill, inverted in choices:
        tensor = constant(module, fill)
        if tensor is not None and tensor.numel() == 1:
            fill = float(tensor)
        if isinstance(scores, Node) and isinstance(fill, int | float) and not math.isnan(fill):
            return scores, condition, float(fill), inverted
    return None
