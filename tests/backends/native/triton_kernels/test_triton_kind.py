"""Triton's GEMMs as a kind of kernels; what needs a GPU computes every epilogue there."""

import json
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch

from autotune.backends.native.kernel_kind import CompiledKind
from autotune.backends.native.triton_kernels.gemm import plan
from autotune.backends.native.triton_kernels.launch_plan import Launch
from autotune.backends.native.triton_kernels.triton_compiler import CompiledCubin, TritonCache
from autotune.backends.native.triton_kernels.triton_kind import TRITON_GEMM
from autotune.errors import WorkError
from autotune.records.configuration import Configuration
from autotune.records.kernel_problem import Activation, GemmProblem, OperandType
from tests.backends.native.triton_kernels.test_gemm import HOPPER, buffers, check

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
KIND: CompiledKind = TRITON_GEMM
PROBLEM = GemmProblem(m=48, n=768, k=768, dtype="bf16", output="bf16", bias=True, activation="gelu", residual=True)


def point(**values: int | str) -> Configuration:
    chosen = {"form": "dot", "block_n": 64, "block_k": 64, "split_k": 2, "warps": 4, "stages": 3, **values}
    return Configuration.of("triton_gemm", chosen)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with one candidate for each of two architectures."""
    folder = tmp_path_factory.mktemp("cache")
    for capability in ((9, 0), (8, 0)):
        (made,) = KIND.compile(replace(HOPPER, capability=capability), PROBLEM, [point()], folder)
        assert made.refusal is None and made.compile_s > 0
    return folder


def test_what_is_compiled_copies_ahead_and_is_not_compiled_again(folder: Path) -> None:
    (made,) = KIND.compile(HOPPER, PROBLEM, [point()], folder)
    assert made.refusal is None and made.compile_s == 0
    (release,) = folder.iterdir()
    kernels = [CompiledCubin(key=path.stem, folder=release).read()[0] for path in release.glob("*.cubin")]
    assert sorted((kernel.function, kernel.target) for kernel in kernels) == [
        ("add_splits", "sm_80"), ("add_splits", "sm_90a"), ("dot", "sm_80"), ("dot", "sm_90a"),
    ]  # fmt: skip
    # Rows that the compiler did not know to be aligned would be read 2 bytes at a time, with nothing under way.
    stage = (64 + 64) * 64 * 2
    assert all(kernel.shared_bytes >= 2 * stage for kernel in kernels if kernel.function == "dot")


def test_builds_and_launches(folder: Path) -> None:
    builds = KIND.builds(HOPPER, PROBLEM)
    first = KIND.first(HOPPER, PROBLEM, 4, sm_count=132)
    assert len(first) == 4 and set(first) <= set(builds) and KIND.launches(HOPPER, PROBLEM, first[0]) == (first[0],)
    assert KIND.builds(HOPPER, replace(PROBLEM, m=65)) == () == KIND.builds(replace(HOPPER, capability=(3, 0)), PROBLEM)


def test_what_is_packed_has_its_plan_beside_it(folder: Path, tmp_path: Path) -> None:
    files = KIND.pack(HOPPER, PROBLEM, point(), folder, tmp_path / "target")
    assert {path.name for path in (tmp_path / "target").iterdir()} == set(files) and len(files) == 5
    (name,) = [name for name in files if name.endswith(".plan.json")]
    record = json.loads((tmp_path / "target" / name).read_text())
    made = plan(PROBLEM, point())
    assert tuple(map(Launch.from_dict, record["launches"])) == made.launches
    kernels = [TritonCache(tmp_path / "target").get(key) for key in record["kernels"]]
    read = [kernel.read()[0] for kernel in kernels if isinstance(kernel, CompiledCubin)]
    assert [(one.function, one.target) for one in read] == [("dot", "sm_90a"), ("add_splits", "sm_90a")]


def test_what_is_not_compiled_is_told(folder: Path, tmp_path: Path) -> None:
    for where, candidate in ((folder, point(block_n=32)), (tmp_path, point()), (tmp_path / "nowhere", point())):
        with pytest.raises(WorkError, match="autotune kernels tune"):
            KIND.load(HOPPER, PROBLEM, candidate, where)


def test_a_damaged_plan_is_told(folder: Path, tmp_path: Path) -> None:
    files = KIND.pack(HOPPER, PROBLEM, point(), folder, tmp_path)
    (name,) = [name for name in files if name.endswith(".plan.json")]
    (tmp_path / name).write_text("{}")
    with pytest.raises(WorkError, match="a plan as it was packed"):
        KIND.load(HOPPER, PROBLEM, point(), tmp_path)


@on_gpu
@pytest.mark.gpu
@pytest.mark.parametrize("form", ["dot", "gemv"])
@pytest.mark.parametrize("split_k", [1, 4])
@pytest.mark.parametrize("dtype", get_args(OperandType))
def test_every_epilogue_on_a_gpu_also_in_a_graph(tmp_path: Path, form: str, split_k: int, dtype: OperandType) -> None:
    device = replace(HOPPER, capability=torch.cuda.get_device_capability(0))
    candidate = point(form=form, split_k=split_k, block_n=32 if form == "dot" else 8, block_k=64, warps=2, stages=2)
    for seed, activation in enumerate(get_args(Activation)):
        problem = GemmProblem(
            m=3, n=1000, k=520, dtype=dtype, output=dtype, bias=activation != "none", residual=seed % 2 == 1,
            activation=activation,
        )  # fmt: skip
        (made,) = KIND.compile(device, problem, [candidate], tmp_path / "cache")
        assert made.refusal is None
        KIND.pack(device, problem, candidate, tmp_path / "cache", tmp_path / "packed")
        for folder in ("cache", "packed"):
            kernel = KIND.load(device, problem, candidate, tmp_path / folder)
            given = buffers(problem, seed, "cuda:0")
            operands = [given.get(name) for name in ("a", "b", "bias", "residual", "out")]
            kernel(*operands)
            check(problem, given)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                kernel(*operands)
            given["out"].fill_(float("nan"))
            given["a"].neg_()
            graph.replay()
            check(problem, given)
        if problem.bias:
            kernel(*operands[:2], None, *operands[3:])
            check(problem, {name: tensor for name, tensor in given.items() if name != "bias"})
        assert kernel.resource_usage["registers"] > 0
