"""Linear layers of one input, such as those for query, key and value, become one layer and views of its answer."""

from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from autotune.backends.native.fusions.products import Product, product_of
from autotune.backends.native.fusions.reading import call
from autotune.backends.native.graph import (
    Fusion,
    add_constant,
    aten,
    constant,
    is_view,
    place,
    put_in_place,
    reaches_output,
    replace,
    same_layout,
    value,
)  # fmt: skip


def qkv(module: GraphModule) -> list[str]:
    """Join linear layers of the same input, all with bias or all without; gives the modules that hold the joined."""
    groups: dict[tuple[Any, ...], list[tuple[Node, Product]]] = {}
    for node in module.graph.nodes:
        product, answer = product_of(module, node), value(node)
        if product is None or product.residual is not None or answer is None or not answer.is_contiguous():
            continue
        groups.setdefault((product.a, product.bias is None), []).append((node, product))
    return [place(_join(module, group)) for group in groups.values() if len(group) > 1]


def _join(module: GraphModule, group: list[tuple[Node, Product]]) -> Node:
    """Put one layer before the first of a group, and let each of them be a part of its answer; gives the layer."""
    first, product = group[0]
    weights = [one.matrix for _, one in group]
    biases = [constant(module, one.bias) for _, one in group if one.bias is not None]
    like = value(first)
    assert like is not None
    args: list[Node] = [product.a]
    for name, rows in (("joined_weight", weights), ("joined_bias", biases)):
        if rows:
            joined = torch.cat([one for one in rows if one is not None])
            args.append(add_constant(module, name, joined, like.new_empty(joined.shape), before=first))
    layer = call(first, aten.linear.default, tuple(args))
    put_in_place(layer, *(node for node, _ in group))
    parts, start = [], 0
    for _, one in group:
        end = start + one.matrix.shape[0]
        parts.append(call(first, aten.slice.Tensor, (layer, like.dim() - 1, start, end)))
        start = end
    for (node, _), part in zip(group, parts, strict=True):
        changed = _with(node, value(part))
        if changed is None:  # somebody needs the layer's own strides
            replace(node, call(node, aten.clone.default, (part,), {"memory_format": torch.contiguous_format}))
            continue
        for user, answer in changed.items():
            user.meta["val"] = answer
        replace(node, part)
    return layer


def _with(start: Node, instead: Tensor | None) -> dict[Node, Any] | None:
    """What the nodes behind one give when it has other strides, up to where they are as before.

    ``None`` where an operator cannot take them, or the strides or the memory of an output would be others.
    """
    if instead is None or reaches_output(start):
        return None
    found: dict[Node, Any] = {}
    waiting = sorted(start.users)
    while waiting:
        node = waiting.pop(0)
        if node in found:
            continue
        if node.op != "call_function":
            return None
        known = {one: found.get(one, one.meta.get("val")) for one in node.all_input_nodes}
        known.update({start: instead})
        if is_view(node) and not _shows(node, known[node.all_input_nodes[0]]):
            return None
        try:
            answer = node.target(*map_arg(node.args, known.get), **map_arg(node.kwargs, known.get))  # type: ignore[operator]
        except (RuntimeError, ValueError):  # an operator that wants its operands contiguous
            return None
        found[node] = answer
        if is_view(node) or not same_layout(answer, value(node)):
            waiting = sorted({*waiting, *node.users})
    return found


def _shows(view: Node, tensor: Any) -> bool:
    """Whether a view of a tensor of these strides exists.

    Tensors without data do not tell: torch 2.13 lets them be viewed as [16] from [4, 1, 4] with strides [18, 18, 1].
    """
    if not isinstance(view.target, torch._ops.OpOverload):
        return True  # one of several answers that are known already
    if not isinstance(tensor, Tensor) or len(view.all_input_nodes) != 1:
        return False
    probe = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
    try:
        view.target(probe, *view.args[1:], **view.kwargs)
    except RuntimeError:
        return False
    return True


QKV = Fusion(name="qkv", fuse=qkv)
