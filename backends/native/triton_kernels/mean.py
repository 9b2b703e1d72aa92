"""The plan of a mean over whole images in channels-last memory, by one kernel, or by two if images are divided."""

from pathlib import Path

from autotune.backends.native.triton_kernels.launch_plan import (
    Constant,
    Launch,
    LaunchPlan,
    TritonSource,
    at_names,
    blocks,
)
from autotune.backends.native.triton_kernels.mean_tile import AHEAD, MeanShape, MeanTile, tile_of, workspace_bytes

CODE = Path(__file__).with_name("mean_kernels.py")
ADD_BLOCK, ADD_ROWS = 32, 64
"""The sums that a block adds at once: 4 accesses of 4 sums for each of 128 threads, fewer for few parts."""

ADD_WARPS, SUMS_AT_ONCE = 4, 4


def plan(shape: MeanShape, *, sm_count: int) -> LaunchPlan:
    """Return the plan for a GPU with this many SMs; see :func:`plan_of_tile`."""
    return plan_of_tile(shape, tile_of(shape, sm_count=sm_count))


def plan_of_tile(shape: MeanShape, tile: MeanTile) -> LaunchPlan:
    """Return the plan whose blocks sum a tile each; a second kernel adds the parts of an image.

    Its buffers are x, channels-last, and out, a row of channels for each image.
    """
    is_whole = tile.parts == 1
    output = shape.output or shape.dtype
    constants: dict[str, Constant] = {
        "PIXELS": shape.pixels, "CHANNELS": shape.channels, "PART_PIXELS": blocks(shape.pixels, tile.parts),
        "DIVISOR": shape.pixels if is_whole else 1, "ROWS": tile.rows, "BLOCK_CHANNELS": tile.channels,
        "AHEAD": AHEAD, "EARLY": shape.programmatic_launch,
    }  # fmt: skip
    summing = TritonSource(
        code=CODE.read_text(), function="sum_pixels",
        parameters=(("x", f"*{shape.dtype}"), ("out", f"*{output if is_whole else 'fp32'}")),
        constants=tuple(constants.items()), warps=tile.warps,
    )  # fmt: skip
    to = "out" if is_whole else "workspace"
    grid = blocks(shape.channels, tile.channels), shape.images, tile.parts
    sums = Launch(kernel=0, grid=grid, arguments=(("x", "x"), ("out", to)))
    if is_whole:
        return LaunchPlan(sources=(summing,), launches=(sums,), buffers=("x", "out"))
    size, rows = shape.images * shape.channels, min(ADD_ROWS, tile.parts)
    constants = {
        "SIZE": size, "PARTS": tile.parts, "DIVISOR": shape.pixels, "ROWS": rows, "BLOCK": ADD_BLOCK,
        "EARLY": shape.programmatic_launch,
    }  # fmt: skip
    adding = TritonSource(
        code=CODE.read_text(), function="add_parts", parameters=(("partial", "*fp32"), ("out", f"*{output}")),
        constants=tuple(constants.items()), warps=max(1, min(ADD_WARPS, rows * ADD_BLOCK // (32 * SUMS_AT_ONCE))),
    )  # fmt: skip
    addition = Launch(
        kernel=1, grid=(blocks(size, ADD_BLOCK), 1, 1), arguments=(("partial", "workspace"), *at_names(("out",)))
    )
    return LaunchPlan(
        sources=(summing, adding), launches=(sums, addition), buffers=("x", "out"),
        workspace_bytes=workspace_bytes(shape, tile),
    )  # fmt: skip
