"""Kernels compiled by the real nvcc, from a small header in the place of CUTLASS."""

import ctypes
import os
import shutil
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from autotune.backends.native.cutlass import nvcc_compiler as module
from autotune.backends.native.cutlass.nvcc_compiler import (
    CompiledCudaKernel,
    CudaSource,
    NvccCache,
    NvccCompiler,
    NvccRefusal,
    key_of,
)
from autotune.errors import WorkError

NVCC = shutil.which("nvcc")
needs_nvcc = pytest.mark.skipif(NVCC is None, reason="needs nvcc")
HEADER = """
#define ANSWER(NAME, VALUE) \\
    static_assert(VALUE > 0, "no such kernel"); \\
    __global__ void NAME##_kernel(int* out) { *out = VALUE; } \\
    extern "C" int NAME##_run(void) { return VALUE; }
"""


@pytest.fixture
def header(tmp_path: Path) -> Path:
    path = tmp_path / "headers" / "answer.cuh"
    path.parent.mkdir()
    path.write_text(HEADER)
    return path


def kernels(header: Path, *values: int) -> list[CudaSource]:
    return [CudaSource(header=header, code=f"ANSWER({{name}}, {value})") for value in values]


def compiler(nvcc: str | None = NVCC) -> NvccCompiler:
    return NvccCompiler(
        nvcc=Path(nvcc or "nvcc"), version="13.0", includes=(), headers_version="1", architecture="90a"
    )  # fmt: skip


def counting(folder: Path, then: str) -> Path:
    """An nvcc that notes each time it is started."""
    path = folder / "nvcc"
    path.write_text(f"#!/bin/sh\necho run >> {folder}/runs\n{then}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def answer(kernel: CompiledCudaKernel | NvccRefusal) -> int:
    assert isinstance(kernel, CompiledCudaKernel)
    return int(getattr(ctypes.CDLL(str(kernel.library)), f"{kernel.name}_run")())


@needs_nvcc
def test_each_kernel_is_compiled_once_and_several_to_a_unit(header: Path, tmp_path: Path) -> None:
    nvcc = counting(tmp_path, f'exec {NVCC} "$@"')
    cache = NvccCache(tmp_path / "cache")
    found = cache.compile(compiler(str(nvcc)), kernels(header, 5, 6, 7), at_once=1)
    assert [answer(kernel) for kernel in found] == [5, 6, 7]
    assert NvccCache(tmp_path / "cache").compile(compiler(str(nvcc)), kernels(header, 7, 5)) == [found[2], found[0]]
    assert (tmp_path / "runs").read_text().split() == ["run"]
    assert not [path for path in cache.folder.iterdir() if path.is_dir()], "a unit left its files behind"


@needs_nvcc
def test_a_kernel_that_the_compiler_refuses_is_kept_as_refused_and_costs_the_others_nothing(
    header: Path, tmp_path: Path
) -> None:
    cache = NvccCache(tmp_path / "cache")
    good, bad, other = cache.compile(compiler(), kernels(header, 5, -1, 6))
    assert [answer(good), answer(other)] == [5, 6]
    assert isinstance(bad, NvccRefusal) and "no such kernel" in bad.detail
    without = replace(compiler(), nvcc=tmp_path / "no-nvcc")
    assert cache.compile(without, kernels(header, -1, 6)) == [bad, other]


def test_an_nvcc_that_runs_out_of_memory_refuses_no_kernel(header: Path, tmp_path: Path) -> None:
    cache = NvccCache(tmp_path / "cache")
    nvcc = counting(tmp_path, "echo \"nvcc error : 'cicc' died due to signal 9 (Kill signal)\" >&2; exit 9")
    with pytest.raises(WorkError, match="memory"):
        cache.compile(compiler(str(nvcc)), kernels(header, 5))
    assert list(cache.folder.iterdir()) == []


def test_an_nvcc_that_does_not_end_is_stopped(header: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TIMEOUT_S", 0.2)
    with pytest.raises(WorkError, match="still running"):
        NvccCache(tmp_path / "cache").compile(compiler(str(counting(tmp_path, "exec sleep 60"))), kernels(header, 5))


def test_a_key_follows_from_all_of_ours_that_the_code_follows_from(header: Path, tmp_path: Path) -> None:
    (kernel,) = kernels(header, 5)
    keys = {key_of(kernel, "90a"), key_of(replace(kernel, code="ANSWER({name}, 6)"), "90a"), key_of(kernel, "80")}
    for folder, files in (("same", {}), ("changed", {header.name: HEADER + "\n"}), ("beside", {"beside.h": ""})):
        (tmp_path / folder).mkdir()
        for name, text in {header.name: HEADER, **files}.items():
            (tmp_path / folder / name).write_text(text)
        keys.add(key_of(replace(kernel, header=tmp_path / folder / header.name), "90a"))
    assert len(keys) == 5


@needs_nvcc
def test_another_nvcc_finds_what_was_compiled_and_tries_again_what_was_refused(header: Path, tmp_path: Path) -> None:
    cache = NvccCache(tmp_path / "cache")
    good, bad = cache.compile(compiler(), kernels(header, 5, -1))
    assert good.compile_s > 0 and bad.compile_s > 0
    nvcc = counting(tmp_path, "echo refused by another >&2; exit 1")
    other = replace(compiler(str(nvcc)), version="13.1")
    found, again = cache.compile(other, kernels(header, 5, -1))
    assert (found, found.compile_s) == (good, 0.0)
    assert isinstance(again, NvccRefusal) and "refused by another" in again.detail
    assert (tmp_path / "runs").read_text().split() == ["run"]
    assert isinstance(bad, NvccRefusal) and cache.get(bad.key, nvcc=compiler().version) == bad


def test_units_fit_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    cores = len(os.sched_getaffinity(0))
    for available, expected in ((0, 1), (2**50, cores)):
        memory = module.HostMemory(total_bytes=2**50, available_bytes=available)
        monkeypatch.setattr(module.HostMemory, "read", classmethod(lambda _, memory=memory: memory))
        assert module.units_at_once(4) == expected


def test_what_is_missing_is_said_with_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("NVCC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(WorkError, match="no nvcc on PATH"):
        NvccCompiler.find("90a")
    monkeypatch.setenv("NVCC", str(counting(tmp_path, "echo this is no compiler")))
    with pytest.raises(WorkError, match="this is no compiler"):
        NvccCompiler.find("90a")
    monkeypatch.setenv("NVCC", str(counting(tmp_path, "echo Cuda compilation tools, release 13.0, V13.0.88")))
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(WorkError, match="the package nvidia-cutlass"):
        NvccCompiler.find("90a")
