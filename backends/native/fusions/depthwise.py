"""A depthwise convolution becomes one operator with its bias, residual, activation and zero pads.

Each channel has a filter of its own, so it is no product of matrices. cuDNN's kernels for it are slow in channels-last
memory, and each step after one of them is a launch.
"""

import torch
from torch.fx import GraphModule, Node

from autotune.backends.native.fusions.conv_act import Convolution, convolution, unpadded
from autotune.backends.native.fusions.patterns import epilogue, put
from autotune.backends.native.fusions.reading import call, cast_source, sole_user
from autotune.backends.native.graph import Fusion, constant, place, put_in_place, value
from autotune.backends.native.refusals import refuse
from autotune.backends.native.sites import DTYPES

_DEPTHWISE = torch.ops.autotune_native.depthwise_conv2d.default


def depthwise(module: GraphModule) -> list[str]:
    """Rewrite depthwise convolutions with constant weights, each with its epilogue; returns their places."""
    return [place(node) for node in list(module.graph.nodes) if _fuse(module, node)]


def _fuse(module: GraphModule, node: Node) -> bool:
    convolved, answer = convolution(module, node), value(node)
    if convolved is None or answer is None or not answer.numel() or not _is_depthwise(module, node, convolved):
        return False
    padded = unpadded(convolved)  # an image may be padded by another size on each side
    following = epilogue(module, node, padded.bias, None, rows=False)
    source = cast_source(padded.x) if sole_user(padded.x) is not None else None
    images = padded.x if source is None or value(source).dtype not in DTYPES else source  # type: ignore[union-attr]
    settings = (padded.stride, padded.padding, list(answer.shape[2:]), padded.dilation, following.activation)
    new = call(following.end, _DEPTHWISE, (images, padded.weight, padded.bias, following.residual, *settings))
    put_in_place(new, node)
    return put(following, following.views.replayed(following.end, new))


def _is_depthwise(module: GraphModule, node: Node, convolved: Convolution) -> bool:
    """Return true if each channel has one filter, in a type that kernels read."""
    weight = constant(module, convolved.weight)
    if convolved.groups == 1 or weight is None:
        return False
    filters, channels = weight.shape[:2]
    if channels > 1:
        return refuse(node, f"groups of {channels} channels")
    if filters != convolved.groups:
        return refuse(node, f"{filters // convolved.groups} filters for each channel")
    return weight.dtype in DTYPES or refuse(node, f"kernels do not read {weight.dtype}")


DEPTHWISE = Fusion(name="depthwise", fuse=depthwise)
