"""Launches, by a library of plain C in the driver's place that notes what it is given; and on a GPU by the driver."""

import ctypes
import hashlib
import json
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from autotune.backends.native.cuda_driver import CudaDriver
from autotune.backends.native.triton_kernels.launch import LoadedCubin, LoadedPlan
from autotune.backends.native.triton_kernels.launch_plan import Launch, LaunchPlan
from autotune.backends.native.triton_kernels.norm import NormShape, plan
from autotune.backends.native.triton_kernels.triton_compiler import SCHEMA, CompiledCubin, TritonCache, TritonCompiler
from autotune.errors import WorkError
from autotune.records.device import Device
from tests.backends.native.triton_kernels.test_norm import buffers, check

CC = shutil.which("gcc")
needs_gcc = pytest.mark.skipif(CC is None, reason="needs gcc")
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
ARGUMENTS = {"x": 4096, "n": -5, "factor": 0.5}
LAUNCH = Launch(kernel=0, grid=(3, 2, 1), arguments=(("factor", 0.5), ("x", "input"), ("n", -5)))


@dataclass
class Fake:
    library: Path
    driver: CudaDriver

    def reset(self, failing: str = "") -> None:
        ctypes.CDLL(str(self.library)).reset(failing.encode())

    @property
    def noted(self) -> str:
        return (ctypes.c_char * 4096).in_dll(ctypes.CDLL(str(self.library)), "noted").value.decode()


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("driver") / "fake_cuda.so"
    source = Path(__file__).with_name("fake_cuda.c")
    subprocess.run([str(CC), "-shared", "-fPIC", str(source), "-o", str(path)], check=True)
    return path


@pytest.fixture
def fake(library: Path) -> Iterator[Fake]:
    fake = Fake(library, CudaDriver(str(library)))
    fake.reset()
    yield fake
    fake.reset()


def compiled(folder: Path, *, shared_bytes: int = 0, **other: Any) -> CompiledCubin:
    cubin = b"\x7fELF and the rest"
    record = {
        "schema": SCHEMA, "function": "twice", "target": "sm_90a", "threads": 128, "shared_bytes": shared_bytes,
        "parameters": [["x", "*fp16"], ["n", "i32"], ["factor", "fp32"]], "hidden_pointers": 2, "early": False,
        "triton": "3.9.0",
        "cubin_sha256": hashlib.sha256(cubin).hexdigest(), **other,
    }  # fmt: skip
    (folder / "k.json").write_text(json.dumps(record))
    (folder / "k.cubin").write_bytes(cubin)
    return CompiledCubin(key="k", folder=folder)


@needs_gcc
def test_a_launch_arrives_as_it_was_given(fake: Fake, tmp_path: Path) -> None:
    kernel = LoadedCubin(compiled(tmp_path, shared_bytes=1024), 1, on=fake.driver)
    kernel.launch((3, 2, 1), ARGUMENTS, 0x77)
    kernel.close()
    kernel.close()
    launched = "launch grid=3,2,1 threads=128 shared=1024 stream=0x77 x=0x1000 n=-5 factor=0.5"
    assert fake.noted.split() == f"retain load function {launched} unload release".split()
    with pytest.raises(WorkError, match="closed"):
        kernel.launch((3, 2, 1), ARGUMENTS, 0)


@needs_gcc
def test_a_kernel_that_waits_by_itself_is_launched_early(fake: Fake, tmp_path: Path) -> None:
    LoadedCubin(compiled(tmp_path, early=True), 1, on=fake.driver).launch((3, 2, 1), ARGUMENTS, 0)
    assert "stream=(nil) early x=0x1000" in fake.noted


@needs_gcc
def test_more_shared_memory_than_a_block_has_by_itself_is_asked_for(fake: Fake, tmp_path: Path) -> None:
    LoadedCubin(compiled(tmp_path, shared_bytes=49152), 1, on=fake.driver)
    assert "prefer_shared" not in fake.noted
    kernel = LoadedCubin(compiled(tmp_path, shared_bytes=200_000), 1, on=fake.driver)
    assert "prefer_shared set attribute_8=200000" in fake.noted
    assert kernel.resource_usage == {"registers": 1004, "spilled_bytes": 1003, "shared_bytes": 200_000}


