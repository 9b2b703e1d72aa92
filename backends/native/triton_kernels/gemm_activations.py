# mypy: ignore-errors
"""Text that follows that of the GEMM's kernels for further activations: its ``finish`` replaces the one there."""

import triton
import triton.language as tl


@triton.jit
def clipped(x, TOP: tl.constexpr):
    """Return x between 0 and TOP; NaN stays."""
    x = tl.where(x < 0.0, 0.0, x)
    return tl.where(x > TOP, TOP, x)


@triton.jit
def finish(total, bias, residual, columns, at, inside, in_columns, ACTIVATION: tl.constexpr):
    """activation(total + bias + residual) in fp32; ``columns``, ``in_columns`` broadcast to ``at``, ``inside``."""
    if bias is not None:
        total += tl.load(bias + columns, mask=in_columns, other=0.0)
    if residual is not None:
        total += tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
    if ACTIVATION == "relu6":
        total = clipped(total, 6.0)
    elif ACTIVATION == "hardswish":
        total = total * clipped(total + 3.0, 6.0) / 6.0
    elif ACTIVATION == "hardsigmoid":
        total = clipped(total + 3.0, 6.0) / 6.0
    elif ACTIVATION == "sigmoid":
        total = 1.0 / (1.0 + tl.exp(-total))
    elif ACTIVATION == "tanh":  # loses digits near 0, about half a unit of fp32 there
        total = 1.0 - 2.0 / (1.0 + tl.exp(2.0 * total))
    return total
