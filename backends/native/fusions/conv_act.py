"""A convolution of images becomes one operator with its residual and activation."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import Argument

from autotune.backends.native.fusions.patterns import epilogue, of_one_dtype, put
from autotune.backends.native.fusions.reading import arguments, call
from autotune.backends.native.graph import Fusion, aten, constant, place, put_in_place, value
from autotune.backends.native.refusals import refuse

_CONV2D = torch.ops.autotune_native.conv2d.default
_Operands = tuple[Argument, Argument, Argument, Sequence[int], str | Sequence[int], Sequence[int], int]
_DEFAULTS = (None, [1, 1], [0, 0], [1, 1], 1)
_OF_OTHERS = {aten.conv1d.default, aten.conv1d.padding, aten.conv3d.default, aten.conv3d.padding}
_OF_OTHERS |= {aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input}


def conv_act(module: GraphModule) -> list[str]:
    """Rewrite convolutions with constant weights, alone or with their epilogues; returns the convolutions' places."""
    return [place(node) for node in list(module.graph.nodes) if _fuse(module, node)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Convolution:
    """The arguments of a convolution of images with constant weights; pairs are of height and width."""

    x: Node
    weight: Node
    bias: Node | None
    stride: list[int]
    padding: list[int]
    dilation: list[int]
    groups: int


def convolution(module: GraphModule, node: Node) -> Convolution | None:
    """Read a node as a convolution; ``None`` if it is none, or its padding is not the same on both sides."""
    if node.target in _OF_OTHERS:
        refuse(node, "convolutions are read in two dimensions, and not transposed")
    if node.target not in (aten.conv2d.default, aten.conv2d.padding) or node.kwargs:
        return None
    operands = (*node.args, *_DEFAULTS[len(node.args) - 2 :])
    x, weight, bias, stride, padding, dilation, groups = cast("_Operands", operands)
    meta, kernel = value(x), constant(module, weight)
    if not isinstance(x, Node) or not isinstance(weight, Node) or meta is None or meta.dim() != 4 or kernel is None:
        refuse(node, "its weights are computed, or its input has no batch")
        return None
    if not (bias is None or (isinstance(bias, Node) and constant(module, bias) is not None)):
        refuse(node, "its bias is computed")
        return None
    around = _padding(padding, kernel.shape[2:], pair(dilation))
    if around is None or not of_one_dtype(x, weight, bias, node):
        refuse(node, "its padding differs between two sides" if around is None else "its operands differ in type")
        return None
    return Convolution(
        x=x, weight=weight, bias=bias, stride=pair(stride), padding=around, dilation=pair(dilation), groups=groups
    )


def _fuse(module: GraphModule, node: Node) -> bool:
    convolved = convolution(module, node)
    if convolved is None:
        return False
    convolved = _padding_itself(module, convolved, value(node))
    following = epilogue(module, node, convolved.bias, None, rows=False)
    settings = (convolved.stride, convolved.padding, convolved.dilation, convolved.groups)
    args = (convolved.x, convolved.weight, convolved.bias, following.residual, *settings, following.activation)
    new = call(following.end, _CONV2D, args)
    put_in_place(new, node)
    return put(following, following.views.replayed(following.end, new))


def unpadded(convolved: Convolution) -> Convolution:
    """Return the convolution of the source of zero pads, with their sizes added to the padding.

    These are the sizes above and to the left; those below and to the right may be others.
    """
    while (padded := _zero_pad(convolved.x)) is not None:
        x, (left, above) = padded
        convolved = replace(convolved, x=x, padding=[convolved.padding[0] + above, convolved.padding[1] + left])
    return convolved


def _zero_pad(node: Node) -> tuple[Node, tuple[int, int]] | None:
    """Return the source of a pad of images by zeros, and its size to the left and above; ``None`` if it is none."""
    if node.target not in (aten.pad.default, aten.constant_pad_nd.default):
        return None
    given = arguments(node)
    sizes, source, meta = given["pad"], given["self"], value(given["self"])
    mode = given.get("mode", "constant")
    if mode != "constant" or given["value"] not in (None, 0) or meta is None or meta.dim() != 4:
        return None
    if any(size < 0 for size in sizes) or any(sizes[4:]):
        return None
    return source, (sizes[0], sizes[2] if len(sizes) > 2 else 0)


def _padding_itself(module: GraphModule, convolved: Convolution, answer: Tensor | None) -> Convolution:
    """Return a convolution without the zero pad before it, if padding on both sides alike has the same answer.

    It has if the answer has as many places: the windows begin at the same pixels, and read zeros outside the image.
    """
    candidate = unpadded(convolved)
    image, weight = value(candidate.x), constant(module, candidate.weight)
    if image is None or weight is None or answer is None:
        return convolved
    sides = zip(image.shape[2:], weight.shape[2:], candidate.padding, candidate.dilation, candidate.stride, strict=True)
    places = [(size + 2 * pad - step * (kernel - 1) - 1) // stride + 1 for size, kernel, pad, step, stride in sides]
    return candidate if places == list(answer.shape[2:]) else convolved


def pair(sizes: int | Sequence[int]) -> list[int]:
    """Return height and width; torch accepts one number for both."""
    sides = [sizes] if isinstance(sizes, int) else list(sizes)
    return sides * 2 if len(sides) == 1 else sides


def _padding(padding: str | int | Sequence[int], kernel: Sequence[int], dilation: Sequence[int]) -> list[int] | None:
    """Return the padding in numbers; ``None`` if it is not the same on both sides."""
    if not isinstance(padding, str):
        return pair(padding)
    if padding == "valid":
        return [0, 0]
    total = [steps * (size - 1) for steps, size in zip(dilation, kernel, strict=True)]  # the same size as before
    return None if any(size % 2 for size in total) else [size // 2 for size in total]


CONV_ACT = Fusion(name="conv_act", fuse=conv_act)
