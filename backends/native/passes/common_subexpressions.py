"""A pass that computes equal expressions once.

torch's own passes for this (``fx_graph_cse``, ``CSEPass``) compare arguments as Python does, so that 0.0 equals -0.0,
and do not consider outputs that must not share memory.
"""

import operator
from collections.abc import Hashable

from torch.fx import GraphModule, Node

from autotune.backends.native.graph import Pass, constant, is_pure, may_replace, replace


def common_subexpressions(module: GraphModule) -> int:
    """Merge nodes that apply the same operator to the same arguments; returns the number of removed nodes."""
    merged = 0
    first: dict[Hashable, Node] = {}
    for node in list(module.graph.nodes):
        key = _key(module, node)
        if key is None:
            continue
        earlier = first.setdefault(key, node)
        if earlier is not node and (node.op == "get_attr" or may_replace(node, earlier)):
            replace(node, earlier)
            merged += 1
    return merged


def _key(module: GraphModule, node: Node) -> Hashable:
    tensor = constant(module, node)
    if tensor is not None:  # tied weights have several names for the same memory
        address = (tensor.data_ptr(), tensor.storage_offset(), tensor.device, tensor.dtype)
        return ("constant", *address, tensor.shape, tensor.stride()) if tensor.numel() else None
    if is_pure(node) or node.target is operator.getitem:
        return (node.target, _canonical(node.args), _canonical(node.kwargs))
    return None


def _canonical(argument: object) -> Hashable:
    if isinstance(argument, tuple | list):
        return tuple(map(_canonical, argument))
    if isinstance(argument, dict):
        return tuple((name, _canonical(argument[name])) for name in sorted(argument))
    if isinstance(argument, Node):
        return argument
    return type(argument), repr(argument)


COMMON_SUBEXPRESSIONS = Pass(name="common_subexpressions", apply=common_subexpressions)
