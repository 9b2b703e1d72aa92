"""The plan of a depthwise convolution of images with its bias, residual and activation, by one kernel.

A kernel is text, generated for one shape. A thread computes as many neighbouring channels as one access of 16 bytes
has, for a patch of neighbouring pixels: it reads each input of their windows once and sums in fp32. The threads of a
block lie along the channels, then the columns, then the rows, so that what their windows share comes from the L1 cache.
"""

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import get_args

from autotune.backends.native.triton_kernels.launch_plan import (
    Launch,
    LaunchPlan,
    TritonSource,
    at_names,
    blocks,
    present,
)
from autotune.backends.native.triton_kernels.pointwise import CALLS, FORMS, FUNCTIONS
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
"""A patch is used if it leaves each SM this many blocks: with fewer the latency of memory is not hidden."""

MOST_WARPS = 4
ACCESSES = (2, 4, 8)
"""The accesses along the channels of a block: from 32 bytes, a sector of the cache, to 128 bytes, a line."""

MOST_ELEMENTS = 2**31 - 1
TYPES: Mapping[OperandType, str] = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}
_ACTIVATIONS: Mapping[str, str] = {
    "none": "{0}", "relu6": "minimum(relu({0}), tl.full({0}.shape, 6.0, tl.float32))",
    **{name: f"{CALLS[name]}({{0}})" for name in ("relu", "gelu", "gelu_tanh", "hardsigmoid", "sigmoid", "tanh")},
    **{name: FORMS[name] for name in ("silu", "hardswish")},
}  # fmt: skip

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
        if self.activation not in _ACTIVATIONS:
            raise ValueError(f"an activation is one of {', '.join(_ACTIVATIONS)}, found {self.activation!r}")
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


def plan(shape: DepthwiseShape, *, sm_count: int) -> LaunchPlan:
    """Return the plan for a GPU with this many SMs; see :func:`plan_of_tile`."""
    return plan_of_tile(shape, tile_of(shape, sm_count=sm_count))


def plan_of_tile(shape: DepthwiseShape, tile: DepthwiseTile) -> LaunchPlan:
    """Return the plan whose blocks compute a tile each.

    Its buffers are x, weight [kernel height × width, channels], out, and if they are there bias and residual.
    """
    bias, residual = "fp32" if shape.bias else None, shape.output if shape.residual else None
    passed, absent = present(
        {"x": shape.dtype, "weight": shape.output, "bias": bias, "residual": residual, "out": shape.output}
    )
    names = ", ".join(name for name, _ in (*passed, *absent))
    body = "\n    ".join(_body(shape, tile))
    source = TritonSource(
        code=f"{FUNCTIONS.read_text()}\n\n@triton.jit\ndef depthwise({names}):\n    {body}\n", function="depthwise",
        parameters=passed, constants=absent, warps=tile.warps,
    )  # fmt: skip
    buffers = tuple(name for name, _ in passed)
    grid = math.prod(_tiles(shape, tile)), shape.images, 1
    launch = Launch(kernel=0, grid=grid, arguments=at_names(buffers))
    return LaunchPlan(sources=(source,), launches=(launch,), buffers=buffers)


def tile_of(shape: DepthwiseShape, *, sm_count: int) -> DepthwiseTile:
    """Choose the largest patch and block that leave the GPU enough blocks.

    That is the largest patch whose inputs are shared and that leaves :data:`BLOCKS_PER_SM` blocks of four warps to each
    SM. If no patch does, a thread computes one pixel, and blocks get fewer warps until each SM has a block.
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
    """Return the channels of a block: the power of two that computes the fewest absent channels, the largest of them.

    It is at least the channels in 32 bytes, a sector of the cache, if there are more than in one access. In contiguous
    memory neighbouring pixels lie together, so that a block has one channel.
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
    reads = math.prod(len(_offsets(shape, side, patch[side])) for side in (0, 1))
    return patch == (1, 1) or reads < math.prod(patch) * math.prod(shape.kernel)


def _offsets(shape: DepthwiseShape, side: int, pixels: int) -> dict[int, list[Pair]]:
    """Return the inputs of neighbouring windows along one side: for each its (pixel, element of the window) pairs."""
    offsets: dict[int, list[Pair]] = {}
    for pixel, tap in itertools.product(range(pixels), range(shape.kernel[side])):
        offsets.setdefault(pixel * shape.stride[side] + tap * shape.dilation[side], []).append((pixel, tap))
    return dict(sorted(offsets.items()))


def _least_read(shape: DepthwiseShape, channels: int, patch: Pair, warps: int) -> DepthwiseTile:
    """Return the tile with the fewest input pixels over all blocks: of those at the border of a tile two blocks read.

    Pixels of a tile outside the answer count, too.
    """
    threads = 32 * warps // (channels // _vector(shape))
    shapes = [(threads >> step, 1 << step) for step in range(threads.bit_length()) if threads >> step]
    tiles = [DepthwiseTile(channels=channels, threads=sides, patch=patch, warps=warps) for sides in shapes]

    def read(tile: DepthwiseTile) -> int:
        sides = zip(tile.places, shape.stride, shape.kernel, shape.dilation, strict=True)
        inputs = math.prod(
            (size - 1) * stride + (kernel - 1) * step + 1 for size, stride, kernel, step in sides
        )  # fmt: skip
        return inputs * math.prod(_tiles(shape, tile))

    return min(tiles, key=read)


def _tiles(shape: DepthwiseShape, tile: DepthwiseTile) -> tuple[int, int, int]:
    """Return the number of blocks of an image along height, width and channels."""
    down, right = (blocks(size, side) for size, side in zip(shape.places, tile.places, strict=True))
    return down, right, blocks(shape.channels, tile.channels)


