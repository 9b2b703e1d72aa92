"""cuBLASLt without a GPU: structures and numbers against the header, and what is refused."""

import ctypes
import glob
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from autotune.backends.native import cublaslt
from autotune.backends.native.cublaslt import CUBLASLT, RANKS, HeuristicResult
from autotune.errors import WorkError
from autotune.records.configuration import Configuration
from autotune.records.device import Device
from autotune.records.kernel_problem import GemmProblem

GPU = Device(kind="cuda", name="Test GPU", uuid="gpu", capability=(9, 0))
CPU = Device(kind="cpu", name="Test CPU", uuid="cpu")
PROBLEM = GemmProblem(m=8, n=16, k=32, bias=True, activation="gelu_tanh")

EXPECTED = {
    "sizeof(cublasLtMatmulAlgo_t)": ctypes.sizeof(cublaslt.Algorithm),
    "sizeof(cublasLtMatmulHeuristicResult_t)": ctypes.sizeof(HeuristicResult),
    **{
        f"offsetof(cublasLtMatmulHeuristicResult_t, {name})": getattr(HeuristicResult, name).offset
        for name in ("algo", "workspaceSize", "state", "wavesCount", "reserved")
    },
    "CUDA_R_32F": cublaslt.CUDA_TYPES["fp32"],
    "CUDA_R_16F": cublaslt.CUDA_TYPES["fp16"],
    "CUDA_R_16BF": cublaslt.CUDA_TYPES["bf16"],
    "CUBLAS_COMPUTE_32F": cublaslt.COMPUTE_32F,
    "CUBLAS_OP_T": cublaslt.OP_TRANSPOSED,
    "CUBLASLT_MATMUL_DESC_TRANSA": cublaslt.DESC_TRANSA,
    "CUBLASLT_MATMUL_DESC_EPILOGUE": cublaslt.DESC_EPILOGUE,
    "CUBLASLT_MATMUL_DESC_BIAS_POINTER": cublaslt.DESC_BIAS_POINTER,
    "CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE": cublaslt.DESC_BIAS_DATA_TYPE,
    "CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES": cublaslt.PREF_WORKSPACE_BYTES,
    "CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK": cublaslt.PREF_REDUCTION_SCHEMES,
    **{
        f"CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_{operand}_BYTES": number
        for operand, number in zip("ABCD", cublaslt.PREF_ALIGNMENTS, strict=True)
    },
    "CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE": cublaslt.REDUCTION_IN_COMPUTE_TYPE,
    "CUBLASLT_EPILOGUE_DEFAULT": cublaslt.EPILOGUE_NONE,
    "CUBLASLT_EPILOGUE_BIAS": cublaslt.EPILOGUE_BIAS,
    "CUBLASLT_EPILOGUE_RELU_BIAS": cublaslt.EPILOGUES_WITH_BIAS["relu"],
    "CUBLASLT_EPILOGUE_GELU_BIAS": cublaslt.EPILOGUES_WITH_BIAS["gelu_tanh"],
}


def includes() -> list[str]:
    """Folders with cublasLt.h and with what it includes: a wheel's or the toolkit's."""
    roots = [*(f"{folder}/nvidia/*/include" for folder in sys.path), "/usr/local/cuda*/include"]
    roots += [f"{os.environ['CUDA_HOME']}/include"] if "CUDA_HOME" in os.environ else []
    return [found for root in roots for found in glob.glob(root)]


def has(name: str) -> bool:
    return any((Path(folder) / name).is_file() for folder in includes())


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
@pytest.mark.skipif(not has("cublasLt.h"), reason="needs cublasLt.h: pip install nvidia-cublas, or the CUDA toolkit")
@pytest.mark.skipif(not has("library_types.h"), reason="needs the CUDA toolkit's headers")
def test_structures_and_numbers_are_those_of_the_header(tmp_path: Path) -> None:
    lines = [f'printf("%lld\\n", (long long)({name}));' for name in EXPECTED]
    source = "#include <stddef.h>\n#include <stdio.h>\n#include <cublasLt.h>\nint main(void) {\n%s\nreturn 0; }\n"
    (tmp_path / "told.c").write_text(source % "\n".join(lines))
    flags = [f"-I{folder}" for folder in includes()]
    subprocess.run(["gcc", *flags, str(tmp_path / "told.c"), "-o", str(tmp_path / "told")], check=True)
    told = subprocess.run([str(tmp_path / "told")], capture_output=True, text=True, check=True).stdout
    assert dict(zip(EXPECTED, map(int, told.split()), strict=True)) == EXPECTED


@pytest.mark.parametrize(
    ("device", "dtype", "output", "count"),
    [
        (GPU, "fp16", "fp16", RANKS),
        (GPU, "bf16", "fp32", RANKS),
        (GPU, "fp32", "fp32", RANKS),
        (GPU, "fp32", "fp16", 0),
        (GPU, "fp16", "bf16", 0),
        (CPU, "fp32", "fp32", 0),
    ],
)
def test_ranks_are_offered_on_gpus_for_types_that_go_together(
    device: Device, dtype: str, output: str, count: int
) -> None:
    problem = GemmProblem(m=8, n=16, k=32, dtype=dtype, output=output)  # type: ignore[arg-type]
    offered = CUBLASLT.ready(device, problem)
    assert [candidate["rank"] for candidate in offered] == list(range(count))


def test_what_is_no_candidate_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WorkError, match="rank=8"):
        CUBLASLT.load(GPU, PROBLEM, Configuration.of("cublaslt", {"rank": RANKS}), tmp_path)
    with pytest.raises(WorkError, match="on cpu"):
        CUBLASLT.load(CPU, PROBLEM, Configuration.of("cublaslt", {"rank": 0}), tmp_path)
