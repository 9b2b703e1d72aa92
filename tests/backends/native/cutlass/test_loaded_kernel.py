"""A kernel's interface, by a library of plain C++ that includes the same structures and answers with what it got."""

import shutil
import subprocess
from pathlib import Path

import pytest

from autotune.backends.native.cutlass.loaded_kernel import GemmSize, LoadedCutlassKernel, Operands, ResourceUsage
from autotune.backends.native.cutlass.nvcc_compiler import CompiledCudaKernel
from autotune.errors import WorkError
from autotune.search_spaces.cutlass_launch import CutlassLaunch

ROOT = Path(__file__).parents[4]
COMPILER = shutil.which("g++")
KEY = "0123456789abcdef" * 4
SOURCE = """
#include <cstddef>
#include "abi.h"
using namespace autotune;

extern "C" int kernel_0123456789abcdef_run(Operands const* on, Launch const* at, int processors, void* space,
                                           void* stream) {
  bool const there = on->a == (void*)1 && on->b == (void*)2 && on->residual == (void*)3 && on->bias == (float*)4 &&
      on->d == (void*)5 && processors == 132 && space == (void*)6 && stream == (void*)7;
  bool const knobs = at->m == 8 && at->n == 16 && at->k == 24 && at->swizzle == 2 && at->raster == 2 &&
      at->splits == 4 && at->decomposition == 2 && at->reduction == 1;
  if (on->bias == nullptr && on->residual == nullptr && space == nullptr && stream == nullptr) return 1;
  return there && knobs ? 0 : 99;
}
extern "C" size_t kernel_0123456789abcdef_workspace_bytes(Launch const* at, int processors) {
  return size_t(at->splits) * processors * 4294967296;
}
extern "C" int kernel_0123456789abcdef_made(Made* told) {
  if (told->stages != 0) return 1;
  *told = {168, 48, 229376, 6};
  return 0;
}
"""
SHAPE = GemmSize(m=8, n=16, k=24)
LAUNCH = CutlassLaunch(
    swizzle=2, raster="along_n", splits=4, decomposition="split_k", reduction="nondeterministic"
)  # fmt: skip

pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs g++")


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> LoadedCutlassKernel:
    folder = tmp_path_factory.mktemp("kernel")
    (folder / "kernel.cpp").write_text(SOURCE)
    command = [str(COMPILER), "-shared", "-fPIC", f"-I{ROOT / 'backends' / 'native' / 'cutlass'}", "kernel.cpp"]
    subprocess.run([*command, "-o", "kernel.so"], cwd=folder, check=True)
    return LoadedCutlassKernel(CompiledCudaKernel(key=KEY, library=folder / "kernel.so"))


def test_a_launch_arrives_as_it_was_given(kernel: LoadedCutlassKernel) -> None:
    kernel.launch(Operands(a=1, b=2, residual=3, bias=4, d=5), SHAPE, LAUNCH, sm_count=132, workspace=6, stream=7)


def test_what_cutlass_refuses_is_told_in_words_and_nothing_is_null(kernel: LoadedCutlassKernel) -> None:
    with pytest.raises(WorkError, match="misaligned operand"):
        kernel.launch(Operands(a=1, b=2, d=5), SHAPE, LAUNCH, sm_count=132)
    with pytest.raises(WorkError, match="status 99: unknown"):
        kernel.launch(Operands(a=9, b=2, bias=4, d=5), SHAPE, LAUNCH, sm_count=132)


def test_sizes_past_four_gigabytes_are_told(kernel: LoadedCutlassKernel) -> None:
    assert kernel.workspace_bytes(SHAPE, LAUNCH, sm_count=132) == 4 * 132 * 2**32


def test_what_the_compiler_made_of_it(kernel: LoadedCutlassKernel) -> None:
    assert kernel.resource_usage() == ResourceUsage(registers=168, spilled_bytes=48, shared_bytes=229376, stages=6)


def test_a_library_without_the_kernel_is_refused(kernel: LoadedCutlassKernel, tmp_path: Path) -> None:
    with pytest.raises(WorkError, match="compiled again"):
        LoadedCutlassKernel(CompiledCudaKernel(key="f" * 64, library=kernel.compiled.library))
    with pytest.raises(WorkError, match="compiled again"):
        LoadedCutlassKernel(CompiledCudaKernel(key=KEY, library=tmp_path / "missing.so"))
