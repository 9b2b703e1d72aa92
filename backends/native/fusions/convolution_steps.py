"""Convolutions that no kernel of ours computes hand their bias, residual and activation to the pointwise programs.

torch launches a kernel for each of these steps after such a convolution, so one program for all of them is faster.
"""

from collections.abc import Callable, Mapping

import torch
from torch.fx import GraphModule, Node
from torch.fx.node import Argument

from autotune.backends.native.fusions.reading import call
from autotune.backends.native.graph import aten, place, put_in_place, same_layout, value
from autotune.backends.native.refusals import refuse
from autotune.backends.native.sites import CONV2D, conv_problem

_Call = tuple[Callable[..., object], Mapping[str, Argument]]
_ACTIVATIONS: Mapping[str, _Call] = {
    "relu": (aten.relu.default, {}), "gelu": (aten.gelu.default, {}),
    "gelu_tanh": (aten.gelu.default, {"approximate": "tanh"}), "silu": (aten.silu.default, {}),
    "relu6": (aten.relu6.default, {}), "hardswish": (aten.hardswish.default, {}),
    "hardsigmoid": (aten.hardsigmoid.default, {}), "sigmoid": (aten.sigmoid.default, {}),
    "tanh": (aten.tanh.default, {}),
}  # fmt: skip


def release_steps(module: GraphModule) -> list[str]:
    """Write the steps after such convolutions as operators of their own again; returns the convolutions' places."""
    return [place(node) for node in list(module.graph.nodes) if node.target is CONV2D and _release(node)]


def _release(node: Node) -> bool:
    *operands, bias, residual, stride, padding, dilation, groups, activation = node.args
    answer = value(node)
    # cuDNN fuses all steps that end in a ReLU; programs in float64 have no kernel
    if activation == "relu" or answer is None or answer.dtype is torch.float64:
        return False
    if (bias, residual, activation) == (None, None, "none") or conv_problem(node) is not None:
        return False
    end, after = node, node.next
    steps: list[tuple[Callable[..., object], tuple[Argument, ...], Mapping[str, Argument]]] = []
    if bias is not None:
        channels = call(after, aten.view.default, (bias, [-1, 1, 1]))
        steps.append((aten.add.Tensor, (channels,), {}))
    if residual is not None:
        steps.append((aten.add.Tensor, (residual,), {}))
    if activation != "none":
        operator, options = _ACTIVATIONS[str(activation)]
        steps.append((operator, (), options))
    readers = list(node.users)
    for operator, others, options in steps:
        end = call(after, operator, (end, *others), options)
        put_in_place(end, node)
    if not same_layout(value(end), answer):
        while end is not node:
            before = end.args[0]
            end.graph.erase_node(end)
            assert isinstance(before, Node)
            end = before
        return refuse(node, "its steps would write their answer in another layout")
    for reader in readers:
        reader.replace_input_with(node, end)
    node.args = (*operands, None, None, stride, padding, dilation, groups, "none")
    return True
