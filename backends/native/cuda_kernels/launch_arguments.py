"""The structures that our own GEMMs take, as ``epilogue.cuh`` and ``gemm_hopper.cuh`` define them."""

import ctypes
from collections.abc import Sequence
from dataclasses import astuple
from typing import TYPE_CHECKING

from autotune.backends.native.cuda_kernels.activation_formula import FORMULAS, FULL_PRECISION
from autotune.records.kernel_problem import GemmProblem

if TYPE_CHECKING:
    from torch import Tensor

ABI = 1
"""The number of these structures and of the launch; it is part of a kernel's key and changes with either."""

TENSOR_MAP_BYTES, TENSOR_MAP_ALIGNMENT = 128, 64  # cuda.h, CUtensorMap

WINDOW = (
    "height", "width", "channels", "kernel_w", "stride_h", "stride_w", "padding_h", "padding_w", "dilation_h",
    "dilation_w", "places_h", "places_w",
)  # fmt: skip
COEFFICIENTS = ("scale", "shift", "top", "p0", "p1", "p2", "most", "gain", "offset")


class Order(ctypes.Structure):
    """The operands and the problem of one launch."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("a", "b", "bias", "residual", "d")),
        *((name, ctypes.c_int) for name in ("m", "n", "k", "early", *WINDOW, "formula")),
        *((name, ctypes.c_float) for name in COEFFICIENTS),
    )


class HopperOrder(ctypes.Structure):
    """The same with the descriptions of A and B that the copy engines read, which begin at multiples of 64 bytes."""

    _fields_ = (
        ("map_a", ctypes.c_byte * TENSOR_MAP_BYTES), ("map_b", ctypes.c_byte * TENSOR_MAP_BYTES), ("order", Order),
        ("steps", ctypes.c_int), ("share", ctypes.c_int),
        ("rest", ctypes.c_byte * (-(ctypes.sizeof(Order) + 8) % TENSOR_MAP_ALIGNMENT)),
    )  # fmt: skip

    @classmethod
    def aligned(cls) -> "HopperOrder":
        """Return one whose memory begins at a multiple of 64 bytes."""
        memory = ctypes.create_string_buffer(ctypes.sizeof(cls) + TENSOR_MAP_ALIGNMENT)
        return cls.from_buffer(memory, -ctypes.addressof(memory) % TENSOR_MAP_ALIGNMENT)


def order_of(problem: GemmProblem, operands: "Sequence[Tensor | None]", *, programmatic_launch: bool = False) -> Order:
    """Return the order for the tensors a, b, bias, residual and out, of which bias and residual may be ``None``.

    ``programmatic_launch`` as in :meth:`autotune.kernel.KernelProvider.load`.
    """
    addresses = (None if tensor is None else tensor.data_ptr() for tensor in operands)
    formula = (FULL_PRECISION if problem.output == "fp32" else FORMULAS)[problem.activation]
    sizes = problem.m, problem.n, problem.k
    return Order(*addresses, *sizes, programmatic_launch, *_window_fields(problem), *astuple(formula))


def _window_fields(problem: GemmProblem) -> tuple[int, ...]:
    window = problem.window
    if window is None:
        return (0,) * len(WINDOW)
    pairs = (*window.stride, *window.padding, *window.dilation, *window.places)
    return (window.height, window.width, window.channels, window.kernel[1], *pairs)