def _body(shape: DepthwiseShape, tile: DepthwiseTile) -> Iterator[str]:
    """Yield the lines of the kernel."""
    (_, tiles_w, tiles_c), (_, threads_w) = _tiles(shape, tile), tile.threads
    (height, width), channels = shape.image, shape.channels
    channel, row, column = (1, width * channels, channels) if shape.channels_last else (height * width, width, 1)
    block = tile.threads[0] * threads_w * tile.channels
    if shape.programmatic_launch:
        yield from ("gdc_launch_dependents()", "gdc_wait()")
    yield f"element, block = tl.arange(0, {block}), tl.program_id(0)"
    yield "image = tl.program_id(1).to(tl.int64)"
    yield f"channel = block % {tiles_c} * {tile.channels} + element % {tile.channels}"
    yield (
        f"y = (block // {tiles_c * tiles_w} * {tile.threads[0]} + element // {tile.channels * threads_w})"
        f" * {tile.patch[0]}"
    )
    yield (
        f"column = (block // {tiles_c} % {tiles_w} * {threads_w} + element // {tile.channels} % {threads_w})"
        f" * {tile.patch[1]}"
    )
    yield f"above, left = y * {shape.stride[0]} - {shape.before[0]}, column * {shape.stride[1]} - {shape.before[1]}"
    yield f"in_channels = channel < {channels}"
    yield f"first = x + image * {height * width * channels}"
    yield f"at = above * {row} + left * {column} + channel * {channel}"
    pixels = list(itertools.product(range(tile.patch[0]), range(tile.patch[1])))
    yield from (f"sum_{down}_{right} = tl.zeros(({block},), tl.float32)" for down, right in pixels)
    if math.prod(shape.kernel) > MOST_UNROLLED:
        yield from _looped(shape, row, column)
    else:
        yield from _unrolled(shape, tile, row, column)
    yield from _epilogue(shape, pixels)


def _unrolled(shape: DepthwiseShape, tile: DepthwiseTile, row: int, column: int) -> Iterator[str]:
    """Yield the sums of a patch: each input is read once, and multiplied by a weight for each window that has it."""
    columns = _offsets(shape, 1, tile.patch[1])
    taps_w = shape.kernel[1]
    read = set()
    yield from (f"in_column_{right} = {_inside(f'left + {right}', shape.image[1])} & in_channels" for right in columns)
    for down, rows in _offsets(shape, 0, tile.patch[0]).items():
        yield f"in_row = {_inside(f'above + {down}', shape.image[0])}"
        for (_, tap_h), tap_w in itertools.product(rows, range(taps_w)):
            if (tap_h, tap_w) not in read:
                read.add((tap_h, tap_w))
                yield f"weight_{tap_h}_{tap_w} = {_weight(shape, str(tap_h * taps_w + tap_w))}"
        for right, places in columns.items():
            offset = down * row + right * column
            yield f"value = tl.load(first + at + {offset}, mask=in_row & in_column_{right}, other=0.0).to(tl.float32)"
            for (y, tap_h), (x, tap_w) in itertools.product(rows, places):
                yield f"sum_{y}_{x} += value * weight_{tap_h}_{tap_w}"


def _looped(shape: DepthwiseShape, row: int, column: int) -> Iterator[str]:
    """Yield the sum of one pixel over a window in loops."""
    yield f"for tap_h in range({shape.kernel[0]}):"
    yield f"    down = tap_h * {shape.dilation[0]}"
    yield f"    in_row = {_inside('above + down', shape.image[0])} & in_channels"
    yield f"    for tap_w in range({shape.kernel[1]}):"
    yield f"        right = tap_w * {shape.dilation[1]}"
    yield f"        inside = in_row & {_inside('left + right', shape.image[1])}"
    yield f"        value = tl.load(first + at + (down * {row} + right * {column}), mask=inside, other=0.0)"
    yield f"        weight_of = {_weight(shape, f'(tap_h * {shape.kernel[1]} + tap_w)')}"
    yield "        sum_0_0 += value.to(tl.float32) * weight_of"


def _inside(at: str, size: int) -> str:
    return f"({at} >= 0) & ({at} < {size})"


def _weight(shape: DepthwiseShape, tap: str) -> str:
    return f"tl.load(weight + {tap} * {shape.channels} + channel, mask=in_channels, other=0.0).to(tl.float32)"


def _epilogue(shape: DepthwiseShape, pixels: list[Pair]) -> Iterator[str]:
    """Yield bias, residual, activation and the write of each pixel."""
    (height, width), channels = shape.places, shape.channels
    channel, row, column = (1, width * channels, channels) if shape.channels_last else (height * width, width, 1)
    if shape.bias:
        yield "bias_of = tl.load(bias + channel, mask=in_channels, other=0.0)"
    for down, right in pixels:
        name = f"sum_{down}_{right}"
        yield f"inside = in_channels & (y + {down} < {height}) & (column + {right} < {width})"
        yield (
            f"to = image * {height * width * channels} + "
            f"((y + {down}) * {row} + (column + {right}) * {column} + channel * {channel})"
        )
        if shape.bias:
            yield f"{name} += bias_of"
        if shape.residual:
            yield f"{name} += tl.load(residual + to, mask=inside, other=0.0).to(tl.float32)"
        yield f"{name} = {_ACTIVATIONS[shape.activation].format(name)}"
        yield f"tl.store(out + to, {name}.to(tl.{TYPES[shape.output]}), mask=inside)"
