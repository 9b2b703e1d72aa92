# mypy: ignore-errors
"""Text of the attention kernel, which is read and compiled rather than imported."""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def attention(
    q,
    k,
    v,
    mask,
    out,
    scale_log2,
    HEADS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    BLOCK_DEPTH: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    Q_BATCH: tl.constexpr,
    Q_HEAD: tl.constexpr,
    Q_ROW: tl.constexpr,
    K_BATCH: tl.constexpr,
    K_HEAD: tl.constexpr,
    K_ROW: tl.constexpr,
    V_BATCH: tl.constexpr,
    V_HEAD: tl.constexpr,
    V_ROW: tl.constexpr,
    M_BATCH: tl.constexpr,
    M_HEAD: tl.constexpr,
    M_ROW: tl.constexpr,
    M_COLUMN: tl.constexpr,
    HIDES: tl.constexpr,
    CAUSAL: tl.constexpr,
    STAGES: tl.constexpr,
    EARLY: tl.constexpr,
):
    """One program takes some queries of one head and goes over the keys once (Dao: FlashAttention-2, 2023).

    ``out`` has batch, row, head and depth in this order. HIDES says that the mask is true where a key is seen; else it
    is added to the scores. A row that sees no key is 0.
    """
    if EARLY:  # the launch may begin before the one before it has ended
        gdc_launch_dependents()
        gdc_wait()
    batch = (tl.program_id(1) // HEADS).to(tl.int64)
    head = tl.program_id(1) % HEADS
    first = tl.program_id(0) * BLOCK_ROWS
    row = first + tl.arange(0, BLOCK_ROWS)
    depth = tl.arange(0, BLOCK_DEPTH)
    in_rows = (row < ROWS)[:, None] & (depth < DEPTH)[None, :]
    q_at = q + batch * Q_BATCH + head * Q_HEAD
    query = tl.load(q_at + row[:, None] * Q_ROW + depth[None, :], mask=in_rows, other=0.0)
    k_at = k + batch * K_BATCH + head * K_HEAD
    v_at = v + batch * V_BATCH + head * V_HEAD
    largest = tl.full((BLOCK_ROWS,), float("-inf"), tl.float32)
    weight = tl.zeros((BLOCK_ROWS,), tl.float32)
    total = tl.zeros((BLOCK_ROWS, BLOCK_DEPTH), tl.float32)
    end = COLUMNS
    if CAUSAL:
        end = tl.minimum(COLUMNS, first + BLOCK_ROWS)
    for start in tl.range(0, end, BLOCK_COLUMNS, num_stages=STAGES):
        column = start + tl.arange(0, BLOCK_COLUMNS)
        in_columns = (column < COLUMNS)[:, None] & (depth < DEPTH)[None, :]
        key = tl.load(k_at + column[:, None] * K_ROW + depth[None, :], mask=in_columns, other=0.0)
        score = tl.dot(query, tl.trans(key), input_precision="ieee") * scale_log2
        seen = (column < COLUMNS)[None, :]
        if CAUSAL:
            seen = seen & (row[:, None] >= column[None, :])
        if mask is not None:
            m_at = mask + batch * M_BATCH + head * M_HEAD + row[:, None] * M_ROW + column[None, :] * M_COLUMN
            inside = (row < ROWS)[:, None] & (column < COLUMNS)[None, :]
            if HIDES:
                seen = seen & (tl.load(m_at, mask=inside, other=0) != 0)
            else:
                score += tl.load(m_at, mask=inside, other=0.0).to(tl.float32) * 1.4426950408889634
        score = tl.where(seen, score, float("-inf"))
        higher = tl.maximum(largest, tl.max(score, axis=1))
        base = tl.where(higher == float("-inf"), 0.0, higher)
        part = tl.exp2(score - base[:, None])
        kept = tl.exp2(largest - base)
        weight = weight * kept + tl.sum(part, axis=1)
        value = tl.load(v_at + column[:, None] * V_ROW + depth[None, :], mask=in_columns, other=0.0)
        total = tl.dot(part.to(value.dtype), value, total * kept[:, None], input_precision="ieee")
        largest = higher
    total = total / tl.where(weight == 0.0, 1.0, weight)[:, None]
    at = ((batch * ROWS + row)[:, None] * HEADS + head) * DEPTH + depth[None, :]
    tl.store(out + at, total.to(out.dtype.element_ty), mask=in_rows)
