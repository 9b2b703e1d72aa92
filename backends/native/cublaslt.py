"""cuBLASLt's kernels as candidates: the best few algorithms of its heuristic, each with the epilogue that it can fuse.

A candidate is a rank of the heuristic, and loading it asks the heuristic again. NVIDIA documents the answer as ordered
by the estimated time, which cuBLASLt computes from the problem, the preference and the device without running anything,
so that the same release returns the same ranks on the same class of device; the release is an entry of the toolchain.
The 64 opaque bytes of an algorithm are valid for the same release only, so there is no reason to store them.

Constants and structures are those of cublasLt.h and cublas_api.h of release 13.10.
"""

import ctypes
import functools
import sys
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from autotune.backends.native.bias import CastBias
from autotune.backends.native.kernel_kind import ALIGNMENT_BYTES, check_operands
from autotune.backends.native.library import activate
from autotune.errors import WorkError
from autotune.kernel import LoadedKernel
from autotune.records.configuration import Configuration
from autotune.records.device import Device
from autotune.records.kernel_problem import GemmProblem
from autotune.runtime.installed import install_command

if TYPE_CHECKING:
    from torch import Tensor

CNumber = ctypes.c_int | ctypes.c_int32 | ctypes.c_uint32 | ctypes.c_uint64 | ctypes.c_void_p

NAME = "cublaslt"
RANKS = 8
WORKSPACE_BYTES = 32 << 20
"""The most workspace that an algorithm may need; a call allocates as much as its own algorithm needs."""

CUDA_TYPES = {"fp32": 0, "fp16": 2, "bf16": 14}
COMPUTE_32F = 68
OP_TRANSPOSED = 1
DESC_TRANSA, DESC_EPILOGUE, DESC_BIAS_POINTER, DESC_BIAS_DATA_TYPE = 3, 7, 8, 26
PREF_WORKSPACE_BYTES, PREF_REDUCTION_SCHEMES = 1, 3
PREF_ALIGNMENTS = (5, 6, 7, 8)
REDUCTION_IN_COMPUTE_TYPE = 2
"""Partial sums of a split product are added in fp32: the other schemes round them to the type of the results first."""

EPILOGUE_NONE, EPILOGUE_BIAS = 1, 4
EPILOGUES_WITH_BIAS = {"relu": 6, "gelu_tanh": 36}
"""Activations that are fused with a bias; its GELU is the one with tanh."""

STATUS = {
    1: "not initialised", 3: "not enough memory", 7: "an invalid value", 8: "another architecture", 11: "mapping",
    13: "the launch failed", 14: "internal error", 15: "not supported", 16: "licence",
}  # fmt: skip


class Algorithm(ctypes.Structure):
    """``cublasLtMatmulAlgo_t``, which is opaque."""

    _fields_ = (("data", ctypes.c_uint64 * 8),)


class HeuristicResult(ctypes.Structure):
    """``cublasLtMatmulHeuristicResult_t``."""

    _fields_ = (
        ("algo", Algorithm),
        ("workspaceSize", ctypes.c_size_t),
        ("state", ctypes.c_int),
        ("wavesCount", ctypes.c_float),
        ("reserved", ctypes.c_int * 4),
    )


class CublasLt:
    """The heuristic's ranks, for types that cuBLASLt multiplies with fp32 accumulators."""

    def ready(self, device: Device, problem: GemmProblem) -> Sequence[Configuration]:
        """List the ranks; if the heuristic has fewer algorithms, the last ranks do not load."""
        if device.kind != "cuda" or problem.window or problem.output not in (problem.dtype, "fp32"):
            return ()
        return [Configuration.of(NAME, {"rank": rank}) for rank in range(RANKS)]

    def load(self, device: Device, problem: GemmProblem, candidate: Configuration, folder: Path) -> LoadedKernel:
        """Load the algorithm that the heuristic returns at this rank; raises WorkError if there is none."""
        if candidate not in self.ready(device, problem):
            raise WorkError(
                f"cuBLASLt's algorithm for {problem.canonical} on {device.torch_name}", found=str(candidate),
                expected=f"a GPU, results of the operands' type or fp32, and a rank below {RANKS}",
                run="autotune kernels tune for this problem",
            )  # fmt: skip
        return _CublasLtKernel(problem, int(candidate["rank"]), device)


CUBLASLT = CublasLt()


