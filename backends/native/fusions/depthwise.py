"""A depthwise convolution becomes one operator with its bias, residual, activation and zero pads.

Each channel has a filter of its own, so it is no product of matrices. cuDNN's kernels for it are slow in channels-last
memory, and each step after one of them is a launch. A convolution over one dimension is one of images of a single row.
"""

import torch
from torch.fx import GraphModule, Node

from autotune.backends.native.fusions.conv_act import Convolution, convolution, unpadded
from autotune.backends.native.fusions.patterns import epilogue, of_one_dtype, put
from autotune.backends.native.fusions.reading import arguments, call, cast_source, sole_user
from autotune.backends.native.graph import Fusion, add_constant, aten, constant, place, put_in_place, replace, value
from autotune.backends.native.refusals import refuse
from autotune.backends.native.sites import DTYPES

_DEPTHWISE = torch.ops.autotune_native.depthwise_conv2d.default


def depthwise(module: GraphModule) -> list[str]:
    """Rewrite depthwise convolutions with constant weights, each with its epilogue; returns their places."""
    for node in list(module.graph.nodes):
        if node.target is aten.conv1d.default:
            _as_images(module, node)
    return [place(node) for node in list(module.graph.nodes) if _fuse(module, node)]


def _as_images(module: GraphModule, node: Node) -> None:
    """Rewrite a depthwise convolution over one dimension as one of images of a single row."""
    given = arguments(node)
    x, weight, bias = given["input"], given["weight"], given["bias"]
    kernel, meta, rows = constant(module, weight), value(weight), value(x)
    if kernel is None or meta is None or rows is None or rows.dim() != 3 or not rows.is_contiguous():
        return
    if kernel.shape[1] != 1 or kernel.shape[0] != given["groups"] or not of_one_dtype(x, weight, bias, node):
        return
    if kernel.dtype not in DTYPES or (bias is not None and constant(module, bias) is None):
        return
    filters = add_constant(module, "row_weight", kernel.unsqueeze(2).contiguous(), meta.unsqueeze(2), before=node)
    settings = ([1, *given["stride"]], [0, *given["padding"]], [1, *given["dilation"]], given["groups"])
    images = call(node, aten.unsqueeze.default, (x, 2))
    convolved = call(node, aten.conv2d.default, (images, filters, bias, *settings))
    replace(node, call(node, aten.squeeze.dim, (convolved, 2)))


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
