"""torch's own calls: numerics on this CPU, and which forms are offered where."""

from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autotune.backends.native.library import TORCH, compute
from autotune.errors import WorkError
from autotune.records.configuration import Configuration
from autotune.records.device import Device
from autotune.records.kernel_problem import Activation, GemmProblem, OperandType
from tests.backends.native.kernel_problems import check, empty, operands, reference

CPU = Device(kind="cpu", name="Test CPU", uuid="cpu")
GPU = Device(kind="cuda", name="Test GPU", uuid="gpu", capability=(9, 0))
NOWHERE = Path("no-cache")
sizes, types = st.integers(1, 70), st.sampled_from(get_args(OperandType))
PROBLEM = GemmProblem(m=7, n=16, k=24, bias=True, activation="relu", dtype="fp32", output="fp32")


@st.composite
def problems(draw: st.DrawFn) -> GemmProblem:
    activation: Activation = draw(st.sampled_from(get_args(Activation)))
    return GemmProblem(
        m=draw(sizes), n=draw(sizes), k=draw(sizes), dtype=draw(types), output=draw(types),
        bias=activation != "none" or draw(st.booleans()), activation=activation, residual=draw(st.booleans()),
    )  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(problem=problems(), seed=st.integers(0, 2**31))
def test_every_form_computes_the_problem(problem: GemmProblem, seed: int) -> None:
    offered = TORCH.ready(CPU, problem)
    assert offered
    for candidate in offered:
        check(TORCH.load(CPU, problem, candidate, NOWHERE), problem, seed)


@settings(max_examples=30, deadline=None)
@given(problem=problems(), seed=st.integers(0, 2**31))
def test_the_plain_form_in_fp64_is_the_definition(problem: GemmProblem, seed: int) -> None:
    a, b, bias, residual = operands(problem, seed)
    given = (a.double(), b.double(), bias, residual)
    answer = compute(problem, *given)
    assert answer.dtype == torch.float64
    torch.testing.assert_close(answer, reference(problem, given), rtol=1e-12, atol=1e-12)


def forms(device: Device, problem: GemmProblem) -> list[object]:
    return [candidate["form"] for candidate in TORCH.ready(device, problem)]


def test_a_form_is_offered_where_it_differs() -> None:
    assert forms(CPU, PROBLEM) == ["addmm", "addmm_activation"]
    assert forms(CPU, replace(PROBLEM, activation="gelu")) == ["addmm", "addmm_activation"]
    assert forms(GPU, replace(PROBLEM, activation="gelu")) == ["addmm"]
    assert forms(GPU, replace(PROBLEM, activation="gelu_tanh")) == ["addmm", "addmm_activation"]
    assert forms(GPU, replace(PROBLEM, residual=True)) == ["addmm", "addmm_residual"]
    assert forms(GPU, replace(PROBLEM, dtype="fp16")) == ["wide"]


def test_a_bias_that_is_not_there_counts_as_zeros() -> None:
    a, b, _, _ = operands(PROBLEM, 0)
    for candidate in TORCH.ready(CPU, PROBLEM):
        out = empty(PROBLEM)
        TORCH.load(CPU, PROBLEM, candidate, NOWHERE)(a, b, None, None, out)
        torch.testing.assert_close(out, torch.relu(a @ b.t()))


def test_weights_that_train_are_no_obstacle() -> None:
    a, b, bias, _ = operands(PROBLEM, 0)
    out = empty(PROBLEM)
    for candidate in TORCH.ready(CPU, PROBLEM):
        TORCH.load(CPU, PROBLEM, candidate, NOWHERE)(a, torch.nn.Parameter(b), torch.nn.Parameter(bias), None, out)
        assert not out.requires_grad


def test_another_form_is_refused() -> None:
    with pytest.raises(WorkError, match=r"form=fused(.|\n)*form=addmm_activation"):
        TORCH.load(CPU, PROBLEM, Configuration.of("torch", {"form": "fused"}), NOWHERE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a": torch.zeros(8, 24)}, r"a must be .* shape \(7, 24\).*found float32 \(8, 24\)"),
        ({"b": torch.zeros(24, 16).t()}, r"b must be a contiguous .* strides \(1, 16\)"),
        ({"b": torch.zeros(16, 24, dtype=torch.float16)}, "b must be .*float32.*found float16"),
        ({"bias": torch.zeros(16, dtype=torch.float64)}, "bias must be .*found float64"),
        ({"residual": torch.zeros(7, 16)}, "a residual was given"),
        ({"out": torch.zeros(7, 15)}, "out must be"),
        ({"a": torch.zeros(169)[1:].view(7, 24)}, "a must begin at a multiple of 16 bytes"),
    ],
)
def test_operands_of_another_problem_are_refused_before_anything_reads_them(
    change: dict[str, torch.Tensor], message: str
) -> None:
    a, b, bias, _ = operands(PROBLEM, 0)
    given = {"a": a, "b": b, "bias": bias, "residual": None, "out": empty(PROBLEM), **change}
    kernel = TORCH.load(CPU, PROBLEM, TORCH.ready(CPU, PROBLEM)[0], NOWHERE)
    with pytest.raises(ValueError, match=message):
        kernel(*given.values())


def test_a_bias_and_a_residual_come_as_the_problem_says() -> None:
    without = replace(PROBLEM, bias=False, activation="none")
    a, b, bias, _ = operands(PROBLEM, 0)
    with pytest.raises(ValueError, match="a problem without one"):
        TORCH.load(CPU, without, TORCH.ready(CPU, without)[0], NOWHERE)(a, b, bias, None, empty(without))
    wanting = replace(PROBLEM, residual=True)
    with pytest.raises(ValueError, match="no residual was given"):
        TORCH.load(CPU, wanting, TORCH.ready(CPU, wanting)[0], NOWHERE)(a, b, bias, None, empty(wanting))
