# mypy: ignore-errors
"""Text of the kernel of pooling over channels-last memory, which is read and compiled rather than imported."""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def max_pool(
    x,
    out,
    SIZE: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    CHANNELS: tl.constexpr,
    PLACES_H: tl.constexpr,
    PLACES_W: tl.constexpr,
    KERNEL_H: tl.constexpr,
    KERNEL_W: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    PADDING_H: tl.constexpr,
    PADDING_W: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    BLOCK: tl.constexpr,
    EARLY: tl.constexpr,
):
    """Each element of the answer is the largest of its window; a NaN stays, and what lies outside never wins."""
    if EARLY:  # the launch may begin before the one before it has ended
        gdc_launch_dependents()
        gdc_wait()
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    channel = at % CHANNELS
    place = at // CHANNELS
    left = (place % PLACES_W) * STRIDE_W - PADDING_W
    above = (place // PLACES_W % PLACES_H) * STRIDE_H - PADDING_H
    image = (place // (PLACES_W * PLACES_H)).to(tl.int64) * (HEIGHT * WIDTH * CHANNELS)
    largest = tl.full((BLOCK,), float("-inf"), tl.float32)
    for down in tl.static_range(KERNEL_H):
        y = above + down * DILATION_H
        for right in tl.static_range(KERNEL_W):
            column = left + right * DILATION_W
            inside = (at < SIZE) & (y >= 0) & (y < HEIGHT) & (column >= 0) & (column < WIDTH)
            value = tl.load(x + image + (y * WIDTH + column) * CHANNELS + channel, mask=inside, other=float("-inf"))
            value = value.to(tl.float32)
            largest = tl.where((value > largest) | (value != value), value, largest)
    tl.store(out + at, largest.to(out.dtype.element_ty), mask=at < SIZE)
