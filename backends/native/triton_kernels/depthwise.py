"""The plan of a depthwise convolution of images with its bias, residual and activation, by one kernel.

The kernel is text, generated for one shape and its tile. A thread reads each input of the windows of its patch once and
sums in fp32.
"""

import itertools
import math
from collections.abc import Iterator, Mapping

from autotune.backends.native.triton_kernels.depthwise_tile import (
    MOST_UNROLLED,
    DepthwiseShape,
    DepthwiseTile,
    Pair,
    offsets,
    tile_counts,
    tile_of,
)
from autotune.backends.native.triton_kernels.launch_plan import Launch, LaunchPlan, TritonSource, at_names, present
from autotune.backends.native.triton_kernels.pointwise import CALLS, FORMS, FUNCTIONS
from autotune.records.kernel_problem import OperandType

TYPES: Mapping[OperandType, str] = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}
_ACTIVATIONS: Mapping[str, str] = {
    "none": "{0}", "relu6": "minimum(relu({0}), tl.full({0}.shape, 6.0, tl.float32))",
    **{name: f"{CALLS[name]}({{0}})" for name in ("relu", "gelu", "gelu_tanh", "hardsigmoid", "sigmoid", "tanh")},
    **{name: FORMS[name] for name in ("silu", "hardswish")},
}  # fmt: skip


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
    grid = math.prod(tile_counts(shape, tile)), shape.images, 1
    launch = Launch(kernel=0, grid=grid, arguments=at_names(buffers))
    return LaunchPlan(sources=(source,), launches=(launch,), buffers=buffers)


def _body(shape: DepthwiseShape, tile: DepthwiseTile) -> Iterator[str]:
    """Yield the lines of the kernel."""
    (_, tiles_w, tiles_c), (_, threads_w) = tile_counts(shape, tile), tile.threads
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
    columns = offsets(shape, 1, tile.patch[1])
    taps_w = shape.kernel[1]
    read = set()
    yield from (f"in_column_{right} = {_inside(f'left + {right}', shape.image[1])} & in_channels" for right in columns)
    for down, rows in offsets(shape, 0, tile.patch[0]).items():
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
