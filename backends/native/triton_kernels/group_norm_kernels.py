# mypy: ignore-errors
"""Text of the group norm's kernel, which is read and compiled rather than imported."""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def activated(value, ACTIVATION: tl.constexpr):
    """Return the activation of values of fp32; NaN stays."""
    if ACTIVATION == "silu":
        value = value * (1.0 / (1.0 + tl.exp(-value)))
    elif ACTIVATION == "relu":
        value = tl.where(value < 0.0, 0.0, value)
    return value


@triton.jit
def group_norm(
    x,
    weight,
    bias,
    out,
    eps,
    PIXELS: tl.constexpr,
    GROUPS: tl.constexpr,
    CHANNELS: tl.constexpr,
    PIXEL_STRIDE: tl.constexpr,
    CHANNEL_STRIDE: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    EARLY: tl.constexpr,
):
    """One program takes one group of one image, of CHANNELS channels: it is read twice, the second time from cache."""
    if EARLY:  # the launch may begin before the one before it has ended
        gdc_launch_dependents()
        gdc_wait()
    image, group = tl.program_id(0) // GROUPS, tl.program_id(0) % GROUPS
    channel = tl.arange(0, BLOCK_CHANNELS)
    in_channels = channel < CHANNELS
    pixel = tl.arange(0, BLOCK_PIXELS)
    first = image.to(tl.int64) * (GROUPS * CHANNELS * PIXELS) + group * CHANNELS * CHANNEL_STRIDE
    at = first + pixel[:, None] * PIXEL_STRIDE + channel[None, :] * CHANNEL_STRIDE
    count, mean, squares = 0.0, 0.0, 0.0
    for start in range(0, PIXELS, BLOCK_PIXELS):
        inside = (start + pixel < PIXELS)[:, None] & in_channels[None, :]
        value = tl.load(x + at + start * PIXEL_STRIDE, mask=inside, other=0.0).to(tl.float32)
        # statistics of parts, joined as by Chan, Golub and LeVeque: no difference of large sums
        size = tl.minimum(PIXELS - start, BLOCK_PIXELS) * CHANNELS * 1.0
        middle = tl.sum(tl.sum(value, axis=1), axis=0) / size
        value = tl.where(inside, value - middle, 0.0)
        apart = middle - mean
        share = size / (count + size)
        squares += tl.sum(tl.sum(value * value, axis=1), axis=0) + apart * apart * count * share
        mean += apart * share
        count += size
    scale = 1.0 / tl.sqrt(squares / count + eps)
    column = group * CHANNELS + channel
    for start in range(0, PIXELS, BLOCK_PIXELS):
        inside = (start + pixel < PIXELS)[:, None] & in_channels[None, :]
        value = tl.load(x + at + start * PIXEL_STRIDE, mask=inside, other=0.0).to(tl.float32)
        value = (value - mean) * scale
        if weight is not None:
            value *= tl.load(weight + column, mask=in_channels, other=0.0).to(tl.float32)[None, :]
        if bias is not None:
            value += tl.load(bias + column, mask=in_channels, other=0.0).to(tl.float32)[None, :]
        value = activated(value, ACTIVATION)
        tl.store(out + at + start * PIXEL_STRIDE, value.to(out.dtype.element_ty), mask=inside)
