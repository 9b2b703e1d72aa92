"""The shape of a depthwise convolution of images, and the part of an image that a block of its kernel computes.

A thread computes as many neighbouring channels as one access of 16 bytes has, for a patch of neighbouring pixels. The
threads of a block lie along the channels, then the columns, then the rows, so that what their windows share comes from
the L1 cache.
"""

import itertools
import math
from dataclasses import dataclass
from typing import get_args

from autotune.backends.native.triton_kernels.launch_plan import blocks
from autotune.records.kernel_problem import BYTES, Activation, OperandType

ACCESS_BYTES = 16
"""The bytes of one access of a thread."""

MOST_UNROLLED = 64
"""The most elements of a window whose code is unrolled: 7×7 is, and larger windows are read in loops."""

PATCHES = ((2, 2), (1, 2), (1, 1))
"""Rows and columns of the pixels that a thread computes, the largest patch first.

A larger patch has fewer accesses: a 3×3 window at stride 1 takes 9 a pixel, a patch of 1×2 pixels 6 and one of 2×2 only
4. Sums of 2×2 pixels and 8 channels are 32 registers; twice as many would leave fewer than half of an SM's threads.
"""

BLOCKS_PER_SM = 2
"""The least blocks for each SM with a patch of several pixels: with fewer blocks the latency of memory shows."""

MOST_WARPS = 4
ACCESSES = (2, 4, 8)
"""The accesses of a block along the channels: from 32 bytes, a sector of the cache, to 128 bytes, a line."""

MOST_ELEMENTS = 2**31 - 1
Pair = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class DepthwiseShape:
    """``depthwise_conv2d`` of :mod:`autotune.backends.native.operators`; pairs are of height and width.

    ``image`` and ``places`` are the sizes of the input and of the answer, ``before`` the padding above and to the left.
    ``x`` has the type ``dtype``; weights, residual and answer have ``output``, a bias fp32. All images are in
    channels-last memory or all contiguous.
    """

    images: int
    channels: int
    image: Pair
    places: Pair
    kernel: Pair
    stride: Pair = (1, 1)
    before: Pair = (0, 0)
    dilation: Pair = (1, 1)
    channels_last: bool = True
    dtype: OperandType
    output: OperandType
    bias: bool = False
    residual: bool = False
    activation: Activation = "none"
    programmatic_launch: bool = False
    """True if its launch may begin before the launch before it has ended, from sm_90 on."""

    def __post_init__(self) -> None:
        if not {self.dtype, self.output} <= set(get_args(OperandType)) or not 1 <= self.images <= 65535:
            raise ValueError(
                f"a depthwise convolution is of {', '.join(get_args(OperandType))}, of 1 to 65535 images, found {self}"
            )
        sizes = (self.channels, *self.image, *self.places, *self.kernel, *self.stride, *self.dilation)
        if min(sizes) < 1 or min(self.before) < 0:
            raise ValueError(f"sizes are positive, and padding is not negative, found {self}")
        if self.activation not in get_args(Activation):
            raise ValueError(f"an activation is one of {', '.join(get_args(Activation))}, found {self.activation!r}")
        if self.channels * max(math.prod(self.image), math.prod(self.places)) > MOST_ELEMENTS:
            raise ValueError(f"an image has at most {MOST_ELEMENTS} elements, found {self}")


@dataclass(frozen=True, slots=True, kw_only=True)
class DepthwiseTile:
    """The part of an image that a block computes: ``threads`` along height and width, each with a ``patch`` of pixels.

    Along the channels there are as many threads as ``channels`` need.
    """

    channels: int
    threads: Pair
    patch: Pair
    warps: int

    @property
    def places(self) -> Pair:
        """The pixels of the answer that a block computes, along height and width."""
        return self.threads[0] * self.patch[0], self.threads[1] * self.patch[1]


