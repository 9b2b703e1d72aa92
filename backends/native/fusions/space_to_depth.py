"""A first convolution over few channels becomes one over the pixels of blocks, which suits the tensor cores.

With three channels they would be idle for most of each instruction. A convolution with stride s sees the same pixels if
blocks of s×s of them become channels, and its stride 1 and its padding part of the blocks (as in MLPerf's ResNet-50).
Patches of images, whose windows lie side by side, become a product of the blocks: one kernel reads images of any type
and memory format, where a cast and a copy would be two.
"""

import math

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from autotune.backends.native import operators
from autotune.backends.native.fusions.conv_act import Convolution, convolution, unpadded
from autotune.backends.native.fusions.reading import call, cast_source, prune, sole_user
from autotune.backends.native.graph import Fusion, add_constant, aten, constant, place, replace, same_layout, value
from autotune.search_spaces.hopper_gemm import BOX_COLUMNS

FEW, VECTOR = 4, 8
"""The most channels of such a convolution, and the channels that kernels read at once."""

_SPACE_TO_DEPTH = torch.ops.autotune_native.space_to_depth.default


def space_to_depth(module: GraphModule) -> list[str]:
    """Rewrite convolutions with constant weights over few channels; returns their places."""
    return [place(node) for node in list(module.graph.nodes) if _rewrite(module, node)]


def _rewrite(module: GraphModule, node: Node) -> bool:
    convolved = convolution(module, node)
    given = None if convolved is None else unpadded(convolved)  # blocks may be padded on each side by another size
    weight = None if given is None else constant(module, given.weight)
    if given is None or weight is None or not _is_wanted(given, weight):
        return False
    meta, answer, typical = value(given.x), value(node), value(given.weight)
    if meta is None or answer is None or typical is None or not meta.numel():
        return False
    block, sides = given.stride, weight.shape[2:]
    steps = [math.ceil(pad / side) for pad, side in zip(given.padding, block, strict=True)]
    before = [count * side for count, side in zip(steps, block, strict=True)]
    # Blocks begin this many pixels before the first window, so zeros are before its weights.
    shift = [first - pad for first, pad in zip(before, given.padding, strict=True)]
    kernel = [math.ceil((off + size) / side) for off, size, side in zip(shift, sides, block, strict=True)]
    size = [places + reach - 1 for places, reach in zip(answer.shape[2:], kernel, strict=True)]
    channels = _channels(meta.shape[1] * math.prod(block), kernel)
    source = cast_source(given.x) if sole_user(given.x) is not None else None
    args = (source or given.x, block, before, size, channels, meta.dtype)
    images = call(node, _SPACE_TO_DEPTH, args)
    folded = operators.space_to_depth(weight, block, shift, kernel, channels, weight.dtype).contiguous()
    filters = add_constant(module, "folded_weight", folded, typical.new_empty(folded.shape), before=node)
    new = call(node, aten.conv2d.default, (images, filters, given.bias, [1, 1], [0, 0], [1, 1], 1))
    if not same_layout(value(new), answer):
        prune(new)
        return False
    replace(node, new)
    return True


def _is_wanted(given: Convolution, weight: Tensor) -> bool:
    """Return true if channels are few and blocks have several pixels."""
    few = given.groups == 1 and weight.shape[1] <= FEW
    return few and min(given.stride) > 1 and given.dilation == [1, 1]


def _channels(least: int, kernel: list[int]) -> int:
    """Return the least number of channels for which the rows of a kernel of blocks are whole boxes of a copy.

    A kernel of one block is a product, which has no boxes.
    """
    counts = range(math.ceil(least / VECTOR) * VECTOR, least + BOX_COLUMNS, VECTOR)
    return next(count for count in counts if kernel == [1, 1] or count * kernel[1] % BOX_COLUMNS == 0)


SPACE_TO_DEPTH = Fusion(name="space_to_depth", fuse=space_to_depth)