@needs_gcc
@pytest.mark.parametrize("failing", ["load", "function", "set"])
def test_what_the_driver_refuses_is_told_in_its_words_and_nothing_stays_loaded(
    fake: Fake, tmp_path: Path, failing: str
) -> None:
    fake.reset(failing)
    with pytest.raises(WorkError, match=r"(?s)twice.*error 209: CUDA_ERROR_NAME, the words"):
        LoadedCubin(compiled(tmp_path, shared_bytes=200_000), 1, on=fake.driver)
    assert fake.noted.endswith("release ") and ("unload" in fake.noted) == (failing != "load")


@needs_gcc
def test_a_launch_that_fails_is_told(fake: Fake, tmp_path: Path) -> None:
    kernel = LoadedCubin(compiled(tmp_path), 1, on=fake.driver)
    with pytest.raises(WorkError, match=r"0x1008.*\n.*multiple of 16"):
        kernel.launch((1, 1, 1), {**ARGUMENTS, "x": 4104}, 0)
    fake.reset("launch")
    with pytest.raises(WorkError, match="cuLaunchKernelEx returned error"):
        kernel.launch((1, 1, 1), ARGUMENTS, 0)
    with pytest.raises(WorkError, match=r"parameters of \['fp8'\]"):
        LoadedCubin(compiled(tmp_path, parameters=[["x", "fp8"]]), 1, on=fake.driver)


@needs_gcc
def test_a_plan_binds_buffers_by_name(fake: Fake, tmp_path: Path) -> None:
    twice = (LAUNCH, Launch.from_dict(json.loads(json.dumps(asdict(LAUNCH)))))
    assert twice[0] == twice[1]
    loaded = LoadedPlan([compiled(tmp_path)], twice, workspace_bytes=0, device=1, on=fake.driver)
    loaded.launch({"input": 64}, 0)
    assert fake.noted.count("launch grid=3,2,1 threads=128 shared=0 stream=(nil) x=0x40 n=-5 factor=0.5") == 2
    other = Launch(kernel=0, grid=(1, 1, 1), arguments=(("x", "input"),))
    with pytest.raises(WorkError, match="as it was compiled"):
        LoadedPlan([compiled(tmp_path)], [other], workspace_bytes=0, device=1, on=fake.driver)
    assert fake.noted.endswith("unload release ")


@needs_gcc
def test_a_driver_without_a_gpu_is_told(fake: Fake) -> None:
    fake.reset("cuInit")
    with pytest.raises(WorkError, match="cuInit returned error 100: CUDA_ERROR_NAME"):
        CudaDriver(str(fake.library))


def test_a_missing_driver_is_told() -> None:
    with pytest.raises(WorkError, match="NVIDIA's driver"):
        CudaDriver("libcuda-that-is-not-there.so.1")


@on_gpu
@pytest.mark.gpu
class TestOnGpu:
    SHAPE = NormShape(
        rows=100, columns=1000, dtype="fp16", weight="fp16", bias="fp32", eps=1e-5, kind="layer", residual=True
    )

    def load(self, folder: Path, capability: tuple[int, int] | None = None) -> tuple[LaunchPlan, LoadedPlan]:
        made = plan(self.SHAPE)
        capability = capability or torch.cuda.get_device_capability(0)
        device = Device(kind="cuda", name="this GPU", uuid="gpu-0", capability=capability)
        kernels = TritonCache(folder).compile(TritonCompiler.find(device), made.sources)
        there = [kernel for kernel in kernels if isinstance(kernel, CompiledCubin)]
        return made, LoadedPlan(there, made.launches, workspace_bytes=made.workspace_bytes, device=0)

    def test_a_norm_equals_the_operator_also_in_a_graph(self, tmp_path: Path) -> None:
        _, loaded = self.load(tmp_path)
        given = buffers(self.SHAPE, 0, "cuda:0")
        loaded(given)
        check(self.SHAPE, given)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            loaded(given)
        given["x"].copy_(torch.randn_like(given["x"]))
        given["out"].fill_(float("nan"))
        graph.replay()
        check(self.SHAPE, given)
        assert loaded.resource_usage["registers"] > 0 and loaded.resource_usage["spilled_bytes"] == 0

    def test_a_cubin_of_another_architecture_is_told(self, tmp_path: Path) -> None:
        other = (8, 0) if torch.cuda.get_device_capability(0)[0] != 8 else (9, 0)
        with pytest.raises(WorkError, match="architecture"):
            self.load(tmp_path, other)
