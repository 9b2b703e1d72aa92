"""The memory layout of weights in a graph that runs in channels-last memory."""

import torch
from torch.fx import GraphModule, Node

from autotune.backends.native.graph import aten, constant
from autotune.backends.native.sites import CONV2D

_CONVOLUTIONS = {CONV2D, aten.conv2d.default, aten.conv2d.padding, aten.conv_transpose2d.input}
_CONVOLUTIONS |= {aten.convolution.default}


def convolutions_in_channels_last(module: GraphModule) -> int:
    """Put the weights of convolutions of images into channels-last memory, in place; returns their number.

    All other tensors keep their strides: the kernels of an attention are compiled for the strides of its mask.
    """
    converted = set()
    for node in module.graph.nodes:
        source = node.args[1] if node.target in _CONVOLUTIONS else None
        weight = constant(module, source)
        if isinstance(source, Node) and weight is not None and weight.dim() == 4:
            owner, _, name = str(source.target).rpartition(".")
            getattr(module.get_submodule(owner), name).data = weight.contiguous(memory_format=torch.channels_last)
            converted.add(source.target)
    return len(converted)