def tile_of(shape: DepthwiseShape, *, sm_count: int) -> DepthwiseTile:
    """Choose the largest patch and the largest block with which the GPU has enough blocks.

    The windows of the patch must share inputs, and each SM must get :data:`BLOCKS_PER_SM` blocks of four warps. If no
    patch fits, a thread computes one pixel, and blocks have fewer warps until each SM gets a block.
    """
    channels = _block_channels(shape)
    per_pixel = channels // _vector(shape)

    def count(patch: Pair, warps: int) -> int:
        pixels = math.prod(blocks(size, side) for size, side in zip(shape.places, patch, strict=True))
        return blocks(pixels * per_pixel * blocks(shape.channels, channels), 32 * warps) * shape.images

    useful = [patch for patch in PATCHES if _is_shared(shape, patch)]
    patch = next((patch for patch in useful if count(patch, MOST_WARPS) >= BLOCKS_PER_SM * sm_count), (1, 1))
    warps = MOST_WARPS
    while warps > 1 and count(patch, warps) < sm_count:
        warps //= 2
    return _least_read(shape, channels, patch, warps)


def _block_channels(shape: DepthwiseShape) -> int:
    """Return the channels of a block: the count of :data:`ACCESSES` with the fewest idle threads, the largest of them.

    In contiguous memory neighbouring pixels lie together, so that a block has one channel.
    """
    vector = _vector(shape)
    if not shape.channels_last or shape.channels <= vector:
        return vector
    sizes = [vector * several for several in ACCESSES]
    return min(sizes, key=lambda size: (blocks(shape.channels, size) * size, -size))


def _vector(shape: DepthwiseShape) -> int:
    """Return the elements of one access of a thread; in contiguous memory a thread has one pixel of a patch."""
    return ACCESS_BYTES // max(BYTES[shape.dtype], BYTES[shape.output]) if shape.channels_last else 1


def _is_shared(shape: DepthwiseShape, patch: Pair) -> bool:
    """Return true if the windows of a patch have inputs in common; a window that is read in loops has one pixel."""
    if math.prod(shape.kernel) > MOST_UNROLLED:
        return patch == (1, 1)
    reads = math.prod(len(offsets(shape, side, patch[side])) for side in (0, 1))
    return patch == (1, 1) or reads < math.prod(patch) * math.prod(shape.kernel)


def offsets(shape: DepthwiseShape, side: int, pixels: int) -> dict[int, list[Pair]]:
    """Return the inputs of neighbouring windows along one side, by their distance from the first one.

    Each has the windows that contain it: the number of the window's pixel, and that of the element in the window.
    """
    inputs: dict[int, list[Pair]] = {}
    for pixel, tap in itertools.product(range(pixels), range(shape.kernel[side])):
        inputs.setdefault(pixel * shape.stride[side] + tap * shape.dilation[side], []).append((pixel, tap))
    return dict(sorted(inputs.items()))


def _least_read(shape: DepthwiseShape, channels: int, patch: Pair, warps: int) -> DepthwiseTile:
    """Return the tile whose blocks read the fewest input pixels in all.

    Inputs that the windows of two tiles share are read twice, and pixels of a tile outside the answer count, too.
    """
    threads = 32 * warps // (channels // _vector(shape))
    shapes = [(threads >> step, 1 << step) for step in range(threads.bit_length()) if threads >> step]
    tiles = [DepthwiseTile(channels=channels, threads=sides, patch=patch, warps=warps) for sides in shapes]

    def read(tile: DepthwiseTile) -> int:
        sides = zip(tile.places, shape.stride, shape.kernel, shape.dilation, strict=True)
        inputs = math.prod(
            (size - 1) * stride + (kernel - 1) * step + 1 for size, stride, kernel, step in sides
        )  # fmt: skip
        return inputs * math.prod(tile_counts(shape, tile))

    return min(tiles, key=read)


def tile_counts(shape: DepthwiseShape, tile: DepthwiseTile) -> tuple[int, int, int]:
    """Return the number of tiles of an image along height, width and channels."""
    down, right = (blocks(size, side) for size, side in zip(shape.places, tile.places, strict=True))
    return down, right, blocks(shape.channels, tile.channels)
