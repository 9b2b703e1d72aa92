"""A convolution of images becomes one operator together with residual and activation."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import GraphModule, Node

from autotune.backends.native.fusions.patterns import epilogue, of_one_dtype, put
from autotune.backends.native.fusions.reading import call
from autotune.backends.native.graph import Fusion, aten, constant, place, put_in_place, value

_CONV2D = torch.ops.autotune_native.conv2d.default
_DEFAULTS = (None, [1, 1], [0, 0], [1, 1], 1)


def conv_act(module: GraphModule) -> list[str]:
    """Rewrite convolutions with constant weights, alone or with what follows them; gives the convolutions' places."""
    return [place(node) for node in list(module.graph.nodes) if _fuse(module, node)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Convolution:
    """What a convolution of images with constant weights is told; pairs are of height and width."""

    x: Node
    weight: Node
    bias: Node | None
    stride: list[int]
    padding: list[int]
    dilation: list[int]
    groups: int


def convolution(module: GraphModule, node: Node) -> Convolution | None:
    """Read a node; ``None`` where it is no such convolution, or its padding is not the same on both sides."""
    if node.target not in (aten.conv2d.default, aten.conv2d.padding) or node.kwargs:
        return None
    operands: tuple[Any, ...] = (*node.args, *_DEFAULTS[len(node.args) - 2 :])
    x, weight, bias, stride, padding, dilation, groups = operands
    like, kernel = value(x), constant(module, weight)
    if not isinstance(x, Node) or not isinstance(weight, Node) or like is None or like.dim() != 4 or kernel is None:
        return None
    if not (bias is None or (isinstance(bias, Node) and constant(module, bias) is not None)):
        return None
    around = _padding(padding, kernel.shape[2:], pair(dilation))
    if around is None or not of_one_dtype(x, weight, bias, node):
        return None
    return Convolution(
        x=x, weight=weight, bias=bias, stride=pair(stride), padding=around, dilation=pair(dilation), groups=groups
    )


def _fuse(module: GraphModule, node: Node) -> bool:
    given = convolution(module, node)
    if given is None:
        return False
    found = epilogue(module, node, given.bias, None, rows=False)
    settings = (given.stride, given.padding, given.dilation, given.groups)
    args = (given.x, given.weight, given.bias, found.residual, *settings, found.activation)
    new = call(found.end, _CONV2D, args)
    put_in_place(new, node)
    return put(found, new)


def pair(sizes: int | Sequence[int]) -> list[int]:
    """Height and width, of which torch takes one for both."""
    given = [sizes] if isinstance(sizes, int) else list(sizes)
    return given * 2 if len(given) == 1 else given


def _padding(padding: str | int | Sequence[int], kernel: Sequence[int], dilation: Sequence[int]) -> list[int] | None:
    """Padding in numbers; ``None`` where it is not the same on both sides."""
    if not isinstance(padding, str):
        return pair(padding)
    if padding == "valid":
        return [0, 0]
    total = [steps * (size - 1) for steps, size in zip(dilation, kernel, strict=True)]  # the same size as before
    return None if any(size % 2 for size in total) else [size // 2 for size in total]


CONV_ACT = Fusion(name="conv_act", fuse=conv_act)
