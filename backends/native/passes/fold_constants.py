"""What follows from constants alone is computed once, at build time."""

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from autotune.backends.native.graph import Pass, add_constant, constant, is_pure, reaches_output, replace, value

LIMIT_BYTES = 1 << 20
"""What folding may create where the result is larger than what it is made of. Constants are stored in the artifact and
read from memory at each call, while a table that is made of little is made faster than it is read, once it has outgrown
a core's second-level cache (1 to 2 MiB on today's servers)."""


def fold_constants(module: GraphModule) -> int:
    """Replace nodes that depend on no input by their values; returns how many."""
    folded = 0
    for node in list(module.graph.nodes):
        like = value(node)
        if like is None or not is_pure(node) or reaches_output(node):
            continue  # an output is the caller's to write into
        known = {source: constant(module, source) for source in node.all_input_nodes}
        if any(tensor is None for tensor in known.values()):
            continue
        read = sum(tensor.nbytes for tensor in known.values() if tensor is not None)
        if like.nbytes > max(read, LIMIT_BYTES):
            continue
        answer = _compute(node, known)
        if (answer.shape, answer.stride(), answer.dtype) != (like.shape, like.stride(), like.dtype):
            continue  # a kernel that lays its answer out otherwise than the graph says
        replace(node, add_constant(module, "folded", answer, like, before=node))
        folded += 1
    return folded


def _compute(node: Node, known: dict[Node, Tensor | None]) -> Tensor:
    assert isinstance(node.target, torch._ops.OpOverload)
    args = map_arg(node.args, lambda one: known[one])
    kwargs = map_arg(node.kwargs, lambda one: known[one])
    answer = node.target(*args, **kwargs)
    assert isinstance(answer, Tensor)
    return answer


FOLD_CONSTANTS = Pass(name="fold_constants", apply=fold_constants)
