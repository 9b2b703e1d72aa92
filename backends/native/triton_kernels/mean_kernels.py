# mypy: ignore-errors
"""Text of the kernels of a mean over whole images, which is read and compiled rather than imported."""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def sum_pixels(
    x,
    out,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
    PART_PIXELS: tl.constexpr,
    DIVISOR: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    AHEAD: tl.constexpr,
    EARLY: tl.constexpr,
):
    """One program sums some channels of one image over PART_PIXELS of its pixels, and divides; parts lie outermost."""
    if EARLY:  # the launch may begin before the one before it has ended
        gdc_launch_dependents()
        gdc_wait()
    image, part = tl.program_id(1), tl.program_id(2)
    channel = tl.program_id(0) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    in_channels = (channel < CHANNELS)[None, None, :]
    last = tl.minimum((part + 1) * PART_PIXELS, PIXELS)
    first = x + image.to(tl.int64) * (PIXELS * CHANNELS)
    step = tl.arange(0, AHEAD)[:, None] * ROWS + tl.arange(0, ROWS)[None, :]
    total = tl.zeros((ROWS, BLOCK_CHANNELS), tl.float32)
    for start in range(0, PART_PIXELS, AHEAD * ROWS):
        pixel = part * PART_PIXELS + start + step
        inside = (pixel < last)[:, :, None] & in_channels
        at = pixel[:, :, None] * CHANNELS + channel[None, None, :]
        value = tl.load(first + at, mask=inside, other=0.0).to(tl.float32)
        # within a thread: an addition to the total behind each load would delay the next one
        total += tl.sum(value, axis=0)
    answer = tl.sum(total, axis=0) / DIVISOR
    at = (part * tl.num_programs(1) + image).to(tl.int64) * CHANNELS + channel
    tl.store(out + at, answer.to(out.dtype.element_ty), mask=channel < CHANNELS)


@triton.jit
def add_parts(
    partial,
    out,
    SIZE: tl.constexpr,
    PARTS: tl.constexpr,
    DIVISOR: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    EARLY: tl.constexpr,
):
    """Add the sums of all parts in the same order each time, and divide."""
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < SIZE
    total = tl.zeros((ROWS, BLOCK), tl.float32)
    for first in range(0, PARTS, ROWS):
        part = (first + tl.arange(0, ROWS)).to(tl.int64)
        total += tl.load(partial + part[:, None] * SIZE + at[None, :], mask=inside[None, :], other=0.0)
    answer = tl.sum(total, axis=0) / DIVISOR
    tl.store(out + at, answer.to(out.dtype.element_ty), mask=inside)
