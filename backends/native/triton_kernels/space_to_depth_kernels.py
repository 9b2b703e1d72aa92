# mypy: ignore-errors
"""Text of the kernel that makes blocks of pixels channels, which is read and compiled rather than imported."""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def space_to_depth(
    x,
    out,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    IN_CHANNELS: tl.constexpr,
    IMAGE: tl.constexpr,
    CHANNEL: tl.constexpr,
    ROW: tl.constexpr,
    COLUMN: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BEFORE_H: tl.constexpr,
    BEFORE_W: tl.constexpr,
    SIZE_H: tl.constexpr,
    SIZE_W: tl.constexpr,
    CHANNELS: tl.constexpr,
    CHANNELS_AT_ONCE: tl.constexpr,
    BLOCKS: tl.constexpr,
    EARLY: tl.constexpr,
):
    """One program takes some blocks of an image; ``out`` lies channels last. IMAGE to COLUMN are the strides of x."""
    if EARLY:  # the launch may begin before the one before it has ended
        gdc_launch_dependents()
        gdc_wait()
    image = tl.program_id(1).to(tl.int64)
    block = tl.program_id(0) * BLOCKS + tl.arange(0, BLOCKS)
    channel = tl.arange(0, CHANNELS_AT_ONCE)
    y = (block // SIZE_W * BLOCK_H - BEFORE_H)[:, None] + (channel // (BLOCK_W * IN_CHANNELS))[None, :]
    column = (block % SIZE_W * BLOCK_W - BEFORE_W)[:, None] + (channel // IN_CHANNELS % BLOCK_W)[None, :]
    there = (block < SIZE_H * SIZE_W)[:, None] & (channel < CHANNELS)[None, :]
    inside = there & (channel < BLOCK_H * BLOCK_W * IN_CHANNELS)[None, :]
    inside = inside & (y >= 0) & (y < HEIGHT) & (column >= 0) & (column < WIDTH)
    at = (channel % IN_CHANNELS * CHANNEL)[None, :] + y * ROW + column * COLUMN
    value = tl.load(x + image * IMAGE + at, mask=inside, other=0.0)
    to = (image * (SIZE_H * SIZE_W) + block)[:, None] * CHANNELS + channel[None, :]
    tl.store(out + to, value.to(out.dtype.element_ty), mask=there)
