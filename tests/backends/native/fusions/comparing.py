"""What must hold of a graph that was fused, and how far its answers may lie from those before."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from hypothesis import HealthCheck, Phase, settings
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Node
from torch.nn import functional

from autotune.backends.native.fusions import FUSIONS, Fused, fuse
from autotune.model.precision import flat_module
from tests.backends.native.graphs import shared
from tests.thoroughness import examples

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
FEW = settings(
    max_examples=examples(40), deadline=None, derandomize=True, phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow],
)  # fmt: skip

SPELLINGS: Mapping[str, Sequence[Callable[[Tensor], Tensor]]] = {
    "none": [lambda x: x],
    "relu": [torch.relu, lambda x: x.clone().relu_()],
    "gelu": [
        functional.gelu,
        lambda x: 0.5 * x * (1 + torch.erf(x / 2**0.5)),
        lambda x: x * 0.5 * (1.0 + torch.erf(x * 0.7071067811865476)),
    ],
    "gelu_tanh": [
        lambda x: functional.gelu(x, approximate="tanh"),
        lambda x: 0.5 * x * (1.0 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * torch.pow(x, 3.0)))),
        lambda x: 0.5 * x * (1.0 + torch.tanh(x * (2 / torch.pi) ** 0.5 * (1.0 + 0.044715 * x * x))),
    ],
    "silu": [functional.silu, lambda x: x * x.sigmoid(), lambda x: x.sigmoid() * x, lambda x: x / (1 + torch.exp(-x))],
    "relu6": [functional.relu6, lambda x: x.clamp(0, 6), lambda x: x.relu().clamp(max=6.0)],
    "hardswish": [functional.hardswish, lambda x: x * functional.relu6(x + 3) / 6],
    "hardsigmoid": [functional.hardsigmoid, lambda x: functional.relu6(x + 3) / 6],
    "sigmoid": [torch.sigmoid, lambda x: 1 / (1 + torch.exp(-x))],
    "tanh": [torch.tanh],
}
"""Each activation as models write it."""

AROUND_ONE = ("hardsigmoid", "sigmoid", "tanh")
"""Activations that round numbers of about 1, however small x is."""


def fused(program: ExportedProgram, names: Sequence[str], *inputs: Tensor) -> tuple[Fused, list[Tensor], list[Tensor]]:
    """Fuse, and require the same dtypes and strides, weights left alone and no memory that is newly shared."""
    originals = [*program.state_dict.values(), *(t for t in program.constants.values() if isinstance(t, Tensor))]
    kept = [tensor.clone() for tensor in originals]
    done = fuse(program, names)
    with torch.no_grad():
        before, after = list(flat_module(program)(*inputs)), list(done.module(*inputs))
    for one, other in zip(before, after, strict=True):
        assert (one.dtype, one.shape, strides(one)) == (other.dtype, other.shape, strides(other))
    assert shared([*after, *inputs, *originals]) <= shared([*before, *inputs, *originals])
    assert all(torch.equal(one, other) for one, other in zip(kept, originals, strict=True))
    assert list(done.matches) == [name for name in FUSIONS if name in names]
    return done, before, after


def strides(tensor: Tensor) -> list[int]:
    """The steps between elements; along a dimension of one element there is none, and kernels put what they like."""
    return [step for size, step in zip(tensor.shape, tensor.stride(), strict=True) if size > 1]


def nodes(done: Fused, operator: str) -> list[Node]:
    """The nodes of one fused operator."""
    return [node for node in done.module.graph.nodes if str(node.target) == f"autotune_native.{operator}.default"]


def bound(terms: int, size: Tensor, dtype: torch.dtype) -> Tensor:
    """How far two ways of computing activation(sum) may lie apart; ``size`` is the sum of the terms' sizes.

    A sum of k products with a bias and a residual errs by (k + 3) u of its terms' sizes (Higham, Accuracy and Stability
    of Numerical Algorithms, 3.1), u being half the type's eps, whatever the order. No activation is steeper than 1.5.
    Spelled out it takes ten operators, each of which rounds a factor of x that is at most 2, so that sixteen roundings
    of x itself are more than they cost; the constants of a spelling may be off by 8 u of a float32. What is too small
    for the type's exponent loses less than its smallest number in each operator.
    """
    info = torch.finfo(dtype)
    return 2 * (1.5 * (terms + 3) + 16 + 8) * info.eps / 2 * size + 32 * info.smallest_normal * info.eps


def magnitude(*tensors: Any) -> list[Tensor | None]:
    """Sizes in float64."""
    return [None if tensor is None else tensor.double().abs() for tensor in tensors]


def within(one: Tensor, other: Tensor, limit: Tensor) -> bool:
    return bool(((one.double() - other.double()).abs() <= limit.reshape(one.shape)).all())
