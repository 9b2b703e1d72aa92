"""A group norm becomes one operator with the activation after it."""

import torch
from torch.fx import GraphModule, Node

from autotune.backends.native.fusions.patterns import activation_of
from autotune.backends.native.fusions.reading import FLOATS, arguments, call, prune
from autotune.backends.native.graph import aten, place, put_in_place, same_layout, value
from autotune.backends.native.refusals import refuse
from autotune.backends.native.triton_kernels.group_norm import ACTIVATIONS

_GROUP_NORM = torch.ops.autotune_native.group_norm.default


def group_norm(module: GraphModule) -> list[str]:
    """Rewrite group norms, each alone or with its activation; returns their places."""
    norms = [node for node in module.graph.nodes if node.target is aten.group_norm.default and node.users]
    return [place(node) for node in norms if _fuse(module, node)]


def _fuse(module: GraphModule, node: Node) -> bool:
    given, answer = arguments(node), value(node)
    x = value(given["input"])
    tensors = [x, *(value(given[name]) for name in ("weight", "bias") if given[name] is not None)]
    if answer is None or x is None or any(tensor is None or tensor.dtype not in FLOATS for tensor in tensors):
        return refuse(node, "its operands are not floating tensors")
    activation, parts = activation_of(module, node)
    if activation not in ACTIVATIONS:
        activation, parts = "none", []
    end = parts[-1] if parts else node
    args = (given["input"], given["num_groups"], given["weight"], given["bias"], given["eps"], activation)
    new = call(end, _GROUP_NORM, args)
    if not same_layout(value(new), value(end)):
        prune(new)
        return refuse(node, "the kernel would write its answer in another layout")
    put_in_place(new, node)
    end.replace_all_uses_with(new)
    for replaced in reversed([node, *parts]):
        module.graph.erase_node(replaced)
    return True
