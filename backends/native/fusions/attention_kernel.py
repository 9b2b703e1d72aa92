"""Fused attention that a kernel of ours computes, where there is one for it: torch chooses among its own by itself."""

import torch
from torch.fx import GraphModule, Node

from autotune.backends.native import operators
from autotune.backends.native.fusions.attention import SDPA
from autotune.backends.native.fusions.reading import FLOATS, arguments, call
from autotune.backends.native.graph import Fusion, aten, place, put_in_place, replace, same_layout, value

_ATTENTION = getattr(torch.ops, operators.NAMESPACE).attention.default


def attention_kernel(module: GraphModule) -> list[str]:
    """Rewrite torch's fused attention of batches and heads as our operator; gives the attentions' places."""
    return [place(node) for node in list(module.graph.nodes) if node.target is SDPA and _rewrite(node)]


def _rewrite(node: Node) -> bool:
    given = arguments(node)
    operands = [given["query"], given["key"], given["value"]]
    query, key, values = (value(one) for one in operands)
    if query is None or key is None or values is None or given["dropout_p"] or given["enable_gqa"]:
        return False
    if any(one.dim() != 4 or one.dtype is not query.dtype or not one.numel() for one in (query, key, values)):
        return False
    if query.dtype not in FLOATS or query.shape[:2] != key.shape[:2] or key.shape != values.shape:
        return False
    mask = value(given["attn_mask"])
    if given["attn_mask"] is not None and (mask is None or mask.dtype not in (torch.bool, query.dtype)):
        return False
    args = (*operands, given["attn_mask"], bool(given["is_causal"]), given["scale"])
    new = call(node, _ATTENTION, args)
    if not same_layout(value(new), value(node)):
        contiguous = call(node, aten.clone.default, (new,), {"memory_format": torch.contiguous_format})
        if not same_layout(value(contiguous), value(node)):
            node.graph.erase_node(contiguous)
            node.graph.erase_node(new)
            return False
        put_in_place(new, node)
        new = contiguous
    put_in_place(new, node)
    replace(node, new)
    return True


ATTENTION_KERNEL = Fusion(name="attention_kernel", fuse=attention_kernel)
