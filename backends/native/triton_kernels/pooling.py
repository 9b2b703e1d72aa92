"""The plans of pooling over images in channels-last memory: the largest of a window, and the mean of a whole image."""

from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from autotune.backends.native.triton_kernels.plan import Launch, Plan, TritonSource, at_names, blocks
from autotune.records.kernel_problem import OperandType, Window

BLOCK, WARPS = 1024, 4
MOST_TAPS = 64
"""Elements of a window, over which the code is unrolled."""

BLOCK_PIXELS, BLOCK_CHANNELS = 16, 64
CODE = Path(__file__).with_name("pooling_kernels.py")
MOST_ELEMENTS = 2**31 - BLOCK


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolShape:
    """Pooling of ``images`` images as ``window`` sees them, of ``dtype``; an ``early`` launch as for a norm."""

    images: int
    window: Window
    dtype: OperandType
    early: bool = False

    def __post_init__(self) -> None:
        if self.dtype not in get_args(OperandType) or not 1 <= self.images <= 65535:
            raise ValueError(f"pooling is of {', '.join(get_args(OperandType))}, of 1 to 65535 images, found {self}")
        if self.window.kernel[0] * self.window.kernel[1] > MOST_TAPS:
            raise ValueError(f"a window has at most {MOST_TAPS} elements, found {self}")
        if self.images * self.window.height * self.window.width * self.window.channels > MOST_ELEMENTS:
            raise ValueError(f"images have at most {MOST_ELEMENTS} elements, found {self}")


def max_pool(shape: PoolShape) -> Plan:
    """The buffers are x and out, both channels last."""
    window = shape.window
    down, right = window.places
    size = shape.images * down * right * window.channels
    constants: dict[str, int | bool] = {
        "SIZE": size, "HEIGHT": window.height, "WIDTH": window.width, "CHANNELS": window.channels, "PLACES_H": down,
        "PLACES_W": right, "BLOCK": BLOCK, "EARLY": shape.early,
    }  # fmt: skip
    for name, pair in (
        ("KERNEL", window.kernel), ("STRIDE", window.stride), ("PADDING", window.padding), ("DILATION", window.dilation)
    ):  # fmt: skip
        constants |= {f"{name}_H": pair[0], f"{name}_W": pair[1]}
    return _plan("max_pool", shape, constants, (blocks(size, BLOCK), 1, 1))


def mean_pool(shape: PoolShape) -> Plan:
    """The buffers are x, channels last, and out: a row of channels for each image. The window's kernel is of no use."""
    window = shape.window
    constants: dict[str, int | bool] = {
        "PIXELS": window.height * window.width, "CHANNELS": window.channels, "BLOCK_PIXELS": BLOCK_PIXELS,
        "BLOCK_CHANNELS": BLOCK_CHANNELS, "EARLY": shape.early,
    }  # fmt: skip
    return _plan("mean_pool", shape, constants, (blocks(window.channels, BLOCK_CHANNELS), shape.images, 1))


def _plan(function: str, shape: PoolShape, constants: dict[str, int | bool], grid: tuple[int, int, int]) -> Plan:
    source = TritonSource(
        code=CODE.read_text(), function=function,
        parameters=(("x", f"*{shape.dtype}"), ("out", f"*{shape.dtype}")), constants=tuple(constants.items()),
        warps=WARPS,
    )  # fmt: skip
    launch = Launch(kernel=0, grid=grid, arguments=at_names(("x", "out")))
    return Plan(sources=(source,), launches=(launch,), buffers=("x", "out"))
