"""Kernels compiled by the real Triton for GPUs that are not here."""

import json
import shutil
import stat
import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from autotune.backends.native.triton_kernels import triton_compiler as module
from autotune.backends.native.triton_kernels.launch_plan import Launch, LaunchPlan, TritonSource
from autotune.backends.native.triton_kernels.norm import NormShape, plan
from autotune.backends.native.triton_kernels.triton_compiler import (
    CompiledCubin,
    TritonCache,
    TritonCompiler,
    TritonRefusal,
)
from autotune.errors import WorkError
from autotune.records.device import Device
from autotune.runtime.host_memory import HostMemory

CODE = """
import triton
import triton.language as tl

@triton.jit
def twice(x, absent, out, n, factor, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + at, mask=at < n) * factor
    if absent is not None:
        value += tl.load(absent + at, mask=at < n)
    tl.store(out + at, value, mask=at < n)
"""
SOURCE = TritonSource(
    code=CODE, function="twice", parameters=(("x", "*fp32"), ("out", "*fp32"), ("factor", "fp32"), ("n", "i32")),
    constants=(("absent", None), ("BLOCK", 256)), warps=2,
)  # fmt: skip
COMPILER = TritonCompiler(version="3.9.0", capability=(9, 0))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> TritonCache:
    return TritonCache(tmp_path_factory.mktemp("kernels"))


def gpu(major: int, minor: int) -> Device:
    return Device(kind="cuda", name="Test GPU", uuid="gpu-test", capability=(major, minor))