class _CublasLtKernel:
    """Dᵀ = B·Aᵀ column by column is D = A·Bᵀ row by row: cuBLASLt's first operand is the weight, its columns are m."""

    def __init__(self, problem: GemmProblem, rank: int, device: Device) -> None:
        import torch

        self._problem = problem
        self._fused = problem.activation == "none" or problem.activation in EPILOGUES_WITH_BIAS
        self._bias = CastBias(problem, device.torch_name) if problem.bias else None
        self._alpha, self._beta = ctypes.c_float(1.0), ctypes.c_float(1.0 if problem.residual else 0.0)
        with torch.cuda.device(device.index):
            self._handle = _handle(device.index)
            self._describe()
            self._algorithm = self._ranked(rank)

    @property
    def resource_usage(self) -> Mapping[str, float]:
        return {}

    def __call__(
        self, a: "Tensor", b: "Tensor", bias: "Tensor | None", residual: "Tensor | None", out: "Tensor"
    ) -> None:
        import torch

        check_operands(self._problem, a, b, bias, residual, out)
        source = out if residual is None else residual
        workspace = torch.empty(self._algorithm.workspaceSize, dtype=torch.uint8, device=out.device)
        with torch.cuda.device(out.device), torch.no_grad():
            if self._bias is not None:
                self._bias.of(bias)
            pointers = [ctypes.c_void_p(tensor.data_ptr()) for tensor in (b, a, source, out, workspace)]
            _call(
                "cublasLtMatmul", self._handle, self._operation, ctypes.byref(self._alpha), pointers[0], self._weight,
                pointers[1], self._input, ctypes.byref(self._beta), pointers[2], self._output, pointers[3],
                self._output, ctypes.byref(self._algorithm.algo), pointers[4],
                ctypes.c_size_t(self._algorithm.workspaceSize),
                ctypes.c_void_p(torch.cuda.current_stream().cuda_stream),
            )  # fmt: skip
            if not self._fused:
                activate(out, self._problem.activation)

    def _describe(self) -> None:
        """Create the operation and the layouts."""
        problem = self._problem
        operand, result = CUDA_TYPES[problem.dtype], CUDA_TYPES[problem.output]
        self._operation = _create(self, "MatmulDesc", ctypes.c_int(COMPUTE_32F), ctypes.c_int(CUDA_TYPES["fp32"]))
        self._weight = _layout(self, operand, rows=problem.k, columns=problem.n)
        self._input = _layout(self, operand, rows=problem.k, columns=problem.m)
        self._output = _layout(self, result, rows=problem.n, columns=problem.m)
        _set("MatmulDesc", self._operation, DESC_TRANSA, ctypes.c_int32(OP_TRANSPOSED))
        if self._bias is not None:
            epilogue = EPILOGUES_WITH_BIAS.get(problem.activation, EPILOGUE_BIAS)
            _set("MatmulDesc", self._operation, DESC_BIAS_POINTER, ctypes.c_void_p(self._bias.values.data_ptr()))
            _set("MatmulDesc", self._operation, DESC_BIAS_DATA_TYPE, ctypes.c_int32(result))
        else:
            epilogue = EPILOGUE_NONE
        _set("MatmulDesc", self._operation, DESC_EPILOGUE, ctypes.c_uint32(epilogue))

    def _ranked(self, rank: int) -> HeuristicResult:
        """Query the heuristic for its best algorithms, and return the one at a rank."""
        preference = _create(self, "MatmulPreference")
        _set("MatmulPreference", preference, PREF_WORKSPACE_BYTES, ctypes.c_uint64(WORKSPACE_BYTES))
        _set("MatmulPreference", preference, PREF_REDUCTION_SCHEMES, ctypes.c_uint32(REDUCTION_IN_COMPUTE_TYPE))
        for which in PREF_ALIGNMENTS:
            _set("MatmulPreference", preference, which, ctypes.c_uint32(ALIGNMENT_BYTES))
        results, count = (HeuristicResult * RANKS)(), ctypes.c_int()
        _call(
            "cublasLtMatmulAlgoGetHeuristic", self._handle, self._operation, self._weight, self._input, self._output,
            self._output, preference, ctypes.c_int(RANKS), results, ctypes.byref(count),
        )  # fmt: skip
        usable = [result for result in results[: count.value] if result.state == 0]
        if rank >= len(usable):
            raise WorkError(
                f"cuBLASLt's algorithm of rank {rank} for {self._problem.canonical}",
                found=f"{len(usable)} algorithms", expected="one of that rank; the other candidates remain",
            )  # fmt: skip
        return usable[rank]


def _create(owner: object, kind: str, *arguments: object) -> ctypes.c_void_p:
    """Create a descriptor that lives as long as its owner."""
    created = ctypes.c_void_p()
    _call(f"cublasLt{kind}Create", ctypes.byref(created), *arguments)
    weakref.finalize(owner, getattr(_library(), f"cublasLt{kind}Destroy"), created).atexit = False
    return created


def _layout(owner: object, element: int, *, rows: int, columns: int) -> ctypes.c_void_p:
    """Create the layout of a packed matrix in cuBLASLt's order, column by column."""
    sizes = ctypes.c_uint64(rows), ctypes.c_uint64(columns), ctypes.c_int64(rows)
    return _create(owner, "MatrixLayout", ctypes.c_int(element), *sizes)


def _set(kind: str, of: ctypes.c_void_p, attribute: int, value: "CNumber") -> None:
    size = ctypes.c_size_t(ctypes.sizeof(value))
    _call(f"cublasLt{kind}SetAttribute", of, ctypes.c_int(attribute), ctypes.byref(value), size)


def _call(function: str, *arguments: object) -> None:
    status = getattr(_library(), function)(*arguments)
    if status != 0:
        raise WorkError(
            f"cuBLASLt's {function}", found=f"status {status}: {STATUS.get(status, 'unknown')}",
            expected="a problem that this release computes on this device", run="autotune doctor",
        )  # fmt: skip


@functools.cache
def _handle(index: int) -> ctypes.c_void_p:
    """Return the handle of a device, which must be the current one."""
    created = ctypes.c_void_p()
    _call("cublasLtCreate", ctypes.byref(created))
    return created


@functools.cache
def _library() -> ctypes.CDLL:
    """Load the library that torch itself uses, if torch has loaded one; else a wheel's or the system's."""
    import torch

    major = (torch.version.cuda or "13").split(".")[0]
    name = f"libcublasLt.so.{major}"
    beside = (
        path for folder in sys.path for path in sorted(Path(folder or ".").glob(f"nvidia/*/lib/{name}"))
    )  # fmt: skip
    reasons = []
    for path in (name, *map(str, beside)):
        try:
            return ctypes.CDLL(path)
        except OSError as error:
            reasons.append(str(error))
    raise WorkError(
        "cuBLASLt was to be loaded", found="; ".join(reasons),
        expected=f"{name}, which comes with torch for CUDA {major}", run=install_command("gpu"),
    )  # fmt: skip
