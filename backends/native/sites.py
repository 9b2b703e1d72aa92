"""The places of a rewritten graph that a kernel of ours may take, each with the problem that it poses.

A site is known by its position among its graph's fused operators, which saving and loading a graph keep.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from autotune.backends.native import operators
from autotune.backends.native.graph import value
from autotune.kernel_problem import GemmProblem, OperandType

DTYPES: dict[torch.dtype, OperandType] = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}

_FUSED = torch.ops.autotune_native
GEMM, CONV2D = _FUSED.gemm.default, _FUSED.conv2d.default


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """One fused operator of a graph: ``index`` among all of them, the node's name, and its GEMM where it is one."""

    index: int
    name: str
    operator: str
    problem: GemmProblem | None


def fused_nodes(module: GraphModule) -> Iterator[Node]:
    """List the fused operators in the graph's order."""
    for node in module.graph.nodes:
        if node.op == "call_function" and getattr(node.target, "namespace", None) == operators.NAMESPACE:
            yield node


def sites(module: GraphModule, *, channels_last: bool) -> list[Site]:
    """List the fused operators; in channels-last memory a 1×1 convolution is a GEMM over its pixels."""
    found = []
    for index, node in enumerate(fused_nodes(module)):
        problem = None
        if node.target is GEMM:
            problem = _gemm_problem(node)
        elif node.target is CONV2D and channels_last:
            problem = _pixel_problem(node)
        name = cast(Any, node.target)._schema.name.rpartition("::")[2]
        found.append(Site(index=index, name=node.name, operator=name, problem=problem))
    return found


def _gemm_problem(node: Node) -> GemmProblem | None:
    a, b, bias, residual, activation = node.args
    x, weight = value(a), value(b)
    if x is None or weight is None or not x.numel() or not _stored(b, bias) or not weight.is_contiguous():
        return None
    return _problem(x.numel() // x.shape[-1], weight, bias, residual, str(activation))


def _pixel_problem(node: Node) -> GemmProblem | None:
    """The GEMM of a convolution that looks at one pixel at a time and leaves none out."""
    x, weight = value(node.args[0]), value(node.args[1])
    bias, residual, stride, padding, _, groups, activation = node.args[2:]
    if x is None or weight is None or tuple(weight.shape[2:]) != (1, 1) or groups != 1 or not x.numel():
        return None
    if not _stored(node.args[1], bias):
        return None
    if set(cast("list[int]", stride)) != {1} or set(cast("list[int]", padding)) != {0}:
        return None
    return _problem(x.numel() // x.shape[1], weight, bias, residual, str(activation))


def _stored(*operands: object) -> bool:
    """Whether operands are weights of the graph, or absent: what is computed anew has no layout to rely on."""
    return all(operand is None or (isinstance(operand, Node) and operand.op == "get_attr") for operand in operands)


def _problem(m: int, weight: Tensor, bias: object, residual: object, activation: str) -> GemmProblem | None:
    dtype = DTYPES.get(weight.dtype)
    if dtype is None:
        return None
    return GemmProblem(
        m=m, n=weight.shape[0], k=weight.shape[1], dtype=dtype, output=dtype,
        bias=bias is not None or activation != "none",  # a kernel's activation comes with a bias, of zeros if need be
        activation=activation, residual=residual is not None,  # type: ignore[arg-type]
    )  # fmt: skip