def program(folder: Path, then: str) -> Path:
    """A Python interpreter that notes each time it is started."""
    path = folder / "python"
    path.write_text(f"#!/bin/sh\necho run >> {folder}/runs\n{then}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def norm(*, rows: int = 8, columns: int = 768) -> TritonSource:
    shape = NormShape(
        rows=rows, columns=columns, dtype="fp16", weight="fp16", bias="fp16", eps=1e-5, kind="layer", residual=True
    )
    return plan(shape).sources[0]


@pytest.mark.parametrize(("capability", "target"), [((9, 0), "sm_90a"), ((8, 0), "sm_80")])
def test_a_kernel_is_compiled_for_a_gpu_that_is_not_here(
    cache: TritonCache, capability: tuple[int, int], target: str
) -> None:
    compiler = TritonCompiler.find(gpu(*capability))
    small, large = cache.compile(compiler, [SOURCE, norm()])
    assert isinstance(small, CompiledCubin) and isinstance(large, CompiledCubin)
    record, cubin = small.read()
    assert (record.function, record.target, record.threads) == ("twice", target, 64)
    assert record.parameters == (("x", "*fp32"), ("out", "*fp32"), ("n", "i32"), ("factor", "fp32")), "its own order"
    assert record.hidden_pointers in (1, 2) and record.triton == compiler.version
    assert cubin.startswith(b"\x7fELF") and b"twice" in cubin
    assert large.read()[0].shared_bytes > 0, "a sum over warps goes through shared memory"


def test_each_kernel_is_compiled_once_and_leaves_nothing_else(
    cache: TritonCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh = TritonCache(tmp_path / "cache")
    python = program(tmp_path, f'exec {sys.executable} "$@"')
    monkeypatch.setattr(sys, "executable", str(python))
    (first,) = fresh.compile(COMPILER, [SOURCE])
    assert fresh.compile(COMPILER, [SOURCE, SOURCE]) == [first, first]
    assert (tmp_path / "runs").read_text().split() == ["run"]
    assert sorted(path.name for path in fresh.folder.iterdir()) == [f"{first.key}.cubin", f"{first.key}.json"]


def test_what_triton_refuses_is_kept_as_refused_and_costs_the_others_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = TritonCache(tmp_path)
    odd = replace(SOURCE, constants=(("absent", None), ("BLOCK", 100)))
    bad, good = cache.compile(COMPILER, [odd, SOURCE])
    assert isinstance(bad, TritonRefusal) and "power of 2" in bad.detail and isinstance(good, CompiledCubin)
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    assert cache.compile(COMPILER, [odd, SOURCE]) == [bad, good]


def test_a_parameter_too_few_or_too_many_is_told(tmp_path: Path) -> None:
    (found,) = TritonCache(tmp_path).compile(COMPILER, [replace(SOURCE, constants=(("absent", None),))])
    assert isinstance(found, TritonRefusal) and "BLOCK" in found.detail


def test_a_compiler_that_crashes_refuses_one_that_is_killed_refuses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = TritonCache(tmp_path / "cache")
    for then, said in (("kill -9 $$", "ended with -9"), ("echo no module triton >&2; exit 1", "no module triton")):
        monkeypatch.setattr(sys, "executable", str(program(tmp_path, then)))
        with pytest.raises(WorkError, match=said):
            cache.compile(COMPILER, [SOURCE])
        assert list(cache.folder.iterdir()) == []
    monkeypatch.setattr(module, "TIMEOUT_S", 0.2)
    monkeypatch.setattr(sys, "executable", str(program(tmp_path, "exec sleep 60")))
    with pytest.raises(WorkError, match="still running"):
        cache.compile(COMPILER, [SOURCE])
    monkeypatch.setattr(module, "TIMEOUT_S", 60)
    monkeypatch.setattr(sys, "executable", str(program(tmp_path, "echo assertion; kill -6 $$")))
    (found,) = cache.compile(COMPILER, [SOURCE])
    assert isinstance(found, TritonRefusal) and "crashed" in found.detail and "assertion" in found.detail


def test_switches_of_triton_do_not_reach_the_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    (found,) = TritonCache(tmp_path).compile(COMPILER, [SOURCE])
    assert isinstance(found, CompiledCubin)


def test_a_key_follows_from_all_that_the_code_follows_from() -> None:
    keys = {
        COMPILER.key(SOURCE), replace(COMPILER, version="3.6.0").key(SOURCE),
        replace(COMPILER, capability=(8, 0)).key(SOURCE),
        *(
            COMPILER.key(replace(SOURCE, **change))
            for change in (
                {"code": CODE + "\n"}, {"warps": 4}, {"stages": 2}, {"aligned": ("n",)}, {"function": "other"},
                {"constants": (("absent", None), ("BLOCK", 512))},
            )
        ),
    }  # fmt: skip
    assert len(keys) == 9 and COMPILER.key(replace(SOURCE)) in keys


@pytest.mark.parametrize("damage", ["cubin", "json", "neither"])
def test_damaged_files_are_told(cache: TritonCache, tmp_path: Path, damage: str) -> None:
    (kernel,) = cache.compile(COMPILER, [SOURCE])
    assert isinstance(kernel, CompiledCubin)
    copy = kernel.copy_to(tmp_path)
    assert copy.read() == kernel.read()
    path = tmp_path / f"{kernel.key}.{damage}"
    if damage == "neither":
        shutil.rmtree(tmp_path)
    elif damage == "cubin":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        path.write_text(json.dumps({**json.loads(path.read_text()), "schema": 99}))
    with pytest.raises(WorkError, match="compiled again"):
        copy.read()


def test_what_is_missing_is_said_with_what_to_install(monkeypatch: pytest.MonkeyPatch, cpu: Device) -> None:
    with pytest.raises(WorkError, match="no GPU"):
        TritonCompiler.find(cpu)
    monkeypatch.setattr(metadata, "version", lambda _: "3.2.0")
    with pytest.raises(WorkError, match=r"triton 3\.2\.0"):
        TritonCompiler.find(gpu(9, 0))

    def absent(_: str) -> str:
        raise metadata.PackageNotFoundError

    monkeypatch.setattr(metadata, "version", absent)
    with pytest.raises(WorkError, match=r"pip install 'triton>=3\.4'"):
        TritonCompiler.find(gpu(9, 0))


def test_kernels_at_once_fit_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = HostMemory(total_bytes=2**50, available_bytes=0)
    monkeypatch.setattr(HostMemory, "read", classmethod(lambda _: memory))
    assert module.kernels_at_once() == 1


@pytest.mark.parametrize(
    "arguments", [(("x", "x"),), (("x", "x"), ("out", "elsewhere"), ("n", 4), ("factor", 2.0))]
)  # fmt: skip
def test_a_plan_names_every_parameter_and_no_unknown_buffer(arguments: tuple[tuple[str, Any], ...]) -> None:
    launch = Launch(kernel=0, grid=(1, 1, 1), arguments=arguments)
    with pytest.raises(ValueError, match="twice takes"):
        LaunchPlan(sources=(SOURCE,), launches=(launch,), buffers=("x", "out"))
