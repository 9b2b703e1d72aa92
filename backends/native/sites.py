"""The sites of a rewritten graph, at which a kernel of ours may run, each with its kernel problem.

A site is identified by its position among its graph's fused operators, which saving and loading a graph keep.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from autotune.backends.native import operators
from autotune.backends.native.graph import aten, place, value
from autotune.backends.native.refusals import refuse
from autotune.records.kernel_problem import GemmProblem, OperandType, Window

DTYPES: dict[torch.dtype, OperandType] = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}

VECTOR = 8
"""Channels that are read at once: only the libraries compute a convolution whose channels are not a multiple of it."""

_FUSED = torch.ops.autotune_native
GEMM, CONV2D = _FUSED.gemm.default, _FUSED.conv2d.default


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """One fused operator of a graph: ``index`` among all of them, the node's name, and its GEMM if it is one.

    ``place`` is the path of the module that it was captured in.
    """

    index: int
    name: str
    operator: str
    problem: GemmProblem | None
    place: str


def fused_nodes(module: GraphModule) -> Iterator[Node]:
    """List the fused operators in the graph's order."""
    for node in module.graph.nodes:
        if node.op == "call_function" and getattr(node.target, "namespace", None) == operators.NAMESPACE:
            yield node


def reads_any_layout(module: GraphModule) -> bool:
    """Return true if images may come in any memory format: their only readers write blocks of their pixels.

    A check of their type, which torch.export puts before a cast, does not count.
    """
    images = [node for node in module.graph.nodes if node.op == "placeholder" and _is_image(node)]
    allowed = (_FUSED.space_to_depth.default, aten._assert_tensor_metadata.default)
    return all(user.target in allowed for node in images for user in node.users)


def _is_image(node: Node) -> bool:
    image = value(node)
    return image is not None and image.dim() == 4


def sites(module: GraphModule, *, channels_last: bool) -> list[Site]:
    """List the fused operators; in channels-last memory a convolution is a GEMM over the places of its window.

    If windows lie side by side, as for a vision transformer's patches, it is a GEMM over the images' parts themselves.
    """
    listed = []
    for index, node in enumerate(fused_nodes(module)):
        problem = None
        if node.target is GEMM:
            problem = _gemm_problem(node)
        elif node.target is CONV2D and channels_last:
            problem = conv_problem(node)
        elif node.target is CONV2D:
            refuse(node, "the model does not run in channels-last memory")
        name = cast("torch._ops.OpOverload", node.target)._schema.name.rpartition("::")[2]
        listed.append(Site(index=index, name=node.name, operator=name, problem=problem, place=place(node)))
    return listed


def _gemm_problem(node: Node) -> GemmProblem | None:
    a, b, bias, residual, activation = node.args
    x, weight = value(a), value(b)
    if x is None or weight is None or not x.numel() or not _stored(b, bias) or not weight.is_contiguous():
        refuse(node, "its matrix is computed, or not stored in rows")
        return None
    return _problem(x.numel() // x.shape[-1], weight, bias, residual, str(activation))


def conv_problem(node: Node) -> GemmProblem | None:
    """Return the GEMM of a convolution of whole images; without a window if each pixel is read once."""
    x, weight = value(node.args[0]), value(node.args[1])
    bias, residual, stride, padding, dilation, groups, activation = node.args[2:]
    if x is None or weight is None or not x.numel() or not _stored(node.args[1], bias):
        refuse(node, "its weights are computed")
        return None
    if isinstance(groups, int) and groups != 1:
        inside, outside = weight.shape[1], weight.shape[0] // groups
        refuse(node, f"a convolution of {groups} groups, with {inside} channels and {outside} filters each")
        return None
    window = Window(
        height=x.shape[2], width=x.shape[3], channels=x.shape[1], kernel=_pair(weight.shape[2:]),
        stride=_pair(stride), padding=_pair(padding), dilation=_pair(dilation),
    )  # fmt: skip
    pixels = math.prod(window.places)
    if is_split(x.shape, window.kernel, window.stride, window.padding, window.dilation):
        return _problem(x.shape[0] * pixels, weight, bias, residual, str(activation))
    if window.channels % VECTOR or weight.dtype == torch.float32:
        refuse(node, f"{window.channels} channels in {weight.dtype}: kernels read {VECTOR} at once, in half precision")
        return None
    return _problem(x.shape[0] * pixels, weight, bias, residual, str(activation), window)


def is_split(
    image: Sequence[int], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> bool:
    """Return true if a convolution divides an image [batch, channels, height, width]: each pixel is in one window."""
    divides = all(size % side == 0 for size, side in zip(image[2:], kernel, strict=True))
    dense = all(step == 1 or side == 1 for step, side in zip(dilation, kernel, strict=True))
    return divides and dense and tuple(kernel) == tuple(stride) and not any(padding)


def _pair(sizes: object) -> tuple[int, int]:
    first, *rest = cast("list[int]", sizes)
    return int(first), int(rest[0] if rest else first)


def _stored(*operands: object) -> bool:
    """Return true if operands are weights of the graph, or absent: the layout of computed values is not fixed."""
    return all(operand is None or (isinstance(operand, Node) and operand.op == "get_attr") for operand in operands)


def _problem(
    m: int, weight: Tensor, bias: object, residual: object, activation: str, window: Window | None = None
) -> GemmProblem | None:
    dtype = DTYPES.get(weight.dtype)
    if dtype is None:
        return None
    return GemmProblem(
        m=m, n=weight.shape[0], k=weight[0].numel(), dtype=dtype, output=dtype, window=window,
        bias=bias is not None or activation != "none",  # a kernel's activation comes with a bias, of zeros if need be
        activation=activation, residual=residual is not None,  # type: ignore[arg-type]
    )  # fmt: skip
