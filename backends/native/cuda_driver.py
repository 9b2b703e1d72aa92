"""The calls of CUDA's driver that load and launch a cubin, through ctypes, without Triton, a compiler or torch."""

import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

from autotune.errors import DriverError, WorkError

if TYPE_CHECKING:
    from _ctypes import _CData as CData

LIBRARY = "libcuda.so.1"

CUDA_ERROR_NOT_FOUND = 500
LOCAL_SIZE_BYTES, NUM_REGS, MAX_DYNAMIC_SHARED_SIZE_BYTES = 3, 4, 8  # cuda.h, CUfunction_attribute
PREFER_SHARED = 1  # cuda.h, CUfunc_cache
STATIC_LIMIT_BYTES = 48 * 1024
"""Shared memory that a block may have without having action for it (CUDA C++ Programming Guide)."""

_P, _I, _U = ctypes.c_void_p, ctypes.c_int, ctypes.c_uint
_SIGNATURES: "dict[str, tuple[type[CData], ...]]" = {
    "cuInit": (_U,),
    "cuGetErrorName": (_I, ctypes.POINTER(ctypes.c_char_p)),
    "cuGetErrorString": (_I, ctypes.POINTER(ctypes.c_char_p)),
    "cuDeviceGet": (ctypes.POINTER(_I), _I),
    "cuDevicePrimaryCtxRetain": (ctypes.POINTER(_P), _I),
    "cuDevicePrimaryCtxRelease_v2": (_I,),
    "cuCtxPushCurrent_v2": (_P,),
    "cuCtxPopCurrent_v2": (ctypes.POINTER(_P),),
    "cuModuleLoadData": (ctypes.POINTER(_P), ctypes.c_char_p),
    "cuModuleUnload": (_P,),
    "cuModuleGetFunction": (ctypes.POINTER(_P), _P, ctypes.c_char_p),
    "cuFuncSetAttribute": (_P, _I, _I),
    "cuFuncGetAttribute": (ctypes.POINTER(_I), _I, _P),
    "cuFuncSetCacheConfig": (_P, _I),
    "cuLaunchKernelEx": (_P, _P, ctypes.POINTER(_P), ctypes.POINTER(_P)),
    "cuDriverGetVersion": (ctypes.POINTER(_I),),
    "cuTensorMapEncodeTiled": (_P, _I, _U, _P, _P, _P, _P, _P, _I, _I, _I, _I),
    "cuTensorMapEncodeIm2col": (_P, _I, _U, _P, _P, _P, _P, _P, _U, _U, _P, _I, _I, _I, _I),
}
LATER = ("cuTensorMapEncodeTiled", "cuTensorMapEncodeIm2col")
"""The calls that came with CUDA 12; only kernels for sm_90 need them."""

CLUSTER_DIMENSION, PROGRAMMATIC_STREAM_SERIALIZATION = 4, 6  # cuda.h, CUlaunchAttributeID


class _Attribute(ctypes.Structure):
    """``CUlaunchAttribute``, whose value is a union of 64 bytes."""

    _fields_ = (("id", _I), ("pad", _I), ("value", _U * 3), ("rest", ctypes.c_char * 52))


class _LaunchConfig(ctypes.Structure):
    """``CUlaunchConfig``."""

    _fields_ = (
        ("grid", _U * 3), ("threads", _U * 3), ("shared_bytes", _U), ("stream", _P),
        ("attributes", ctypes.POINTER(_Attribute)), ("attribute_count", _U),
    )  # fmt: skip


class CudaDriver:
    """CUDA's driver; :func:`driver` returns the one of this process."""

    def __init__(self, library: str = LIBRARY) -> None:
        """Open the driver's library; raises WorkError if it is missing, or finds no GPU."""
        action = "loading a compiled kernel"
        try:
            loaded = ctypes.CDLL(library)
            self._calls: dict[str, Callable[..., int]] = {}
            for name, types in _SIGNATURES.items():
                if name in LATER and not hasattr(loaded, name):
                    continue
                call = getattr(loaded, name)
                call.argtypes = types
                self._calls[name] = call
        except (OSError, AttributeError) as error:
            raise WorkError(
                action, found=str(error), expected=f"NVIDIA's driver, which brings {library}", run="nvidia-smi"
            ) from error
        self.call(action, "cuInit", 0)

    def call(self, action: str, name: str, *arguments: object) -> None:
        """Make one call; raises DriverError with the driver's own message if it fails."""
        if name not in self._calls:
            raise DriverError(
                action, found=f"a driver of CUDA {'.'.join(map(str, self.version))}, which has no {name}",
                expected="a driver of CUDA 12 or later", run="nvidia-smi", code=CUDA_ERROR_NOT_FOUND,
            )  # fmt: skip
        status = self._calls[name](*arguments)
        if status != 0:
            raise DriverError(
                action, found=f"{name} returned error {status}: {self._words(status)}",
                expected="a GPU of the architecture that the kernel was compiled for, in working order", code=status,
            )  # fmt: skip

    @property
    def version(self) -> tuple[int, int]:
        """The release of CUDA that the driver supports, such as (13, 0)."""
        number = _I()
        self.call("the version of CUDA's driver", "cuDriverGetVersion", ctypes.byref(number))
        return number.value // 1000, number.value % 1000 // 10

    def _words(self, status: int) -> str:
        words = []
        for name in ("cuGetErrorName", "cuGetErrorString"):
            text = ctypes.c_char_p()
            if self._calls[name](status, ctypes.byref(text)) == 0 and text.value:
                words.append(text.value.decode(errors="replace"))
        return ", ".join(words) or "unknown to the driver"


