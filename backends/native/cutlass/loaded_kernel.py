"""A compiled CUTLASS kernel in this process: its launches, their workspace, and its resource usage."""

import ctypes
from dataclasses import dataclass

from autotune.backends.native.cutlass.nvcc_compiler import CompiledCudaKernel
from autotune.errors import WorkError
from autotune.search_spaces.cutlass_launch import CutlassLaunch, Decomposition, Raster, Reduction

RASTERS: tuple[Raster, ...] = ("heuristic", "along_m", "along_n")
DECOMPOSITIONS: tuple[Decomposition, ...] = ("heuristic", "data_parallel", "split_k", "stream_k")
REDUCTIONS: tuple[Reduction, ...] = ("deterministic", "nondeterministic")
"""In the order of their numbers in ``abi.h``."""

STATUS = (
    "success", "misaligned operand", "invalid type of data", "invalid layout", "invalid problem", "not supported",
    "no workspace if one is needed", "internal error", "another architecture", "a driver that is too old",
    "not enough memory on the device", "invalid",
)  # fmt: skip
"""The meaning of CUTLASS's status codes (cutlass/cutlass.h, cutlass::Status)."""


class _LaunchFields(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_int)
        for name in ("m", "n", "k", "swizzle", "raster", "splits", "decomposition", "reduction", "early")
    )


class _Operands(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_void_p) for name in ("a", "b", "residual", "bias", "d"))


class _UsageFields(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_int) for name in ("registers", "spilled", "shared", "stages"))


@dataclass(frozen=True, slots=True, kw_only=True)
class GemmSize:
    """The size of the problem of one launch; a kernel computes every size of its alignment."""

    m: int
    n: int
    k: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Operands:
    """Addresses on the device; see ``gemm_sm90.cuh`` for their layouts. ``bias`` and ``residual`` may be 0: none."""

    a: int
    b: int
    d: int
    bias: int = 0
    residual: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourceUsage:
    """The resources of a kernel: registers and spilled bytes per thread, bytes of shared memory, stages."""

    registers: int
    spilled_bytes: int
    shared_bytes: int
    stages: int


class LoadedCutlassKernel:
    """A compiled kernel that is loaded. Loading needs no GPU, launching does."""

    def __init__(self, compiled: CompiledCudaKernel) -> None:
        self.compiled = compiled
        try:
            library = ctypes.CDLL(str(compiled.library))
            self._run = getattr(library, f"{compiled.name}_run")
            self._workspace_bytes = getattr(library, f"{compiled.name}_workspace_bytes")
            self._resource_usage = getattr(library, f"{compiled.name}_made")
        except (OSError, AttributeError) as error:
            raise WorkError(
                f"loading kernel {compiled.name}", found=str(error), expected=f"{compiled.library} as it was compiled",
                run="the same after deleting that file: it is compiled again",
            ) from error  # fmt: skip
        self._run.argtypes = (
            ctypes.POINTER(_Operands), ctypes.POINTER(_LaunchFields), ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p,
        )  # fmt: skip
        self._workspace_bytes.argtypes = (ctypes.POINTER(_LaunchFields), ctypes.c_int)
        self._workspace_bytes.restype = ctypes.c_size_t
        self._resource_usage.argtypes = (ctypes.POINTER(_UsageFields),)

    def launch(
        self, on: Operands, shape: GemmSize, at: CutlassLaunch, *, sm_count: int, workspace: int = 0,
        stream: int = 0, programmatic_launch: bool = False,
    ) -> None:  # fmt: skip
        """Enqueue one launch in a stream; raises WorkError if CUTLASS refuses it.

        With ``programmatic_launch`` it may begin before the launch before it has ended, if the architecture supports
        it. ``workspace`` is the address of :meth:`workspace_bytes` bytes on the device; each stream needs its own.
        """
        operands = _Operands(on.a, on.b, on.residual or None, on.bias or None, on.d)
        status = self._run(
            operands,
            _as_c(shape, at, programmatic_launch=programmatic_launch),
            sm_count,
            workspace or None,
            stream or None,
        )
        if status != 0:
            meaning = STATUS[status] if 0 < status < len(STATUS) else "unknown"
            raise WorkError(
                f"kernel {self.compiled.name} for {shape}, {at}", found=f"CUTLASS status {status}: {meaning}",
                expected="a problem that the kernel can compute on this device",
            )  # fmt: skip

    def workspace_bytes(self, shape: GemmSize, at: CutlassLaunch, *, sm_count: int) -> int:
        """Return the memory on the device that one launch needs besides its operands."""
        return int(self._workspace_bytes(_as_c(shape, at), sm_count))

    def resource_usage(self) -> ResourceUsage:
        """Query the driver for the kernel's resources; raises WorkError without a GPU."""
        usage = _UsageFields()
        status = self._resource_usage(usage)
        if status != 0:
            raise WorkError(
                f"the resource usage of kernel {self.compiled.name}", found=f"CUDA error {status}",
                expected="a GPU of the architecture that it was compiled for",
            )  # fmt: skip
        return ResourceUsage(
            registers=usage.registers, spilled_bytes=usage.spilled, shared_bytes=usage.shared, stages=usage.stages
        )  # fmt: skip


def _as_c(shape: GemmSize, at: CutlassLaunch, *, programmatic_launch: bool = False) -> _LaunchFields:
    return _LaunchFields(
        shape.m, shape.n, shape.k, at.swizzle, RASTERS.index(at.raster), at.splits,
        DECOMPOSITIONS.index(at.decomposition), REDUCTIONS.index(at.reduction), programmatic_launch,
    )  # fmt: skip
