"""GEMMs with few rows, by Triton's interpreter, against their meaning in fp64."""

import random
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from autotune.backends.native.operators import ACTIVATIONS
from autotune.backends.native.triton_kernels.gemm import plan
from autotune.errors import SpaceError
from autotune.records.configuration import Configuration
from autotune.records.device import Device
from autotune.records.kernel_problem import Activation, GemmProblem, OperandType
from autotune.search_spaces import triton_gemm
from tests.backends.native.triton_kernels.interpreted import interpret

TYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
HOPPER = Device(kind="cuda", name="Test GPU", uuid="gpu-test", capability=(9, 0))
STEEPEST = 1.5
"""No activation answers a change of its argument with a larger one than this many times it (hardswish: 1.5)."""


def drawn(seed: int) -> tuple[GemmProblem, Configuration]:
    draw = random.Random(seed)
    bias = draw.random() < 0.6
    activation: Activation = draw.choice(get_args(Activation)) if bias else "none"
    problem = GemmProblem(
        m=draw.choice([1, 2, 3, 4, 5, 16, 17, 33, 64]), n=draw.choice([1, 7, 64, 100, 129]),
        k=draw.choice([1, 33, 64, 200, 256, 520]), dtype=draw.choice(get_args(OperandType)),
        output=draw.choice(get_args(OperandType)), bias=bias, activation=activation, residual=draw.random() < 0.4,
    )  # fmt: skip
    # Triton's interpreter multiplies the bits of bf16 in a dot as if they were whole numbers.
    forms = ("gemv",) if problem.dtype == "bf16" else ("dot", "gemv")
    points = [point for point in triton_gemm.space(HOPPER, problem) if point["form"] in forms]
    return (problem, draw.choice(points)) if points else drawn(seed + 1000)


def buffers(problem: GemmProblem, seed: int, device: str = "cpu") -> dict[str, Any]:
    torch.manual_seed(seed)
    made: dict[str, Any] = {
        "a": torch.randn(problem.m, problem.k).to(TYPES[problem.dtype]),
        "b": (torch.randn(problem.n, problem.k) / problem.k**0.5).to(TYPES[problem.dtype]),
    }
    if problem.bias:
        made["bias"] = torch.randn(problem.n)
    if problem.residual:
        made["residual"] = torch.randn(problem.m, problem.n).to(TYPES[problem.output])
    made["out"] = torch.full((problem.m, problem.n), float("nan"), dtype=TYPES[problem.output])
    return {name: tensor.to(device) for name, tensor in made.items()}


def check(problem: GemmProblem, found: dict[str, Any]) -> None:
    """Within k roundings of fp32 sums, a few of the activation, and one of the answer."""
    a, b = found["a"].double(), found["b"].double()
    rest = sum((found[name].double() for name in ("bias", "residual") if name in found), torch.zeros(()).to(a))
    sizes = a.abs() @ b.abs().T + sum(found[name].double().abs() for name in ("bias", "residual") if name in found)
    expected = ACTIVATIONS[problem.activation](a @ b.T + rest)
    sums = STEEPEST * (problem.k + 16) * 2**-24 * sizes + 1e-7
    bound = torch.finfo(TYPES[problem.output]).eps * expected.abs() + sums
    worst = ((found["out"].double() - expected).abs() / bound).max()
    assert worst <= 1, f"{problem}: {worst} times the bound"


def test_random_problems_by_random_kernels_equal_their_meaning(tmp_path: Path) -> None:
    cases = [drawn(seed) for seed in range(48)]
    splits = {int(candidate["split_k"]) for _, candidate in cases}
    assert {candidate["form"] for _, candidate in cases} == {"dot", "gemv"} and len(splits) > 2
    assert {problem.dtype for problem, _ in cases} == set(TYPES)
    assert {problem.activation for problem, _ in cases} == set(get_args(Activation))
    orders = [(plan(*case), buffers(case[0], seed)) for seed, case in enumerate(cases)]
    for (problem, _), found in zip(cases, interpret(orders, tmp_path), strict=True):
        check(problem, found)


def test_problems_that_differ_in_size_alone_share_their_kernels() -> None:
    def of(n: int, k: int) -> tuple[Any, Any]:
        problem = GemmProblem(m=8, n=n, k=k, bias=True, activation="gelu", residual=True)
        candidate = {"form": "dot", "block_n": 32, "block_k": 64, "split_k": 2, "warps": 4, "stages": 3}
        made = plan(problem, Configuration.of("triton_gemm", candidate))
        return made.sources, made.workspace_bytes

    assert of(768, 768)[0] == of(3072, 1024)[0] != of(3072, 1000)[0]
    assert of(768, 768)[1] == 2 * 8 * 768 * 4


@pytest.mark.parametrize("wrong", [{"m": 65}, {"a_major": "mn"}, {"b_major": "mn"}])
def test_what_no_kernel_computes_is_refused(wrong: dict[str, Any]) -> None:
    candidate = next(iter(triton_gemm.space(HOPPER, GemmProblem(m=8, n=64, k=64))))
    with pytest.raises(SpaceError, match="at most 64 rows, both k-major"):
        plan(GemmProblem(**{"m": 8, "n": 64, "k": 64, **wrong}), candidate)
