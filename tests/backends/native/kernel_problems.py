"""Problems for kernels, their operands, and the bound that every kernel has to keep."""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, get_args

import torch
from torch import Tensor

from autotune.backends.native.kernel_kind import TORCH_NAMES
from autotune.kernel import LoadedKernel
from autotune.records.kernel_problem import Activation, GemmProblem, Window

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
    a, b = normal(*problem.a_shape, dtype=operand), normal(problem.n, problem.k, dtype=operand)
    bias = normal(problem.n, dtype="float32") if problem.bias else None
    return a, b, bias, normal(problem.m, problem.n, dtype=result) if problem.residual else None


def empty(problem: GemmProblem, device: str = "cpu") -> Tensor:
    """A place for the results, filled with what no kernel may leave there."""
    return torch.full(
        (problem.m, problem.n), math.nan, dtype=getattr(torch, TORCH_NAMES[problem.output]), device=device
    )


def product(problem: GemmProblem, a: Tensor, b: Tensor) -> Tensor:
    """A·B, by hand where A is read through a window: place after place of its kernel."""
    window = problem.window
    if window is None:
        return a @ b.t()
    padded = torch.nn.functional.pad(a, (0, 0, window.padding[1], window.padding[1], *2 * (window.padding[0],)))
    down, right = window.places
    rows = [
        padded[:, y : y + (down - 1) * window.stride[0] + 1 : window.stride[0],
               x : x + (right - 1) * window.stride[1] + 1 : window.stride[1]]
        for y in range(0, window.kernel[0] * window.dilation[0], window.dilation[0])
        for x in range(0, window.kernel[1] * window.dilation[1], window.dilation[1])
    ]  # fmt: skip
    return torch.cat(rows, dim=-1).reshape(problem.m, problem.k) @ b.t()


def convolution(images: int, filters: int, window: Window, **values: Any) -> GemmProblem:
    """The problem of a convolution."""
    m, k = images * math.prod(window.places), window.channels * math.prod(window.kernel)
    return GemmProblem(m=m, n=filters, k=k, window=window, **values)


def terms(problem: GemmProblem, given: Operands) -> Tensor:
    """The sum of the sizes of each element's terms, in fp64: what rounding errors are relative to."""
    a, b, bias, residual = (None if tensor is None else tensor.double().abs() for tensor in given)
    assert a is not None and b is not None
    total = product(problem, a, b)
    total = total if bias is None else total + bias
    return total if residual is None else total + residual


def reference(problem: GemmProblem, given: Operands) -> Tensor:
    """The definition in fp64, from torch's functions and not from the code under test."""
    a, b, bias, residual = (None if tensor is None else tensor.double() for tensor in given)
    assert a is not None and b is not None
    total = product(problem, a, b) if bias is None else product(problem, a, b) + bias
    total = total if residual is None else total + residual
    functions = {
        "none": lambda x: x,
        "relu": torch.relu,
        "gelu": torch.nn.functional.gelu,
        "gelu_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
        "silu": torch.nn.functional.silu,
        "relu6": torch.nn.functional.relu6,
        "hardswish": torch.nn.functional.hardswish,
        "hardsigmoid": torch.nn.functional.hardsigmoid,
        "sigmoid": torch.sigmoid,
        "tanh": torch.tanh,
    }
    return functions[problem.activation](total)


def bound(problem: GemmProblem) -> float:
    """The error of an element relative to the sum of its terms' sizes and its own.

    Sums in fp32 in any order are off by k·2⁻²⁴ at most. A library rounds to the results' type up to four times (bias,
    product, sum with the residual, activation), each by half a unit; no activation grows an error by more than 1.5.
    Kernels take tanh from the hardware, which is off by 2⁻¹¹ at most, of which an activation keeps half.
    """
    unit = {"fp16": 2.0**-11, "bf16": 2.0**-8, "fp32": 2.0**-24}[problem.output]
    return 1.5 * (4 * unit + (problem.k + 2) * 2.0**-24 + 2.0**-11 * (problem.activation != "none"))


def check(kernel: LoadedKernel, problem: GemmProblem, seed: int, device: str = "cpu") -> None:
    """Call a kernel twice, on fresh operands each time, and hold it against the definition."""
    for turn in (0, 1):
        given = operands(problem, seed + turn, device)
        out = empty(problem, device)
        own = kernel(*given, out)
        compare(problem, given, out if own is None else own)


def compare(problem: GemmProblem, given: Operands, out: Tensor) -> None:
    """Hold results against the definition."""
    expected = reference(problem, given)
    error = ((out.double() - expected).abs() / (terms(problem, given) + expected.abs())).max().item()
    assert error <= bound(problem), f"{problem}: error {error:.3g}, at most {bound(problem):.3g}"
