"""Linear layers of one input, such as those for query, key and value, become one layer, and views of its answer."""

import torch
from torch.fx import GraphModule, Node

from autotune.backends.native.fusions.products import LinearProduct, product_of
from autotune.backends.native.fusions.reading import call
from autotune.backends.native.fusions.strides import values_with
from autotune.backends.native.graph import (
    Fusion,
    add_constant,
    aten,
    constant,
    place,
    put_in_place,
    replace,
    value,
)  # fmt: skip
from autotune.backends.native.refusals import refuse


def qkv(module: GraphModule) -> list[str]:
    """Join linear layers of the same input, all with bias or all without; returns the places of the joined layers."""
    groups: dict[tuple[Node, bool], list[tuple[Node, LinearProduct]]] = {}
    for node in module.graph.nodes:
        product, answer = product_of(module, node), value(node)
        if product is None or product.residual is not None or answer is None or not answer.is_contiguous():
            continue
        groups.setdefault((product.a, product.bias is None), []).append((node, product))
    return [place(_join(module, group)) for group in groups.values() if len(group) > 1]


def _join(module: GraphModule, group: list[tuple[Node, LinearProduct]]) -> Node:
    """Insert one layer before a group, and replace each of the group by a part of its answer; returns the layer."""
    first, product = group[0]
    weights = [linear.matrix for _, linear in group]
    biases = [constant(module, linear.bias) for _, linear in group if linear.bias is not None]
    meta = value(first)
    assert meta is not None
    args: list[Node] = [product.a]
    for name, rows in (("joined_weight", weights), ("joined_bias", biases)):
        if rows:
            joined = torch.cat([linear for linear in rows if linear is not None])
            args.append(add_constant(module, name, joined, meta.new_empty(joined.shape), before=first))
    layer = call(first, aten.linear.default, tuple(args))
    put_in_place(layer, *(node for node, _ in group))
    parts, start = [], 0
    for _, linear in group:
        end = start + linear.matrix.shape[0]
        parts.append(call(first, aten.slice.Tensor, (layer, meta.dim() - 1, start, end)))
        start = end
    for (node, _), part in zip(group, parts, strict=True):
        changed = values_with(node, value(part))
        if changed is None:  # another node needs the layer's own strides
            copy = call(node, aten.clone.default, (part,), {"memory_format": torch.contiguous_format})
            refuse(copy, "another operator needs the strides of a layer of its own")
            replace(node, copy)
            continue
        for user, answer in changed.items():
            user.meta["val"] = answer
        replace(node, part)
    return layer


QKV = Fusion(name="qkv", fuse=qkv)
