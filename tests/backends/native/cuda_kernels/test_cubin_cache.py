"""Compiled kernels as files: found by their content, refused if they are damaged, foreign or too new."""

import json
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from autotune.backends.native.cuda_kernels.cubin_cache import (
    MOST_SPILLED_BYTES,
    CompiledKernel,
    CubinCache,
    CubinRefusal,
)
from autotune.backends.native.cuda_kernels.cubin_compiler import Cubin
from autotune.backends.native.cuda_kernels.cuda_kind import CLUSTER_GEMM, HOPPER_GEMM
from autotune.backends.native.cuda_kernels.kernel_source import KernelSource, headers_of
from autotune.backends.native.cuda_kernels.launch_arguments import ABI
from autotune.errors import WorkError
from autotune.records.device import Device
from autotune.records.kernel_problem import GemmProblem

HOPPER = Device(kind="cuda", name="Test GPU", uuid="gpu", capability=(9, 0))
PROBLEM = GemmProblem(m=128, n=768, k=3072)


class FakeCompiler:
    """Refuses what it is asked to refuse, and counts."""

    name, cuda, spilled_bytes = "nvrtc 13.0", (13, 0), 0

    def __init__(self, refused: str = "") -> None:
        self.refused, self.compiled, self._lock = refused, [], threading.Lock()
        self.compiled: list[str]

    def compile(self, source: KernelSource, scratch: Path) -> Cubin | str:
        assert scratch.is_dir()
        with self._lock:
            self.compiled.append(source.key)
        if source.key == self.refused:
            return "error: no such tile"
        return Cubin(code=b"\x7fELF" + source.key.encode(), registers=80, spilled_bytes=self.spilled_bytes)


def sources(count: int) -> list[KernelSource]:
    tiles = HOPPER_GEMM.builds(HOPPER, PROBLEM)[:count]
    return [HOPPER_GEMM.source_of(HOPPER_GEMM.tiles.build_of(HOPPER, PROBLEM, tile)) for tile in tiles]


def compiled(folder: Path) -> CompiledKernel:
    (kernel,) = CubinCache(folder).compile(FakeCompiler(), sources(1))
    assert isinstance(kernel, CompiledKernel)
    return kernel


def test_each_kernel_is_compiled_once_and_refusals_are_kept(tmp_path: Path) -> None:
    wanted = sources(3)
    compiler = FakeCompiler(refused=wanted[1].key)
    cache = CubinCache(tmp_path)
    first, refusal, third = cache.compile(compiler, [*wanted, wanted[0]])[:3]
    assert isinstance(first, CompiledKernel) and isinstance(third, CompiledKernel)
    assert refusal == CubinRefusal(detail="error: no such tile")
    assert sorted(compiler.compiled) == sorted(source.key for source in wanted)
    assert cache.compile(compiler, wanted) == [first, refusal, third] and len(compiler.compiled) == 3
    assert set(cache.builds().values()) == {wanted[0].build, wanted[2].build}
    record, code = first.read()
    assert (record.abi, record.build, record.registers) == (ABI, wanted[0].build, 80)
    assert code.endswith(wanted[0].key.encode())


def test_a_kernel_that_spills_is_refused(tmp_path: Path) -> None:
    compiler = FakeCompiler()
    compiler.spilled_bytes = MOST_SPILLED_BYTES + 8
    (refusal,) = CubinCache(tmp_path).compile(compiler, sources(1))
    assert isinstance(refusal, CubinRefusal) and "it spills 72 bytes of a thread" in refusal.detail


def test_a_damaged_kernel_is_named_and_not_used(tmp_path: Path) -> None:
    kernel = compiled(tmp_path)
    path = tmp_path / f"{kernel.name}.cubin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(WorkError, match="the cubin is not the one that its record describes"):
        kernel.read()
    (tmp_path / f"{kernel.name}.json").write_text("{")
    with pytest.raises(WorkError, match=kernel.name):
        kernel.read()


def test_a_kernel_of_another_abi_is_not_launched(tmp_path: Path) -> None:
    kernel = compiled(tmp_path)
    path = tmp_path / f"{kernel.name}.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "abi": ABI + 1}))
    with pytest.raises(WorkError, match=f"a kernel of ABI {ABI + 1}"):
        kernel.read()


def test_a_key_has_what_enters_the_code_and_nothing_else() -> None:
    (source,) = sources(1)
    assert set(headers_of(source.header)) == {
        "epilogue.cuh", "epilogue_sm90.cuh", "gemm_hopper.cuh", "instructions.cuh", "instructions_sm90.cuh"
    }  # fmt: skip
    assert set(headers_of(CLUSTER_GEMM.header)) == {"epilogue.cuh", "gemm_cluster.cuh", "instructions.cuh"}
    for other in ({"shared_bytes": source.shared_bytes + 16}, {"arguments": source.arguments[::-1]}):
        assert replace(source, **other).key != source.key  # type: ignore[arg-type]
    assert replace(source, build=replace(source.build, architecture="sm_80")).key != source.key
