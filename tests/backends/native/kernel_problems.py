"""Problems for kernels, their operands, and the bound that every kernel has to keep."""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import get_args

import torch
from torch import Tensor

from autotune.backends.native.kind import TORCH_NAMES
from autotune.kernel import Kernel
from autotune.kernel_problem import Activation, GemmProblem

Operands = tuple[Tensor, Tensor, Tensor | None, Tensor | None]


def epilogues(base: GemmProblem) -> Iterator[GemmProblem]:
    """Every epilogue of a problem."""
    for residual in (False, True):
        yield replace(base, bias=False, activation="none", residual=residual)
        for activation in get_args(Activation):
            yield replace(base, bias=True, activation=activation, residual=residual)


def operands(problem: GemmProblem, seed: int, device: str = "cpu") -> Operands:
    """Random operands in the types of the problem."""
    source = torch.Generator().manual_seed(seed)

    def normal(*shape: int, dtype: str) -> Tensor:
        return torch.randn(*shape, generator=source).to(getattr(torch, dtype)).to(device)

    operand, result = TORCH_NAMES[problem.dtype], TORCH_NAMES[problem.output]
    a, b = normal(problem.m, problem.k, dtype=operand), normal(problem.n, problem.k, dtype=operand)
    bias = normal(problem.n, dtype="float32") if problem.bias else None
    return a, b, bias, normal(problem.m, problem.n, dtype=result) if problem.residual else None


def empty(problem: GemmProblem, device: str = "cpu") -> Tensor:
    """A place for the results, filled with what no kernel may leave there."""
    return torch.full(
        (problem.m, problem.n), math.nan, dtype=getattr(torch, TORCH_NAMES[problem.output]), device=device
    )


def terms(given: Operands) -> Tensor:
    """The sum of the sizes of each element's terms, in fp64: what rounding errors are relative to."""
    a, b, bias, residual = (None if tensor is None else tensor.double().abs() for tensor in given)
    assert a is not None and b is not None
    total = a @ b.t()
    total = total if bias is None else total + bias
    return total if residual is None else total + residual


def reference(problem: GemmProblem, given: Operands) -> Tensor:
    """The definition in fp64, from torch's functions and not from the code under test."""
    a, b, bias, residual = (None if tensor is None else tensor.double() for tensor in given)
    assert a is not None and b is not None
    total = torch.nn.functional.linear(a, b, bias)
    total = total if residual is None else total + residual
    functions = {
        "none": lambda x: x,
        "relu": torch.relu,
        "gelu": torch.nn.functional.gelu,
        "gelu_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
        "silu": torch.nn.functional.silu,
    }
    return functions[problem.activation](total)


def bound(problem: GemmProblem) -> float:
    """The error of an element relative to the sum of its terms' sizes.

    Sums in fp32 in any order are off by k·2⁻²⁴ at most. A library rounds to the results' type up to four times (bias,
    product, sum with the residual, activation), each by half a unit; no activation grows an error by more than 1.13.
    Kernels take tanh from the hardware, which is off by 2⁻¹¹ at most, of which an activation keeps half.
    """
    unit = {"fp16": 2.0**-11, "bf16": 2.0**-8, "fp32": 2.0**-24}[problem.output]
    return 1.13 * (4 * unit + (problem.k + 2) * 2.0**-24 + 2.0**-11 * (problem.activation != "none"))


def check(kernel: Kernel, problem: GemmProblem, seed: int, device: str = "cpu") -> None:
    """Call a kernel twice, on fresh operands each time, and hold it against the definition."""
    for turn in (0, 1):
        given = operands(problem, seed + turn, device)
        out = empty(problem, device)
        kernel(*given, out)
        compare(problem, given, out)


def compare(problem: GemmProblem, given: Operands, out: Tensor) -> None:
    """Hold results against the definition."""
    error = ((out.double() - reference(problem, given)).abs() / terms(given)).max().item()
    assert error <= bound(problem), f"{problem}: error {error:.3g}, at most {bound(problem):.3g}"
