"""Descriptions of operands in global memory for the copy engines of sm_90, made by the driver."""

import ctypes

from autotune.backends.native.cuda_driver import CudaDriver
from autotune.backends.native.cuda_kernels.launch_arguments import Order
from autotune.records.kernel_problem import BYTES

BOX_COLUMNS = 64
"""The columns of a box: 128 bytes of half precision, ``kBoxColumns`` of the kernels."""

TYPES = {"fp16": 6, "bf16": 9}  # cuda.h, CUtensorMapDataType
INTERLEAVE_NONE, SWIZZLE_128B, L2_PROMOTION_256B, FILL_ZEROS = 0, 3, 3, 0  # cuda.h


def map_rows(
    driver: CudaDriver, action: str, to: int, address: int | None, dtype: str, *, rows: int, columns: int, box_rows: int
) -> None:
    """Describe a packed matrix in boxes of ``box_rows`` rows; a place outside it is read as zero.

    ``to`` is the address of the 128 bytes of the description.
    """
    driver.call(
        action, "cuTensorMapEncodeTiled", to, TYPES[dtype], 2, address, _sizes(columns, rows),
        _sizes(columns * BYTES[dtype]), _numbers(BOX_COLUMNS, box_rows), _numbers(1, 1), INTERLEAVE_NONE, SWIZZLE_128B,
        L2_PROMOTION_256B, FILL_ZEROS,
    )  # fmt: skip


def map_window(
    driver: CudaDriver, action: str, to: int, order: Order, dtype: str, *, pixel: int, row: int, box_pixels: int
) -> None:
    """Describe the images of an order's window in boxes of pixels, in the order of the convolution's places.

    From one pixel to the next it is ``pixel`` elements, from one row to the next ``row``: fewer than channels if
    neighbours overlap.
    """
    kernel_h = order.k // order.channels // order.kernel_w
    images = order.m // (order.places_h * order.places_w)
    item = BYTES[dtype]
    # The last place of the kernel's upper left corner, counted from the last pixel.
    upper = (
        order.padding_w - (order.kernel_w - 1) * order.dilation_w,
        order.padding_h - (kernel_h - 1) * order.dilation_h,
    )
    driver.call(
        action, "cuTensorMapEncodeIm2col", to, TYPES[dtype], 4, order.a,
        _sizes(order.channels, order.width, order.height, images),
        _sizes(pixel * item, row * item, row * order.height * item),
        _signed(-order.padding_w, -order.padding_h), _signed(*upper), BOX_COLUMNS, box_pixels,
        _numbers(1, order.stride_w, order.stride_h, 1), INTERLEAVE_NONE, SWIZZLE_128B, L2_PROMOTION_256B, FILL_ZEROS,
    )  # fmt: skip


def in_whole_boxes(order: Order) -> None:
    """Turn a window over few channels into one over the elements of as many neighbours as its kernel has columns.

    They lie side by side, so a copy brings whole boxes of them. The window has no padding beside its rows.
    """
    if order.channels % BOX_COLUMNS != 0:
        order.channels *= order.kernel_w
        order.width -= order.kernel_w - 1
        order.kernel_w = 1


def _sizes(*values: int) -> "ctypes.Array[ctypes.c_uint64]":
    return (ctypes.c_uint64 * len(values))(*values)


def _numbers(*values: int) -> "ctypes.Array[ctypes.c_uint32]":
    return (ctypes.c_uint32 * len(values))(*values)


def _signed(*values: int) -> "ctypes.Array[ctypes.c_int]":
    return (ctypes.c_int * len(values))(*values)
