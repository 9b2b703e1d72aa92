"""The plan of pooling over images in channels-last memory: the largest of a window."""

from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from autotune.backends.native.triton_kernels.launch_plan import Launch, LaunchPlan, TritonSource, at_names, blocks
from autotune.records.kernel_problem import OperandType, Window

BLOCK, WARPS = 1024, 4
MOST_TAPS = 64
"""The most elements of a window; the code is unrolled over them."""

CODE = Path(__file__).with_name("pooling_kernels.py")
MOST_ELEMENTS = 2**31 - BLOCK


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolShape:
    """Pooling of ``images`` images of ``dtype`` by ``window``; ``programmatic_launch`` as for a norm.

    The answer has the type ``output``, or the images' type without it.
    """

    images: int
    window: Window
    dtype: OperandType
    output: OperandType | None = None
    programmatic_launch: bool = False

    def __post_init__(self) -> None:
        if not {self.dtype, self.output or self.dtype} <= set(get_args(OperandType)) or not 1 <= self.images <= 65535:
            raise ValueError(f"pooling is of {', '.join(get_args(OperandType))}, of 1 to 65535 images, found {self}")
        if self.window.kernel[0] * self.window.kernel[1] > MOST_TAPS:
            raise ValueError(f"a window has at most {MOST_TAPS} elements, found {self}")
        if self.images * self.window.height * self.window.width * self.window.channels > MOST_ELEMENTS:
            raise ValueError(f"images have at most {MOST_ELEMENTS} elements, found {self}")


def max_pool(shape: PoolShape) -> LaunchPlan:
    """Return the plan of the largest of each window; its buffers are x and out, both channels-last."""
    window = shape.window
    down, right = window.places
    size = shape.images * down * right * window.channels
    constants: dict[str, int | bool] = {
        "SIZE": size, "HEIGHT": window.height, "WIDTH": window.width, "CHANNELS": window.channels, "PLACES_H": down,
        "PLACES_W": right, "BLOCK": BLOCK, "EARLY": shape.programmatic_launch,
    }  # fmt: skip
    for name, pair in (
        ("KERNEL", window.kernel), ("STRIDE", window.stride), ("PADDING", window.padding), ("DILATION", window.dilation)
    ):  # fmt: skip
        constants |= {f"{name}_H": pair[0], f"{name}_W": pair[1]}
    source = TritonSource(
        code=CODE.read_text(), function="max_pool",
        parameters=(("x", f"*{shape.dtype}"), ("out", f"*{shape.output or shape.dtype}")),
        constants=tuple(constants.items()), warps=WARPS,
    )  # fmt: skip
    launch = Launch(kernel=0, grid=(blocks(size, BLOCK), 1, 1), arguments=at_names(("x", "out")))
    return LaunchPlan(sources=(source,), launches=(launch,), buffers=("x", "out"))
