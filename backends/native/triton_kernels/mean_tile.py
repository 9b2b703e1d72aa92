"""The shape of a mean over whole images, and the part of an image that a block of its kernel sums.

If a block summed all pixels of an image, a batch of 1 with few channels would have too few blocks for a GPU: 112×112
pixels of 32 channels would be one or two. So the pixels are divided among blocks if that pays for a second launch,
which adds their sums.
"""

import itertools
from dataclasses import dataclass
from typing import get_args

from autotune.backends.native.triton_kernels.launch_plan import blocks, power_of_two
from autotune.records.kernel_problem import BYTES, OperandType

ACCESS_BYTES = 16
"""The bytes of one access of a thread."""

ACCESSES = (8, 4, 2)
"""The accesses of a block along the channels: from 128 bytes, a line of the cache, to 32 bytes, a sector."""

AHEAD = 4
"""The accesses of a thread in one step: none waits for another, and the sums of the step wait for all of them."""

WARPS = (1, 2, 4, 8, 16)
MOST_PARTS = 256
PARTIAL_BYTES = 4

RESIDENT_WARPS = 32
"""The warps that run on an SM at once: a thread has up to 64 registers."""

STEP_US = 0.5
"""Assumed latency of a step: an access that misses the L1 cache, and the sums behind it."""

LAUNCH_US = 1.5
"""Assumed for the second launch, which waits for the first one: less than the 2 µs of an average launch in a CUDA graph
that :mod:`autotune.programs.coverage.estimate` assumes, since it reads little."""

SM_BYTES_PER_US = 110e3
"""One SM reads at most 64 bytes in a clock from the L2 cache, at 1.7 GHz."""

SHARE_BYTES_PER_US = 33e3
"""The share of an SM in the rate of the memory, if all SMs read: 4.3 TB/s by 132 SMs of an H200."""

MOST_ELEMENTS = 2**31 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class MeanShape:
    """``mean_pool2d`` of :mod:`autotune.backends.native.operators`, over ``pixels`` in channels-last memory.

    Sums are fp32. The answer has the type ``output``, or the images' type ``dtype`` without it.
    """

    images: int
    pixels: int
    channels: int
    dtype: OperandType
    output: OperandType | None = None
    programmatic_launch: bool = False
    """True if its launches may begin before the launch before each has ended, from sm_90 on."""

    def __post_init__(self) -> None:
        if not {self.dtype, self.output or self.dtype} <= set(get_args(OperandType)) or not 1 <= self.images <= 65535:
            raise ValueError(f"a mean is of {', '.join(get_args(OperandType))}, of 1 to 65535 images, found {self}")
        if min(self.pixels, self.channels) < 1 or self.images * self.pixels * self.channels > MOST_ELEMENTS:
            raise ValueError(f"images have 1 to {MOST_ELEMENTS} elements, found {self}")

    @property
    def vector(self) -> int:
        """The elements of one access of a thread."""
        return ACCESS_BYTES // BYTES[self.dtype]


@dataclass(frozen=True, slots=True, kw_only=True)
class MeanTile:
    """The sums of a block: ``channels`` of one of the ``parts`` of an image's pixels.

    The threads of ``warps`` lie along the channels first, and read ``rows`` of pixels with one access.
    """

    channels: int
    rows: int
    warps: int
    parts: int


def tile_of(shape: MeanShape, *, sm_count: int) -> MeanTile:
    """Choose the tile with the least estimated time; of equal ones the fewest parts, the most channels, few warps."""
    widths = {min(several * shape.vector, power_of_two(shape.channels)) for several in ACCESSES}
    parts = [1 << step for step in range(MOST_PARTS.bit_length()) if 1 << step <= shape.pixels]
    tiles = [
        MeanTile(channels=width, rows=32 * warps * shape.vector // max(width, shape.vector), warps=warps, parts=count)
        for count, width, warps in itertools.product(parts, sorted(widths, reverse=True), WARPS)
    ]
    return min(tiles, key=lambda tile: estimated_us(shape, tile, sm_count=sm_count))


def estimated_us(shape: MeanShape, tile: MeanTile, *, sm_count: int) -> float:
    """Estimate a tile in microseconds, without the fixed cost of the first launch.

    The steps of a block follow one another, as do the blocks for which an SM has no room. To them comes the longer one
    of two times: the memory's for all bytes, and that of the SM with the most blocks for its own. It is an estimate to
    compare tiles by: a block does not wait for memory all the time.
    """
    pixels = blocks(shape.pixels, tile.parts)
    steps = blocks(pixels, tile.rows * AHEAD)
    per_sm = blocks(shape.images * blocks(shape.channels, tile.channels) * tile.parts, sm_count)
    turns = blocks(per_sm * tile.warps, RESIDENT_WARPS)
    of_images = shape.images * shape.channels * shape.pixels * BYTES[shape.dtype]
    of_sums = 2 * workspace_bytes(shape, tile)
    of_sm = per_sm * pixels * tile.channels * BYTES[shape.dtype]
    moving_us = max((of_images + of_sums) / (sm_count * SHARE_BYTES_PER_US), of_sm / SM_BYTES_PER_US)
    return turns * steps * STEP_US + moving_us + (LAUNCH_US if tile.parts > 1 else 0.0)


def workspace_bytes(shape: MeanShape, tile: MeanTile) -> int:
    """Return the bytes of the sums of all parts; none if a block sums all pixels."""
    return PARTIAL_BYTES * tile.parts * shape.images * shape.channels if tile.parts > 1 else 0
