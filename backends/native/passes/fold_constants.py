"""A pass that computes at build time what depends on constants only."""

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from autotune.backends.native.graph import Pass, add_constant, constant, is_pure, reaches_output, replace, value

LIMIT_BYTES = 1 << 20
"""The largest folded constant that is larger than its operands. Constants are stored in the artifact and read from
memory at each call; a table that is computed from little data is computed faster than it is read, if it is larger than
a core's second-level cache (1 to 2 MiB on current servers)."""


def fold_constants(module: GraphModule) -> int:
    """Replace nodes that depend on no input by their values; returns the number of folded nodes."""
    folded = 0
    for node in list(module.graph.nodes):
        meta = value(node)
        if meta is None or not is_pure(node) or reaches_output(node):
            continue  # the caller may write into an output
        constants = {source: constant(module, source) for source in node.all_input_nodes}
        if any(tensor is None for tensor in constants.values()):
            continue
        read = sum(tensor.nbytes for tensor in constants.values() if tensor is not None)
        if meta.nbytes > max(read, LIMIT_BYTES):
            continue
        answer = _compute(node, constants)
        if (answer.shape, answer.stride(), answer.dtype) != (meta.shape, meta.stride(), meta.dtype):
            continue  # this kernel's answer has another layout than the graph says
        replace(node, add_constant(module, "folded", answer, meta, before=node))
        folded += 1
    return folded


def _compute(node: Node, constants: dict[Node, Tensor | None]) -> Tensor:
    assert isinstance(node.target, torch._ops.OpOverload)
    args = map_arg(node.args, lambda source: constants[source])
    kwargs = map_arg(node.kwargs, lambda source: constants[source])
    answer = node.target(*args, **kwargs)
    assert isinstance(answer, Tensor)
    return answer


FOLD_CONSTANTS = Pass(name="fold_constants", apply=fold_constants)
