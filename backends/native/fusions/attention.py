"""Scaled dot product attention, in any spelling, becomes aten's own operator, which has fast kernels.

It is matched from the product with the values back to the product of queries and keys: softmax (also spelled out, in
another dtype, on another view), masks, scales, and a transposition of the keys. No other node may read what is between.
"""

import math
from collections.abc import Iterable, Sequence
from typing import TypeAlias

import torch
from torch.fx import GraphModule, Node

from autotune.backends.native.fusions.attention_masks import HIDDEN, Masks, is_causal
from autotune.backends.native.fusions.attention_scores import factor_of, followed, product
from autotune.backends.native.fusions.reading import FLOATS, arguments, call, cast_source, prune
from autotune.backends.native.graph import Fusion, aten, place, reaches_output, replace, value
from autotune.backends.native.passes.casts_and_views import lossless
from autotune.backends.native.refusals import refuse

SDPA = aten.scaled_dot_product_attention.default
_PERMUTATIONS = {aten.transpose.int, aten.permute.default}

_Ordered: TypeAlias = tuple[Node, list[int]]
"""A tensor and the order in which its dimensions are read."""


def attention(module: GraphModule) -> list[str]:
    """Rewrite spelled-out attention, and remove constant masks that are not needed; returns the attentions' places."""
    masks, places = Masks(module), []
    for node in list(module.graph.nodes):
        if node.users and (_unmask(masks, node) if node.target is SDPA else _fuse(module, masks, node)):
            places.append(place(node))
    return places


def _unmask(masks: Masks, node: Node) -> bool:
    """Remove a constant mask from an attention: one that hides nothing, or the same as ``is_causal``."""
    given = arguments(node)
    query, key = value(given["query"]), value(given["key"])
    tensor = masks.constant_value(given["attn_mask"]) if isinstance(given["attn_mask"], Node) else None
    if tensor is None or query is None or key is None or given["is_causal"]:
        return False
    visible, hidden = (tensor, ~tensor) if tensor.dtype is torch.bool else (tensor == 0, tensor <= HIDDEN)
    causal = is_causal(visible, hidden, (query.shape[-2], key.shape[-2]))
    if not causal and not bool(visible.all()):
        return False
    node.args = (given["query"], given["key"], given["value"])
    kept = {name: given[name] for name in ("dropout_p", "scale", "enable_gqa") if given[name]}
    node.kwargs = {**kept, "is_causal": True} if causal else kept
    return True


def _fuse(module: GraphModule, masks: Masks, end: Node) -> bool:
    """Match an attention whose last operator is ``end``, the product of weights and values."""
    last, meta = product(end), value(end)
    if last is None or meta is None or meta.dtype not in FLOATS or last.left_order != sorted(last.left_order):
        return False
    scores = followed(module, last.left, end)
    if scores is None or scores.product.answer_order != sorted(scores.product.answer_order):
        return False
    query, query_scale = _unscaled(module, scores.product.left, scores.product.left_order, meta.dtype)
    swapped = [*scores.product.right_order[:-2], *scores.product.right_order[:-3:-1]]
    key, key_scale = _unscaled(module, scores.product.right, swapped, meta.dtype)
    tensors = [_shape(*query), _shape(*key), _shape(last.right, last.right_order)]
    lead, scale = _lead([*scores.shapes, *tensors]), scores.scale * query_scale * key_scale
    operands_in_order = (query, key, (last.right, last.right_order))
    if lead is None or not 0 < scale < math.inf or any(0 in shape for shape in tensors):
        return refuse(end, "the tensors of this attention do not share batch and heads, or its scale is not positive")
    if any(value(node).dtype is not meta.dtype for node, _ in operands_in_order):  # type: ignore[union-attr]
        return refuse(end, "the operands of this attention differ in type")
    # a contiguous answer in the shape and the order of the existing one
    dims = [*lead, tensors[0][-2], tensors[2][-1]]
    natural = meta.new_empty(dims if meta.dim() == 4 else [math.prod(lead), *dims[2:]]).permute(last.answer_order)
    if meta.stride() not in (natural.stride(), meta.new_empty(meta.shape).stride()):
        return refuse(end, "the answer of this attention has a layout that torch's operator does not write")
    mask = masks.mask(list(scores.terms), meta, lead, (tensors[0][-2], tensors[1][-2]), end)
    if mask is None:
        return refuse(end, "the masks of this attention cannot be joined into one")
    answer = call(
        end,
        SDPA,
        (*(_four(end, *one, lead) for one in operands_in_order), mask.tensor, 0.0, mask.causal),
        {"scale": scale},
    )
    if mask.guard is not None:
        answer = call(end, aten.add.Tensor, (answer, mask.guard))
    operands = end.all_input_nodes
    _answer(end, answer, last.answer_order, natural.stride())
    prune(*operands)
    return True


