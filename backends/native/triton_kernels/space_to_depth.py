"""The plan of the operator that turns blocks of an image's pixels into channels."""

from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from autotune.backends.native.triton_kernels.launch_plan import (
    Launch,
    LaunchPlan,
    TritonSource,
    at_names,
    blocks,
    power_of_two,
)
from autotune.records.kernel_problem import OperandType

ELEMENTS, WARPS = 1024, 4
"""The elements of a program's answer, and its warps."""

MOST_ELEMENTS = 2**31 - ELEMENTS
CODE = Path(__file__).with_name("space_to_depth_kernels.py")

Pair = tuple[int, int]
Sizes = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockShape:
    """Images of ``shape`` [batch, channels, height, width] with these strides, whose answer is channels-last.

    ``block``, ``before``, ``size`` and ``channels`` as for
    :func:`autotune.backends.native.operators.space_to_depth`; ``programmatic_launch`` as for a norm.
    """

    shape: Sizes
    strides: Sizes
    dtype: OperandType
    output: OperandType
    block: Pair
    before: Pair
    size: Pair
    channels: int
    programmatic_launch: bool = False

    def __post_init__(self) -> None:
        if not {self.dtype, self.output} <= set(get_args(OperandType)) or not 1 <= self.shape[0] <= 65535:
            raise ValueError(f"blocks are of {', '.join(get_args(OperandType))}, of 1 to 65535 images, found {self}")
        if min(*self.shape, *self.block, *self.size) < 1 or min(*self.strides, *self.before) < 0:
            raise ValueError(f"sizes are positive, strides and the pixels before the image not negative, found {self}")
        if self.channels < self.shape[1] * self.block[0] * self.block[1]:
            raise ValueError(f"the answer has a channel for each element of a block, found {self}")
        last = sum((size - 1) * stride for size, stride in zip(self.shape[1:], self.strides[1:], strict=True))
        if max(last, self.size[0] * self.size[1] * self.channels) > MOST_ELEMENTS:
            raise ValueError(f"an image has at most {MOST_ELEMENTS} elements, found {self}")


def plan(shape: BlockShape) -> LaunchPlan:
    """Return the plan; its buffers are x and out."""
    at_once = power_of_two(shape.channels)
    count = max(1, ELEMENTS // at_once)
    names = ("IMAGE", "CHANNEL", "ROW", "COLUMN")
    constants: dict[str, int | bool] = {
        "HEIGHT": shape.shape[2], "WIDTH": shape.shape[3], "IN_CHANNELS": shape.shape[1],
        **dict(zip(names, shape.strides, strict=True)), "CHANNELS": shape.channels, "CHANNELS_AT_ONCE": at_once,
        "BLOCKS": count, "EARLY": shape.programmatic_launch,
    }  # fmt: skip
    for name, pair in (("BLOCK", shape.block), ("BEFORE", shape.before), ("SIZE", shape.size)):
        constants |= {f"{name}_H": pair[0], f"{name}_W": pair[1]}
    source = TritonSource(
        code=CODE.read_text(), function="space_to_depth",
        parameters=(("x", f"*{shape.dtype}"), ("out", f"*{shape.output}")), constants=tuple(constants.items()),
        warps=WARPS,
    )  # fmt: skip
    grid = blocks(shape.size[0] * shape.size[1], count), shape.shape[0], 1
    return LaunchPlan(
        sources=(source,), launches=(Launch(kernel=0, grid=grid, arguments=at_names(("x", "out"))),),
        buffers=("x", "out"),
    )  # fmt: skip
