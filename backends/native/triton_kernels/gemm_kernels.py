# mypy: ignore-errors
"""Text of the kernels of a GEMM with few rows, which is read and compiled rather than imported."""

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
    if ACTIVATION == "relu":
        total = tl.where(total < 0.0, 0.0, total)  # NaN stays
    elif ACTIVATION == "gelu":
        total = 0.5 * total * (1.0 + tl.erf(total * 0.7071067811865476))
    elif ACTIVATION == "gelu_tanh":  # 0.5 (1 + tanh(u)) = sigmoid(2u)
        total = total * (1.0 / (1.0 + tl.exp(-1.5957691216057308 * (total + 0.044715 * total * total * total))))
    elif ACTIVATION == "silu":
        total = total * (1.0 / (1.0 + tl.exp(-total)))
    elif ACTIVATION == "relu6":
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


@triton.jit
def dot(
    a,
    b,
    bias,
    residual,
    out,
    m,
    n,
    k_units,
    K_DIVISOR: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SPLITS: tl.constexpr,
    WHOLE_K: tl.constexpr,
    ACTIVATION: tl.constexpr,
    STAGES: tl.constexpr,
):
    """One program takes all rows, some columns and one of SPLITS parts of k; ``out`` has a plane for each split."""
    k = k_units * K_DIVISOR  # by which the compiler knows how rows are aligned, and copies them whole and ahead
    split = tl.program_id(1)
    row = tl.arange(0, BLOCK_M)
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    depth = tl.arange(0, BLOCK_K)
    in_rows, in_columns = (row < m)[:, None], (column < n)[None, :]
    steps = tl.cdiv(k, BLOCK_K * SPLITS)
    first = split * steps * BLOCK_K
    a_at = a + row[:, None] * k + (first + depth)[None, :]
    b_at = b + column.to(tl.int64)[None, :] * k + (first + depth)[:, None]
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for step in tl.range(0, steps, num_stages=STAGES):
        if WHOLE_K:
            left = tl.load(a_at, mask=in_rows, other=0.0)
            right = tl.load(b_at, mask=in_columns, other=0.0)
        else:
            in_depth = first + step * BLOCK_K + depth < k
            left = tl.load(a_at, mask=in_rows & in_depth[None, :], other=0.0)
            right = tl.load(b_at, mask=in_columns & in_depth[:, None], other=0.0)
        total = tl.dot(left, right, total, input_precision="ieee")  # counts for fp32 operands alone
        a_at += BLOCK_K
        b_at += BLOCK_K
    at = row.to(tl.int64)[:, None] * n + column[None, :]
    inside = in_rows & in_columns
    if SPLITS > 1:
        at += split.to(tl.int64) * m * n
    else:
        total = finish(total, bias, residual, column[None, :], at, inside, in_columns, ACTIVATION)
    tl.store(out + at, total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def gemv_row(total, ROW: tl.constexpr, bias, residual, out, m, n, column, split, SPLITS: tl.constexpr,
             ACTIVATION: tl.constexpr):  # fmt: skip
    """Write one row of the answer, whose sums over k lie along the second dimension of ``total``."""
    answer = tl.sum(total, axis=1)
    at = ROW * n.to(tl.int64) + column
    inside = column < n
    if SPLITS > 1:
        at += split.to(tl.int64) * m * n
    else:
        answer = finish(answer, bias, residual, column, at, inside, inside, ACTIVATION)
    tl.store(out + at, answer.to(out.dtype.element_ty), mask=inside)


@triton.jit
def gemv(
    a,
    b,
    bias,
    residual,
    out,
    m,
    n,
    k_units,
    K_DIVISOR: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SPLITS: tl.constexpr,
    WHOLE_K: tl.constexpr,
    ACTIVATION: tl.constexpr,
    STAGES: tl.constexpr,
):
    """The same for 1 to 4 rows without tensor cores: each row of ``b`` is read once and serves all rows of ``a``."""
    k = k_units * K_DIVISOR  # by which the compiler knows how rows are aligned, and copies them whole and ahead
    split = tl.program_id(1)
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    depth = tl.arange(0, BLOCK_K)
    steps = tl.cdiv(k, BLOCK_K * SPLITS)
    first = split * steps * BLOCK_K
    b_at = b + column.to(tl.int64)[:, None] * k + (first + depth)[None, :]
    a_at = a + first + depth
    total0 = tl.zeros((BLOCK_N, BLOCK_K), dtype=tl.float32)
    total1, total2, total3 = total0, total0, total0
    for step in tl.range(0, steps, num_stages=STAGES):
        in_columns = (column < n)[:, None]
        in_depth = depth >= 0 if WHOLE_K else first + step * BLOCK_K + depth < k
        right = tl.load(b_at, mask=in_columns & in_depth[None, :], other=0.0).to(tl.float32)
        total0 += right * tl.load(a_at, mask=in_depth, other=0.0).to(tl.float32)[None, :]
        if ROWS > 1:
            total1 += right * tl.load(a_at + k, mask=in_depth, other=0.0).to(tl.float32)[None, :]
        if ROWS > 2:
            total2 += right * tl.load(a_at + 2 * k, mask=in_depth, other=0.0).to(tl.float32)[None, :]
        if ROWS > 3:
            total3 += right * tl.load(a_at + 3 * k, mask=in_depth, other=0.0).to(tl.float32)[None, :]
        a_at += BLOCK_K
        b_at += BLOCK_K
    gemv_row(total0, 0, bias, residual, out, m, n, column, split, SPLITS, ACTIVATION)
    if ROWS > 1:
        gemv_row(total1, 1, bias, residual, out, m, n, column, split, SPLITS, ACTIVATION)
    if ROWS > 2:
        gemv_row(total2, 2, bias, residual, out, m, n, column, split, SPLITS, ACTIVATION)
    if ROWS > 3:
        gemv_row(total3, 3, bias, residual, out, m, n, column, split, SPLITS, ACTIVATION)


@triton.jit
def add_splits(partial, bias, residual, out, m, n, SPLITS: tl.constexpr, BLOCK: tl.constexpr, ACTIVATION: tl.constexpr):
    """Add the planes of a split GEMM in their order, so that the answer has the same bits each time."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    size = m.to(tl.int64) * n
    inside = at < size
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for split in tl.static_range(SPLITS):
        total += tl.load(partial + split * size + at, mask=inside, other=0.0)
    total = finish(total, bias, residual, at % n, at, inside, inside, ACTIVATION)
    tl.store(out + at, total.to(out.dtype.element_ty), mask=inside)