def _lead(shapes: Iterable[Sequence[int]]) -> tuple[int, int] | None:
    """Return the batch and heads that all tensors share; in tensors of three dimensions they are one number."""
    all_shapes = list(shapes)
    apart = {(shape[0], shape[1]) for shape in all_shapes if len(shape) == 4}
    joined = {shape[0] for shape in all_shapes if len(shape) == 3}
    if len(apart) > 1 or len(joined) > 1:
        return None
    if not apart:
        return joined.pop(), 1
    lead = apart.pop()
    return lead if joined <= {math.prod(lead)} else None


def _shape(node: Node, order: list[int]) -> list[int]:
    meta = value(node)
    assert meta is not None
    return [meta.shape[dim] for dim in order]


def _unscaled(module: GraphModule, node: Node, order: list[int], dtype: torch.dtype) -> tuple[_Ordered, float]:
    """Return the source of scales, permutations and casts from ``dtype``, its order of dimensions, and the scale."""
    scale = 1.0
    while True:
        source, factored, meta = cast_source(node), factor_of(module, node), value(node)
        before = value(source)
        if factored is not None and meta is not None and _shape(factored[0], order) == _shape(node, order):
            node, scale = factored[0], scale * factored[1]
        elif node.target in _PERMUTATIONS and meta is not None:
            counting = torch.empty(tuple(range(2, 2 + meta.dim())), device="meta")
            moved = node.target(counting, *node.args[1:], **node.kwargs)
            order = [moved.shape[dim] - 2 for dim in order]
            node = node.all_input_nodes[0]
        elif source is not None and before is not None and before.dtype is dtype and lossless(dtype, meta.dtype):  # type: ignore[union-attr]
            node = source
        else:
            return (node, order), scale


def _four(at: Node, node: Node, order: list[int], lead: tuple[int, int]) -> Node:
    """Return a tensor as batch, heads, length and features."""
    if order != sorted(order):
        node = call(at, aten.permute.default, (node, order))
    meta = value(node)
    assert meta is not None
    return node if meta.dim() == 4 else call(at, aten.view.default, (node, [*lead, *meta.shape[1:]]))


def _answer(end: Node, answer: Node, order: list[int], natural: tuple[int, ...]) -> None:
    """Replace ``end`` by a fused attention's answer, with the same strides.

    The layout of an attention's answer depends on the kernel. If a permutation and a copy follow, the copy is made of
    the answer itself; other nodes read a contiguous answer, which is a copy only if the answer is not contiguous.
    """
    meta = value(end)
    assert meta is not None
    if meta.dim() == 4 and order == sorted(order):
        for user in list(end.users):
            if user.target in _PERMUTATIONS and all(map(_copies, user.users)):
                replace(user, call(user, user.target, (answer, *user.args[1:])))
    if not end.users:
        end.graph.erase_node(end)
        return
    if meta.dim() == 3 or meta.stride() == natural:
        answer = _contiguous(end, answer)
    if meta.dim() == 3:
        answer = call(end, aten.view.default, (answer, [-1, *value(answer).shape[2:]]))  # type: ignore[union-attr]
    if order != sorted(order):
        answer = call(end, aten.permute.default, (answer, order))
    if meta.stride() != natural:
        answer = _contiguous(end, answer)
    replace(end, answer)


def _copies(node: Node) -> bool:
    return node.target is aten.clone.default and node.kwargs.get("memory_format") is torch.contiguous_format


def _contiguous(end: Node, answer: Node) -> Node:
    """Return a contiguous tensor; a copy if an output, whose strides must not vary by kernel, shares its memory."""
    operator = aten.clone.default if reaches_output(end) else aten.contiguous.default
    return call(end, operator, (answer,), {"memory_format": torch.contiguous_format})


ATTENTION = Fusion(name="attention", fuse=attention)
