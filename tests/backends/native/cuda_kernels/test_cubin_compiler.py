"""The compilers of our kernels: NVRTC without any headers but ours, nvcc, and that both make the same of a tile."""

import random
from pathlib import Path

import pytest

from autotune.backends.native.cuda_kernels import cubin_compiler
from autotune.backends.native.cuda_kernels.cubin_compiler import Cubin, NvccCubins, Nvrtc, find_compiler
from autotune.backends.native.cuda_kernels.cuda_kind import CLUSTER_GEMM, HOPPER_GEMM, CudaKind
from autotune.backends.native.cuda_kernels.kernel_source import KernelSource
from autotune.records.device import Device
from autotune.records.kernel_problem import GemmProblem
from autotune.search_spaces import hopper_gemm

HOPPER = Device(kind="cuda", name="Test GPU", uuid="gpu", capability=(9, 0))
PROBLEM = GemmProblem(m=197, n=768, k=768)
nvrtc = next((one for one in [find_compiler()] if isinstance(one, Nvrtc)), None)
needs_nvrtc = pytest.mark.skipif(nvrtc is None, reason="needs NVRTC")
needs_nvcc = pytest.mark.skipif(NvccCubins.find() is None, reason="needs nvcc")
FEW_REGISTERS, FEW_BYTES = 4, 16


def drawn(kind: CudaKind, count: int) -> list[KernelSource]:
    tiles = random.Random(7).sample(list(kind.builds(HOPPER, PROBLEM)), count)
    return [kind.source_of(kind.tiles.build_of(HOPPER, PROBLEM, tile)) for tile in tiles]


@needs_nvrtc
@needs_nvcc
@pytest.mark.parametrize(("kind", "count"), [(HOPPER_GEMM, 3), (CLUSTER_GEMM, 1)], ids=["hopper", "cluster"])
def test_nvrtc_gives_a_tile_the_registers_that_nvcc_gives_it(kind: CudaKind, count: int, tmp_path: Path) -> None:
    nvcc = NvccCubins.find()
    assert nvrtc is not None and nvcc is not None
    for source in drawn(kind, count):
        ours, theirs = nvrtc.compile(source, tmp_path), nvcc.compile(source, tmp_path)
        assert isinstance(ours, Cubin) and isinstance(theirs, Cubin)
        assert abs(ours.registers - theirs.registers) <= FEW_REGISTERS, source.text
        assert ours.spilled_bytes == theirs.spilled_bytes == 0, source.text
        assert source.function.encode() in ours.code


@needs_nvrtc
def test_the_largest_tiles_spill_nothing(tmp_path: Path) -> None:
    """Tiles whose accumulators leave the fewest registers: one more activation in their code made them spill."""
    assert nvrtc is not None
    problem = GemmProblem(m=4096, n=4096, k=1024)
    tiles = [
        tile for tile in HOPPER_GEMM.builds(HOPPER, problem)
        if (tile["tile_m"], tile["tile_n"], tile["tile_k"]) in {(256, 128, 64), (128, 256, 64)}
        and (tile["groups"], tile["cluster_m"], tile["cluster_n"]) == (2, 1, 1)
    ]  # fmt: skip
    assert len(tiles) >= 2
    for tile in tiles:
        kernel = nvrtc.compile(HOPPER_GEMM.source_of(HOPPER_GEMM.tiles.build_of(HOPPER, problem, tile)), tmp_path)
        assert isinstance(kernel, Cubin) and kernel.spilled_bytes <= FEW_BYTES, tile


@needs_nvrtc
def test_a_launch_that_is_not_the_kernels_own_is_refused(tmp_path: Path) -> None:
    from dataclasses import replace

    assert nvrtc is not None
    (source,) = drawn(HOPPER_GEMM, 1)
    refusal = nvrtc.compile(replace(source, shared_bytes=source.shared_bytes + 16), tmp_path)
    assert isinstance(refusal, str) and refusal.startswith("kernel.cu") and "another launch" in refusal


def test_a_library_is_looked_for_by_torchs_release_of_cuda_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NVRTC", raising=False)
    monkeypatch.setattr(cubin_compiler, "cuda_of_torch", lambda: (12, 9))
    assert list(cubin_compiler._libraries())[-2:] == ["libnvrtc.so.12", "libnvrtc.so.13"]
    monkeypatch.setenv("NVRTC", str(tmp_path / "libnvrtc.so.12"))
    assert list(cubin_compiler._libraries()) == [str(tmp_path / "libnvrtc.so.12")]


@pytest.mark.parametrize("swapped", [False, True])
def test_shared_memory_of_a_tile_fits_its_share(swapped: bool) -> None:
    for tile in HOPPER_GEMM.builds(HOPPER, PROBLEM):
        if tile["swapped"] is swapped:
            values = dict(tile.values)
            share = hopper_gemm.SHARED_MEMORY_BYTES // int(tile["residents"]) - hopper_gemm.RESERVED_BYTES
            assert hopper_gemm.shared_bytes(values) <= share, tile
