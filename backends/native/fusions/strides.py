"""The strides of values after a value whose strides change."""

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg

from autotune.backends.native.graph import is_view, reaches_output, same_layout, value


def values_with(start: Node, instead: Tensor | None) -> dict[Node, Tensor] | None:
    """Return the values of the nodes after ``start`` if it has other strides, up to nodes whose strides do not change.

    ``None`` if an operator refuses the strides, or those or the memory of an output would change.
    """
    if instead is None or reaches_output(start):
        return None
    values: dict[Node, Tensor] = {}
    waiting = sorted(start.users)
    while waiting:
        node = waiting.pop(0)
        if node in values:
            continue
        if node.op != "call_function":
            return None
        operands = {one: values.get(one, one.meta.get("val")) for one in node.all_input_nodes}
        operands.update({start: instead})
        if is_view(node) and not _shows(node, operands[node.all_input_nodes[0]]):
            return None
        try:
            answer = node.target(*map_arg(node.args, operands.get), **map_arg(node.kwargs, operands.get))  # type: ignore[operator]
        except (RuntimeError, ValueError):  # an operator that needs contiguous operands
            return None
        values[node] = answer
        if is_view(node) or not same_layout(answer, value(node)):
            waiting = sorted({*waiting, *node.users})
    return values


def _shows(view: Node, tensor: object) -> bool:
    """Return true if a view of a tensor of these strides exists.

    Tensors without data do not show it: torch 2.13 lets them be viewed as [16] from [4, 1, 4] with strides [18, 18, 1].
    """
    if not isinstance(view.target, torch._ops.OpOverload):
        return True  # one of several results, whose strides are known already
    if not isinstance(tensor, Tensor) or len(view.all_input_nodes) != 1:
        return False
    probe = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
    try:
        view.target(probe, *view.args[1:], **view.kwargs)
    except RuntimeError:
        return False
    return True
