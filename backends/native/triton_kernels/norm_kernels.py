# mypy: ignore-errors
"""Text of the norm's kernel, which is read and compiled rather than imported."""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def norm(
    x,
    residual,
    weight,
    bias,
    total,
    out,
    rows,
    eps,
    COLUMNS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    LAYER: tl.constexpr,
    EARLY: tl.constexpr,
):
    """One program takes whole rows, which stay in registers: x is read once and the answer written once."""
    if EARLY:  # the launch may begin before the one before it has ended
        gdc_launch_dependents()
        gdc_wait()
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    column = tl.arange(0, BLOCK_COLUMNS)
    in_columns = column < COLUMNS
    inside = (row < rows)[:, None] & in_columns[None, :]
    at = row.to(tl.int64)[:, None] * COLUMNS + column[None, :]
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    if residual is not None:
        value += tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
    if total is not None:
        rounded = value.to(total.dtype.element_ty)
        tl.store(total + at, rounded, mask=inside)
        value = rounded.to(tl.float32)  # what is normalised is the sum that others read
    if LAYER:
        value -= tl.sum(value, axis=1)[:, None] / COLUMNS
        value = tl.where(in_columns[None, :], value, 0.0)
    variance = tl.sum(value * value, axis=1) / COLUMNS
    value = value * (1.0 / tl.sqrt(variance + eps))[:, None]
    if weight is not None:
        value *= tl.load(weight + column, mask=in_columns, other=0.0).to(tl.float32)[None, :]
    if bias is not None:
        value += tl.load(bias + column, mask=in_columns, other=0.0).to(tl.float32)[None, :]
    tl.store(out + at, value.to(out.dtype.element_ty), mask=inside)
