"""Scaled dot product attention, however it is spelled, becomes aten's own operator, which has fast kernels.

Followed from the product with the values back to the product of queries and keys: softmax (also spelled out, in another
dtype, on another view), masks, scales, and a transposition of the keys. Nothing on the way may be read by anyone else.
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

SDPA = aten.scaled_dot_product_attention.default
_PERMUTATIONS = {aten.transpose.int, aten.permute.default}

_Ordered: TypeAlias = tuple[Node, list[int]]
"""A tensor and the order in which its dimensions are read."""


def attention(module: GraphModule) -> list[str]:
    """Rewrite spelled-out attention, and take constant masks that need no mask out of aten's; gives their places."""
    masks, places = Masks(module), []
    for node in list(module.graph.nodes):
        if node.users and (_unmask(masks, node) if node.target is SDPA else _fuse(module, masks, node)):
            places.append(place(node))
    return places


def _unmask(masks: Masks, node: Node) -> bool:
    """Take a constant mask out of an attention: one that hides nothing, or hides what is_causal hides."""
    given = arguments(node)
    query, key = value(given["query"]), value(given["key"])
    tensor = masks.known(given["attn_mask"]) if isinstance(given["attn_mask"], Node) else None
    if tensor is None or query is None or key is None or given["is_causal"]:
        return False
    shown, hidden = (tensor, ~tensor) if tensor.dtype is torch.bool else (tensor == 0, tensor <= HIDDEN)
    causal = is_causal(shown, hidden, (query.shape[-2], key.shape[-2]))
    if not causal and not bool(shown.all()):
        return False
    node.args = (given["query"], given["key"], given["value"])
    kept = {name: given[name] for name in ("dropout_p", "scale", "enable_gqa") if given[name]}
    node.kwargs = {**kept, "is_causal": True} if causal else kept
    return True


def _fuse(module: GraphModule, masks: Masks, end: Node) -> bool:
    """Match an attention whose last operator is ``end``, the product of weights and values."""
    last, like = product(end), value(end)
    if last is None or like is None or like.dtype not in FLOATS or last.left_order != sorted(last.left_order):
        return False
    scores = followed(module, last.left, end)
    if scores is None or scores.product.answer_order != sorted(scores.product.answer_order):
        return False
    query, query_scale = _unscaled(module, scores.product.left, scores.product.left_order, like.dtype)
    swapped = [*scores.product.right_order[:-2], *scores.product.right_order[:-3:-1]]
    key, key_scale = _unscaled(module, scores.product.right, swapped, like.dtype)
    tensors = [_shape(*query), _shape(*key), _shape(last.right, last.right_order)]
    lead, scale = _lead([*scores.shapes, *tensors]), scores.scale * query_scale * key_scale
    given = (query, key, (last.right, last.right_order))
    if lead is None or not 0 < scale < math.inf or any(0 in shape for shape in tensors):
        return False
    if any(value(node).dtype is not like.dtype for node, _ in given):  # type: ignore[union-attr]
        return False
    # what a contiguous answer looks like in the shape and the order of the answer that is there
    dims = [*lead, tensors[0][-2], tensors[2][-1]]
    natural = like.new_empty(dims if like.dim() == 4 else [math.prod(lead), *dims[2:]]).permute(last.answer_order)
    if like.stride() not in (natural.stride(), like.new_empty(like.shape).stride()):
        return False
    mask = masks.mask(list(scores.terms), like, lead, (tensors[0][-2], tensors[1][-2]), end)
    if mask is None:
        return False
    answer = call(
        end, SDPA, (*(_four(end, *one, lead) for one in given), mask.tensor, 0.0, mask.causal), {"scale": scale}
    )
    if mask.guard is not None:
        answer = call(end, aten.add.Tensor, (answer, mask.guard))
    operands = end.all_input_nodes
    _answer(end, answer, last.answer_order, natural.stride())
    prune(*operands)
    return True


def _lead(shapes: Iterable[Sequence[int]]) -> tuple[int, int] | None:
    """Batch and heads that all of some tensors have, those of three dimensions as one number."""
    known = list(shapes)
    apart = {(shape[0], shape[1]) for shape in known if len(shape) == 4}
    joined = {shape[0] for shape in known if len(shape) == 3}
    if len(apart) > 1 or len(joined) > 1:
        return None
    if not apart:
        return joined.pop(), 1
    lead = apart.pop()
    return lead if joined <= {math.prod(lead)} else None


def _shape(node: Node, order: list[int]) -> list[int]:
    like = value(node)
    assert like is not None
    return [like.shape[dim] for dim in order]


def _unscaled(module: GraphModule, node: Node, order: list[int], dtype: torch.dtype) -> tuple[_Ordered, float]:
    """What lies behind scales, permutations and casts from ``dtype``, the order that they amount to, and the scale."""
    scale = 1.0
    while True:
        source, factored, like = cast_source(node), factor_of(module, node), value(node)
        before = value(source)
        if factored is not None and like is not None and _shape(factored[0], order) == _shape(node, order):
            node, scale = factored[0], scale * factored[1]
        elif node.target in _PERMUTATIONS and like is not None:
            counting = torch.empty(tuple(range(2, 2 + like.dim())), device="meta")
            moved = node.target(counting, *node.args[1:], **node.kwargs)
            order = [moved.shape[dim] - 2 for dim in order]
            node = node.all_input_nodes[0]
        elif source is not None and before is not None and before.dtype is dtype and lossless(dtype, like.dtype):  # type: ignore[union-attr]
            node = source
        else:
            return (node, order), scale


def _four(at: Node, node: Node, order: list[int], lead: tuple[int, int]) -> Node:
    """A tensor as batch, heads, length and features."""
    if order != sorted(order):
        node = call(at, aten.permute.default, (node, order))
    like = value(node)
    assert like is not None
    return node if like.dim() == 4 else call(at, aten.view.default, (node, [*lead, *like.shape[1:]]))


def _answer(end: Node, answer: Node, order: list[int], natural: tuple[int, ...]) -> None:
    """Put a fused attention's answer in the place of ``end``, with the strides that it had.

    How an attention lays out its answer depends on the kernel. A copy that follows a permutation anyway is made of the
    answer as it comes; others read a contiguous one, which is a copy only where the answer is none.
    """
    like = value(end)
    assert like is not None
    if like.dim() == 4 and order == sorted(order):
        for user in list(end.users):
            if user.target in _PERMUTATIONS and all(map(_copies, user.users)):
                replace(user, call(user, user.target, (answer, *user.args[1:])))
    if not end.users:
        end.graph.erase_node(end)
        return
    if like.dim() == 3 or like.stride() == natural:
        answer = _contiguous(end, answer)
    if like.dim() == 3:
        answer = call(end, aten.view.default, (answer, [-1, *value(answer).shape[2:]]))  # type: ignore[union-attr]
    if order != sorted(order):
        answer = call(end, aten.permute.default, (answer, order))
    if like.stride() != natural:
        answer = _contiguous(end, answer)
    replace(end, answer)


def _copies(node: Node) -> bool:
    return node.target is aten.clone.default and node.kwargs.get("memory_format") is torch.contiguous_format


def _contiguous(end: Node, answer: Node) -> Node:
    """A contiguous tensor; a copy where an output shows its memory, as its strides may not depend on the kernel."""
    operator = aten.clone.default if reaches_output(end) else aten.contiguous.default
    return call(end, operator, (answer,), {"memory_format": torch.contiguous_format})


ATTENTION = Fusion(name="attention", fuse=attention)
