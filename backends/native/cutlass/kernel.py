"""A compiled kernel as something to call: its launches, their workspace, and what the compiler made of it."""

import ctypes
from dataclasses import dataclass

from autotune.backends.native.cutlass.compiler import CompiledKernel
from autotune.errors import WorkError
from autotune.search_spaces.cutlass_launch import CutlassLaunch, Decomposition, Raster, Reduction

RASTERS: tuple[Raster, ...] = ("heuristic", "along_m", "along_n")
DECOMPOSITIONS: tuple[Decomposition, ...] = ("heuristic", "data_parallel", "split_k", "stream_k")
REDUCTIONS: tuple[Reduction, ...] = ("deterministic", "nondeterministic")
"""The numbers of ``abi.h`` for each."""

STATUS = (
    "success", "misaligned operand", "invalid type of data", "invalid layout", "invalid problem", "not supported",
    "no workspace where one is needed", "internal error", "another architecture", "a driver that is too old",
    "not enough memory on the device", "invalid",
)  # fmt: skip
"""What CUTLASS's status codes mean (cutlass/cutlass.h, cutlass::Status)."""


class _Launch(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_int)
        for name in ("m", "n", "k", "swizzle", "raster", "splits", "decomposition", "reduction", "early")
    )


class _Operands(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_void_p) for name in ("a", "b", "residual", "bias", "d"))


class _Made(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_int) for name in ("registers", "spilled", "shared", "stages"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The problem of one launch; a kernel serves every shape of its alignment."""

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
class Made:
    """What the compiler made of a kernel: registers and spilled bytes a thread, bytes of shared memory, stages."""

    registers: int
    spilled_bytes: int
    shared_bytes: int
    stages: int


class LoadedKernel:
    """A compiled kernel in this process; loading it needs no GPU, launching it does."""

    def __init__(self, compiled: CompiledKernel) -> None:
        self.compiled = compiled
        try:
            library = ctypes.CDLL(str(compiled.library))
            self._run = getattr(library, f"{compiled.name}_run")
            self._workspace_bytes = getattr(library, f"{compiled.name}_workspace_bytes")
            self._made = getattr(library, f"{compiled.name}_made")
        except (OSError, AttributeError) as error:
            raise WorkError(
                f"loading kernel {compiled.name}", found=str(error), expected=f"{compiled.library} as it was compiled",
                run="the same after deleting that file: it is compiled again",
            ) from error  # fmt: skip
        self._run.argtypes = (
            ctypes.POINTER(_Operands), ctypes.POINTER(_Launch), ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p,
        )  # fmt: skip
        self._workspace_bytes.argtypes = (ctypes.POINTER(_Launch), ctypes.c_int)
        self._workspace_bytes.restype = ctypes.c_size_t
        self._made.argtypes = (ctypes.POINTER(_Made),)

    def launch(
        self, on: Operands, shape: Shape, at: CutlassLaunch, *, multiprocessors: int, workspace: int = 0,
        stream: int = 0, early: bool = False,
    ) -> None:  # fmt: skip
        """Put one launch into a stream; raises WorkError where CUTLASS refuses it.

        With ``early`` it may begin before the launch before it has ended, where the architecture knows how.
        ``workspace`` is the address of :meth:`workspace_bytes` bytes on the device, of which each stream needs its own.
        """
        operands = _Operands(on.a, on.b, on.residual or None, on.bias or None, on.d)
        status = self._run(operands, _as_c(shape, at, early=early), multiprocessors, workspace or None, stream or None)
        if status != 0:
            meaning = STATUS[status] if 0 < status < len(STATUS) else "unknown"
            raise WorkError(
                f"kernel {self.compiled.name} for {shape}, {at}", found=f"CUTLASS status {status}: {meaning}",
                expected="a problem that the kernel can compute on this device",
            )  # fmt: skip

    def workspace_bytes(self, shape: Shape, at: CutlassLaunch, *, multiprocessors: int) -> int:
        """Tell how much memory on the device one launch needs besides its operands."""
        return int(self._workspace_bytes(_as_c(shape, at), multiprocessors))

    def made(self) -> Made:
        """Ask the driver what the kernel takes; raises WorkError without a GPU."""
        made = _Made()
        status = self._made(made)
        if status != 0:
            raise WorkError(
                f"what kernel {self.compiled.name} takes", found=f"CUDA error {status}",
                expected="a GPU of the architecture that it was compiled for",
            )  # fmt: skip
        return Made(
            registers=made.registers, spilled_bytes=made.spilled, shared_bytes=made.shared, stages=made.stages
        )  # fmt: skip


def _as_c(shape: Shape, at: CutlassLaunch, *, early: bool = False) -> _Launch:
    return _Launch(
        shape.m, shape.n, shape.k, at.swizzle, RASTERS.index(at.raster), at.splits,
        DECOMPOSITIONS.index(at.decomposition), REDUCTIONS.index(at.reduction), early,
    )  # fmt: skip