@cache
def driver() -> CudaDriver:
    """Return this process's driver."""
    return CudaDriver()


class CudaModule:
    """A cubin that is loaded into a device's primary context, the one that torch uses.

    Every call makes that context current while it runs, so that it works in any thread and with several devices.
    """

    def __init__(
        self, on: CudaDriver, device: int, cubin: bytes, function: str, shared_bytes: int, action: str
    ) -> None:
        self._driver, self._device, self._action = on, _I(), action
        self._context, self._module, self._function = _P(), _P(), _P()
        on.call(action, "cuDeviceGet", ctypes.byref(self._device), device)
        on.call(action, "cuDevicePrimaryCtxRetain", ctypes.byref(self._context), self._device)
        try:
            with self._current():
                on.call(action, "cuModuleLoadData", ctypes.byref(self._module), cubin)
                name = function.encode()
                on.call(action, "cuModuleGetFunction", ctypes.byref(self._function), self._module, name)
                if shared_bytes > STATIC_LIMIT_BYTES:
                    on.call(action, "cuFuncSetCacheConfig", self._function, PREFER_SHARED)
                    limit = MAX_DYNAMIC_SHARED_SIZE_BYTES
                    on.call(action, "cuFuncSetAttribute", self._function, limit, shared_bytes)
        except WorkError:
            self.close()
            raise

    def attribute(self, number: int) -> int:
        """Read an attribute of the kernel (CUfunction_attribute)."""
        value = _I()
        with self._current():
            self._driver.call(self._action, "cuFuncGetAttribute", ctypes.byref(value), number, self._function)
        return value.value

    def launch(
        self, grid: tuple[int, int, int], threads: int, shared_bytes: int, stream: int, values: "Sequence[CData]", *,
        cluster: tuple[int, int, int] = (1, 1, 1), programmatic_launch: bool = False,
    ) -> None:  # fmt: skip
        """Enqueue one launch in a stream; ``values`` are ctypes data, one for each of the kernel's parameters.

        The grid is of whole clusters. With ``programmatic_launch`` it may begin while the launch before it still runs.
        """
        addresses = (_P * len(values))(*(ctypes.addressof(value) for value in values))
        attributes = []
        if cluster != (1, 1, 1):
            attributes.append(_Attribute(id=CLUSTER_DIMENSION, value=cluster))
        if programmatic_launch:
            attributes.append(_Attribute(id=PROGRAMMATIC_STREAM_SERIALIZATION, value=(1, 0, 0)))
        config = _LaunchConfig(
            grid=grid, threads=(threads, 1, 1), shared_bytes=shared_bytes, stream=stream or None,
            attributes=(_Attribute * len(attributes))(*attributes), attribute_count=len(attributes),
        )  # fmt: skip
        with self._current():
            self._driver.call(self._action, "cuLaunchKernelEx", ctypes.byref(config), self._function, addresses, None)

    def close(self) -> None:
        """Unload the cubin; no launch may be running, and no graph that contains one may be replayed afterwards."""
        if not self._context:
            return
        if self._module:
            with self._current():
                self._driver.call(self._action, "cuModuleUnload", self._module)
        self._driver.call(self._action, "cuDevicePrimaryCtxRelease_v2", self._device)
        self._context, self._module, self._function = _P(), _P(), _P()

    @contextmanager
    def _current(self) -> Iterator[None]:
        if not self._context:
            raise WorkError(self._action, found="a closed kernel", expected="a call before close()")
        self._driver.call(self._action, "cuCtxPushCurrent_v2", self._context)
        try:
            yield
        finally:
            self._driver.call(self._action, "cuCtxPopCurrent_v2", ctypes.byref(_P()))
