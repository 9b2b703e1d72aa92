"""Convolutions without kernels of ours: their bias, residual and activation become one program."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from autotune.backends.native.pointwise import parse
from tests.backends.native.fusions.comparing import (
    AROUND_ONE,
    FEW,
    SPELLINGS,
    bound,
    fused,
    magnitude,
    nodes,
    within,
)
from tests.backends.native.graphs import operators, program_of
from tests.thoroughness import examples

NAMES = ["conv_act", "pointwise"]


@pytest.mark.parametrize("activation", sorted(SPELLINGS))
def test_the_steps_of_convolutions_with_groups_stay_within_rounding(activation: str) -> None:
    whole = 0

    @settings(FEW, max_examples=examples(12))
    @given(data=st.data())
    def check(data: st.DataObject) -> None:
        nonlocal whole
        draw = data.draw
        torch.manual_seed(draw(st.integers(0, 1000)))
        dtype = draw(st.sampled_from([torch.float32, torch.float16, torch.bfloat16]))
        channels, size, stride = 8 * draw(st.integers(1, 2)), draw(st.integers(1, 3)), draw(st.integers(1, 2))
        add_bias, add_residual, gated = (draw(st.booleans()) for _ in range(3))
        memory = draw(st.sampled_from([torch.contiguous_format, torch.channels_last]))
        weight, bias = torch.randn(channels, 1, size, size).to(dtype), torch.randn(channels).to(dtype)
        x = torch.randn(2, channels, 6, 7).to(dtype).to(memory_format=memory)

        def convolved(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            return functional.conv2d(x, weight, bias if add_bias else None, stride, 1, 1, channels)

        def forward(m: Any, x: Tensor, added: Tensor, gate: Tensor) -> Tensor:
            value = convolved(x, m.weight, m.bias)
            value = SPELLINGS[activation][0](value + added if add_residual else value)
            return value * gate if gated else value

        residual = torch.randn_like(convolved(x, weight, bias))
        gate = torch.rand(2, channels, 1, 1).to(dtype)
        program = program_of(forward, x, residual, gate, weight=weight, bias=bias)
        done, before, after = fused(program, NAMES, x, residual, gate)
        terms = weight[0].numel()
        exact = convolved(*magnitude(x, weight, bias)) + residual.double().abs()  # type: ignore[arg-type]
        assert within(before[0], after[0], 2 * bound(terms, exact + (activation in AROUND_ONE), dtype))
        (conv,) = nodes(done, "conv2d")
        programs = nodes(done, "pointwise")
        if activation == "relu":  # cuDNN computes these steps itself
            assert conv.args[8] == "relu" and len(programs) == gated
            return
        assert (conv.args[2], conv.args[3], conv.args[8]) == (None, None, "none")
        steps = add_bias + add_residual + (activation != "none") + gated
        assert len(programs) == (steps > 0) and len(launches(operators(done))) == 1 + len(programs)
        whole += steps > 1

    check()
    assert whole or activation == "relu"


def launches(names: list[str]) -> list[str]:
    return [name for name in names if not name.startswith(("view", "permute", "expand"))]


def forward(m: Any, x: Tensor) -> Tensor:
    return functional.silu(functional.conv2d(x, m.weight, m.bias, padding=1, groups=x.shape[1] // m.weight.shape[1]))


@pytest.mark.parametrize(
    ("names", "channels", "dtype", "is_released"),
    [
        (NAMES, 1, torch.float16, True),
        (NAMES, 8, torch.float16, False),
        (NAMES, 8, torch.float32, True),
        (NAMES, 1, torch.float64, False),
        (["conv_act"], 1, torch.float16, False),
    ],
    ids=["groups", "a kernel of ours", "no kernel in fp32", "no programs in fp64", "no programs"],
)
def test_steps_are_released_only_if_no_kernel_takes_them(
    names: list[str], channels: int, dtype: torch.dtype, is_released: bool
) -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(1, 8, 5, 5), torch.randn(8, channels, 3, 3), torch.randn(8)
    program = program_of(forward, x.to(dtype), weight=weight.to(dtype), bias=bias.to(dtype))
    done, before, after = fused(program, names, x.to(dtype))
    (conv,) = nodes(done, "conv2d")
    assert (conv.args[2] is None, conv.args[8]) == ((True, "none") if is_released else (False, "silu"))
    programs = [parse(str(node.args[1])) for node in nodes(done, "pointwise")]
    assert [[step.name for step in program.steps] for program in programs] == [["add", "silu"]] * is_released
    # in half precision torch rounds after each step, a program once
    tolerance = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(after, before, rtol=tolerance, atol=tolerance)
