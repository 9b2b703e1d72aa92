"""Fused attention becomes our operator, for which we may have a kernel; else torch chooses among its own."""

from collections.abc import Mapping
from typing import cast

import torch
from torch.fx import GraphModule, Node
from torch.fx.node import Argument

from autotune.backends.native import operators
from autotune.backends.native.fusions.attention import SDPA
from autotune.backends.native.fusions.reading import FLOATS, arguments, call
from autotune.backends.native.fusions.strides import values_with
from autotune.backends.native.graph import (
    Fusion,
    aten,
    constant,
    is_view,
    place,
    put_in_place,
    replace,
    same_layout,
    value,
)
from autotune.backends.native.refusals import refuse
from autotune.backends.native.triton_kernels.launch_plan import POINTER_ALIGNMENT_BYTES

_BOTH = (aten.__and__.Tensor, aten.bitwise_and.Tensor, aten.logical_and.default)
_ATTENTION = getattr(torch.ops, operators.NAMESPACE).attention.default


def attention_kernel(module: GraphModule) -> list[str]:
    """Rewrite torch's fused attention of batches and heads as our operator; returns the attentions' places."""
    places = [place(node) for node in list(module.graph.nodes) if node.target is SDPA and _rewrite(module, node)]
    for node in list(module.graph.nodes):
        if node.target is aten.clone.default:
            _drop_copy(node)
    return places


def _drop_copy(copy: Node) -> bool:
    """Drop a copy of queries, keys, values or an answer that changes strides only, if its readers need none.

    The kernel reads rows at any distance, and a copy of the answer's copy reads any tensor.
    """
    source = copy.args[0]
    tensor, meta = value(source), value(copy)
    changed = None if tensor is None or meta is None else values_with(copy, tensor)
    if changed is None or not isinstance(source, Node):
        return False
    readers = [node for node in changed if not is_view(node)]
    if source.target is _ATTENTION and all(node.target is aten.clone.default for node in readers):
        return _put_source(copy, source, changed)
    if not readers or any(node.target is not _ATTENTION or node.args[3] in (copy, *changed) for node in readers):
        return False
    now = {**changed, copy: tensor}
    for node in readers:
        operands = [now.get(cast(Node, one), value(one)) for one in node.args[:3]]
        if any(not isinstance(one, torch.Tensor) or not _is_read(one) for one in operands):
            return False
    return _put_source(copy, source, changed)


def _put_source(copy: Node, source: Node, changed: Mapping[Node, torch.Tensor]) -> bool:
    for node, answer in changed.items():
        node.meta["val"] = answer
    replace(copy, source)
    return True


def _is_read(tensor: torch.Tensor) -> bool:
    """Return true if the kernel reads a tensor: elements of a row are neighbours, and rows begin where loads may."""
    starts = [tensor.storage_offset(), *tensor.stride()[:-1]]
    return tensor.stride(-1) == 1 and not any(
        start * tensor.element_size() % POINTER_ALIGNMENT_BYTES for start in starts
    )


def _rewrite(module: GraphModule, node: Node) -> bool:
    given = arguments(node)
    operands = [given["query"], given["key"], given["value"]]
    query, key, values = (value(one) for one in operands)
    if query is None or key is None or values is None or given["dropout_p"] or given["enable_gqa"]:
        return refuse(node, "it has dropout, or heads that share keys")
    if any(one.dim() != 4 or one.dtype is not query.dtype or not one.numel() for one in (query, key, values)):
        return refuse(node, "its operands have no batch and heads, or differ in type")
    if query.dtype not in FLOATS or query.shape[:2] != key.shape[:2] or key.shape != values.shape:
        return refuse(node, "its keys and values differ in shape, or in heads from its queries")
    mask = _shortest(module, given["attn_mask"])
    meta = value(mask)
    if mask is not None and (meta is None or meta.dtype not in (torch.bool, query.dtype)):
        return refuse(node, "its mask has another type than its queries")
    args = (*operands, mask, bool(given["is_causal"]), given["scale"])
    new = call(node, _ATTENTION, args)
    if not same_layout(value(new), value(node)):
        contiguous = call(node, aten.clone.default, (new,), {"memory_format": torch.contiguous_format})
        if not same_layout(value(contiguous), value(node)):
            node.graph.erase_node(contiguous)
            node.graph.erase_node(new)
            return refuse(node, "torch's answer has a layout that the kernel does not write")
        put_in_place(new, node)
        new = contiguous
        refuse(new, "it copies the kernel's answer, which the graph reads in torch's order of memory")
    put_in_place(new, node)
    replace(node, new)
    return True


def _shortest(module: GraphModule, mask: Argument) -> Argument:
    """Return a mask without expansions, which the kernel does itself, and without parts that hide nothing."""
    while isinstance(mask, Node) and value(mask) is not None:
        if mask.target is aten.expand.default:
            mask = mask.args[0]
            continue
        meta = value(mask)
        if mask.target not in _BOTH or meta is None or meta.dtype is not torch.bool:
            break
        left, right = mask.args
        if not (_hides_nothing(module, left) or _hides_nothing(module, right)):
            break
        mask = right if _hides_nothing(module, left) else left
    return mask


def _hides_nothing(module: GraphModule, mask: object) -> bool:
    tensor = constant(module, mask)
    return tensor is not None and tensor.dtype is torch.bool and bool(tensor.all())


ATTENTION_KERNEL = Fusion(name="attention_kernel", fuse=attention_kernel)
