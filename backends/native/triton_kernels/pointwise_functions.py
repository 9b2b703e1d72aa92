# mypy: ignore-errors
# ruff: noqa: D103 -- they are named and defined as in autotune.backends.native.pointwise
"""Functions that generated kernels call, each of fp32 as torch means it: NaN stays NaN. Read rather than imported."""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait  # noqa: F401 (generated kernels call both)


@triton.jit
def relu(x):
    return tl.where(x < 0.0, 0.0, x)


@triton.jit
def maximum(x, y):
    return tl.where((x != x) | (x > y), x, y)  # a NaN in y fails x > y


@triton.jit
def minimum(x, y):
    return tl.where((x != x) | (x < y), x, y)


@triton.jit
def sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def tanh(x):
    """Cephes' tanhf: a polynomial where 1 - 2 / (exp(2x) + 1) would lose what is small."""
    size = tl.abs(x)
    square = x * x
    small = -5.70498872745e-3 * square + 2.06390887954e-2
    small = small * square - 5.37397155531e-2
    small = small * square + 1.33314422036e-1
    small = small * square - 3.33332819422e-1
    small = x + x * square * small
    large = 1.0 - 2.0 / (tl.exp(2.0 * size) + 1.0)
    large = tl.where(x < 0.0, -large, large)
    return tl.where(size < 0.625, small, large)


@triton.jit
def gelu(x):
    return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))


@triton.jit
def gelu_tanh(x):
    return x * sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))  # 0.5 (1 + tanh(u)) = sigmoid(2u)


@triton.jit
def hardsigmoid(x):
    return minimum(relu(x + 3.0), tl.full(x.shape, 6.0, tl.float32)) / 6.0


@triton.jit
def power(x, exponent: tl.constexpr, WHOLE: tl.constexpr, ODD: tl.constexpr):
    """In fp64, where the product of logarithm and exponent keeps enough digits for fp32."""
    wide = x.to(tl.float64)
    if WHOLE:
        size = tl.exp2(exponent * tl.log2(tl.abs(wide)))
        size = tl.where(ODD & (wide < 0.0), -size, size)
    else:
        size = tl.exp2(exponent * tl.log2(wide))
    return size.to(tl.float32)
