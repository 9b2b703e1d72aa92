"""The plan of a group norm with its activation, by one kernel."""

from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from autotune.backends.native.triton_kernels.launch_plan import (
    Constant,
    Launch,
    LaunchPlan,
    TritonSource,
    at_names,
    power_of_two,
    present,
)
from autotune.records.kernel_problem import OperandType

ACTIVATIONS = ("none", "relu", "silu")
"""Activations that the kernel computes."""

ELEMENTS_A_STEP = 8192
"""Groups are few, often fewer than SMs, so that each program has many warps and reads many elements at once."""

ELEMENTS_A_THREAD = 16
MOST_ELEMENTS = 2**31 - 1
CODE = Path(__file__).with_name("group_norm_kernels.py")


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupNormShape:
    """``group_norm`` of :mod:`autotune.backends.native.operators`; statistics are fp32.

    ``x`` and the answer have ``images``, ``groups`` × ``channels`` channels, and ``pixels``: in this order of memory,
    or with ``channels_last`` with the channels after the pixels. ``weight`` and ``bias`` are the dtypes of vectors of
    all channels, or ``None`` if absent.
    """

    images: int
    groups: int
    channels: int
    pixels: int
    channels_last: bool
    dtype: OperandType
    weight: OperandType | None
    bias: OperandType | None
    eps: float
    activation: str = "none"
    programmatic_launch: bool = False
    """True if its launch may begin before the launch before it has ended, from sm_90 on."""

    def __post_init__(self) -> None:
        sizes = self.images, self.groups, self.channels, self.pixels
        if min(sizes) < 1 or self.groups * self.channels * self.pixels > MOST_ELEMENTS:
            raise ValueError(f"an image of a group norm has 1 to {MOST_ELEMENTS} elements, found {sizes}")
        if self.channels > ELEMENTS_A_STEP or self.images * self.groups > MOST_ELEMENTS:
            raise ValueError(f"a group has at most {ELEMENTS_A_STEP} channels, found {self.channels}")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"an activation is one of {', '.join(ACTIVATIONS)}, found {self.activation!r}")
        for dtype in (self.dtype, self.weight, self.bias):
            if dtype is not None and dtype not in get_args(OperandType):
                raise ValueError(f"a dtype must be one of {', '.join(get_args(OperandType))}, found {dtype!r}")


def plan(shape: GroupNormShape) -> LaunchPlan:
    """Return the plan; its buffers are x, out, and if they are there weight and bias."""
    block_channels = power_of_two(shape.channels)
    block_pixels = min(power_of_two(shape.pixels), ELEMENTS_A_STEP // block_channels)
    warps = min(16, max(1, power_of_two(block_channels * block_pixels // (32 * ELEMENTS_A_THREAD))))
    passed, absent = present({"x": shape.dtype, "weight": shape.weight, "bias": shape.bias, "out": shape.dtype})
    all_channels = shape.groups * shape.channels
    constants: dict[str, Constant] = {
        "PIXELS": shape.pixels, "GROUPS": shape.groups, "CHANNELS": shape.channels,
        "PIXEL_STRIDE": all_channels if shape.channels_last else 1,
        "CHANNEL_STRIDE": 1 if shape.channels_last else shape.pixels,
        "BLOCK_PIXELS": block_pixels, "BLOCK_CHANNELS": block_channels,
        "ACTIVATION": shape.activation, "EARLY": shape.programmatic_launch,
    }  # fmt: skip
    source = TritonSource(
        code=CODE.read_text(), function="group_norm", parameters=(*passed, ("eps", "fp32")),
        constants=(*absent, *constants.items()), warps=warps,
    )  # fmt: skip
    buffers = tuple(name for name, _ in passed)
    launch = Launch(
        kernel=0, grid=(shape.images * shape.groups, 1, 1), arguments=(*at_names(buffers), ("eps", shape.eps))
    )
    return LaunchPlan(sources=(source,), launches=(launch,), buffers=buffers)
