"""The source that nvcc compiles for a build of the space of CUTLASS kernels."""

from pathlib import Path

from autotune.backends.native.cutlass.nvcc_compiler import CudaSource
from autotune.records.configuration import Configuration
from autotune.records.kernel_problem import BYTES
from autotune.search_spaces.cutlass_gemm import CutlassBuild

HERE = Path(__file__).parent
SM90, SM90_STREAM_K = HERE / "gemm_sm90.cuh", HERE / "gemm_sm90_stream_k.cuh"
MULTISTAGE = HERE / "gemm_multistage.cuh"

HALF = 2

ELEMENTS = {"fp16": "cutlass::half_t", "bf16": "cutlass::bfloat16_t", "fp32": "float"}
EXACT = {"none": "Identity", "relu": "ReLu", "gelu": "GELU", "gelu_tanh": "GELU_taylor", "silu": "SiLu"}
"""CUTLASS's own."""
FAST = {"gelu": "FastGelu", "gelu_tanh": "FastGeluTanh", "silu": "FastSilu"}
"""Ours; their error is not visible in half precision."""
SCHEDULES = {
    "cooperative": ("KernelTmaWarpSpecializedCooperative", "TmaWarpSpecializedCooperative"),
    "pingpong": ("KernelTmaWarpSpecializedPingpong", "TmaWarpSpecialized"),
}
"""The schedule of the main loop and that of the epilogue."""
SCHEDULERS = {"persistent": "PersistentScheduler", "stream_k": "StreamKScheduler"}


def source_of(build: CutlassBuild) -> CudaSource:
    """Return the source of a build; builds whose code is the same have the same source.

    A bias is a pointer that may be null, and so is the residual of the older architectures.
    """
    if build.architecture == "sm_90a":
        header = SM90_STREAM_K if build.tile["scheduler"] == "stream_k" else SM90
        return CudaSource(header=header, code=_line(_sm90(build)))
    return CudaSource(header=MULTISTAGE, code=_line(_multistage(build)))


def _sm90(build: CutlassBuild) -> list[str]:
    """Return the arguments of ``GemmSm90``; all operands in the space are aligned for TMA."""
    tile = build.tile
    schedule, epilogue = SCHEDULES[str(tile["schedule"])]
    cluster = f"cute::Shape<cute::Int<{tile['cluster_m']}>, cute::Int<{tile['cluster_n']}>, cute::Int<1>>"
    sides = ", ".join(f"cute::Int<{tile[side]}>" for side in ("tile_m", "tile_n", "tile_k"))
    return [
        ELEMENTS[build.dtype], ELEMENTS[build.output], "true" if build.residual else "false", _activation(build),
        f"cute::Shape<{sides}>", cluster, f"cutlass::gemm::{schedule}", f"cutlass::epilogue::{epilogue}",
        f"cutlass::gemm::{SCHEDULERS[str(tile['scheduler'])]}",
    ]  # fmt: skip


def _multistage(build: CutlassBuild) -> list[str]:
    """Return the arguments of ``GemmMultistage``; sm_86 and sm_89 have the instructions of sm_80."""
    turing = build.architecture == "sm_75"
    tile = build.tile
    return [
        ELEMENTS[build.dtype], ELEMENTS[build.output], _activation(build), f"cutlass::arch::Sm{75 if turing else 80}",
        _shape(tile, "tile_m", "tile_n", "tile_k"), _shape(tile, "warp_m", "warp_n", "tile_k"),
        f"cutlass::gemm::GemmShape<16, 8, {8 if turing else 16}>", str(tile["stages"]),
        str(build.input_alignment_bytes // BYTES[build.dtype]),
        str(build.output_alignment_bytes // BYTES[build.output]),
    ]  # fmt: skip


def _activation(build: CutlassBuild) -> str:
    if BYTES[build.output] == HALF and build.activation in FAST:
        return f"autotune::{FAST[build.activation]}"
    return f"cutlass::epilogue::thread::{EXACT[build.activation]}"


def _shape(tile: Configuration, *sides: str) -> str:
    return f"cutlass::gemm::GemmShape<{', '.join(str(tile[side]) for side in sides)}>"


def _line(arguments: list[str]) -> str:
    return f"AUTOTUNE_GEMM({{name}}, {', '.join(arguments)})"
