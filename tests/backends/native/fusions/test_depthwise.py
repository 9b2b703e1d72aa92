"""Depthwise convolutions take pads, bias, residual and activation along within rounding; others stay."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from autotune.backends.native.fusions.depthwise import DEPTHWISE
from autotune.backends.native.graph import simplify
from autotune.backends.native.passes import EXACT
from autotune.backends.native.refusals import recording
from autotune.backends.native.triton_codegen import planned_sites
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


@pytest.mark.parametrize("activation", sorted(SPELLINGS))
def test_depthwise_convolutions_with_their_surroundings_stay_within_rounding(activation: str) -> None:
    whole = 0

    @settings(FEW, max_examples=examples(20))
    @given(data=st.data())
    def check(data: st.DataObject) -> None:
        nonlocal whole
        draw = data.draw
        torch.manual_seed(draw(st.integers(0, 1000)))
        dtype = draw(st.sampled_from([torch.float32, torch.float16, torch.bfloat16]))
        channels, kernel = draw(st.integers(2, 9)), (draw(st.integers(1, 5)), draw(st.integers(1, 3)))
        stride, dilation, padding = (draw(st.integers(1, 2)), draw(st.integers(1, 2)), draw(st.integers(0, 2)))
        spell = draw(st.sampled_from(SPELLINGS[activation]))
        add_bias, add_residual, is_read_twice, is_cast = (draw(st.booleans()) for _ in range(4))
        pads = draw(st.one_of(st.none(), st.lists(st.integers(0, 2), min_size=4, max_size=4)))
        memory = draw(st.sampled_from([torch.contiguous_format, torch.channels_last]))
        weight, bias = torch.randn(channels, 1, *kernel).to(dtype), torch.randn(channels).to(dtype)
        x = torch.randn(2, channels, 10, 11).to(torch.float32 if is_cast else dtype).to(memory_format=memory)

        def convolved(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            padded = x if pads is None else functional.pad(x, pads)
            return functional.conv2d(padded, weight, bias if add_bias else None, stride, padding, dilation, channels)

        def forward(m: Any, x: Tensor, added: Tensor) -> tuple[Tensor, ...]:
            value = product = convolved(x.to(dtype), m.weight, m.bias)
            value = spell(product + added if add_residual else product)
            return (value, product.sum()) if is_read_twice else (value,)

        residual = torch.randn_like(convolved(x.to(dtype), weight, bias))
        program = program_of(forward, x, residual, weight=weight, bias=bias)
        done, before, after = fused(program, ["depthwise"], x, residual)
        assert done.matches == {"depthwise": 1}
        (conv,) = nodes(done, "depthwise_conv2d")
        assert (conv.args[2] is not None, list(conv.args[6])) == (add_bias, list(residual.shape[2:]))  # type: ignore[arg-type]
        assert not any("pad" in name for name in operators(done))
        if is_read_twice:
            assert (conv.args[3], conv.args[8]) == (None, "none")
        else:
            assert (conv.args[3] is not None, conv.args[8]) == (add_residual, activation)
            assert operators(done) == ["autotune_native.depthwise_conv2d.default"]
            whole += 1
        size = convolved(*magnitude(x, weight, bias)) + residual.double().abs()  # type: ignore[arg-type]
        assert within(before[0], after[0], bound(weight[0].numel(), size + (activation in AROUND_ONE), dtype))

    check()
    assert whole


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda m, x: functional.conv2d(x, m.dense), None),
        (lambda m, x: functional.conv2d(x, m.pairs, groups=2), "groups of 2 channels"),
        (lambda m, x: functional.conv2d(x, m.twice, groups=4), "2 filters for each channel"),
        (lambda m, x: functional.conv2d(x.double(), m.single.double(), groups=4), "kernels do not read torch.float64"),
        (lambda m, x: functional.conv2d(x, x[0, :, None, :2, :2], groups=4), "its weights are computed"),
        (lambda m, x: functional.conv2d(x, m.single, padding="same", groups=4), "padding differs"),
        (lambda m, x: functional.conv1d(x[:, :, 0], m.pairs[:, :, 0], groups=2), "two dimensions"),
        (lambda m, x: functional.conv1d(x[0].mT, m.row, groups=3), "two dimensions"),
    ],
    ids=[
        "dense",
        "pairs",
        "multiplier",
        "float64",
        "computed weights",
        "uneven padding",
        "pairs, 1-D",
        "transposed, 1-D",
    ],
)
def test_other_convolutions_stay_and_the_reason_is_reported(function: Any, reason: str | None) -> None:
    weights = {
        "dense": torch.randn(4, 4, 2, 2), "pairs": torch.randn(4, 2, 2, 2), "twice": torch.randn(8, 1, 2, 2),
        "single": torch.randn(4, 1, 2, 2), "row": torch.randn(3, 1, 2),
    }  # fmt: skip
    program = program_of(function, torch.randn(1, 4, 3, 3), **weights)
    with recording() as refused:
        done = simplify(program, [*EXACT, DEPTHWISE])
    assert done.matches["depthwise"] == 0
    reasons = [refusal.reason for refusals in refused.values() for refusal in refusals]
    assert not reasons if reason is None else any(reason in one for one in reasons), reasons


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("kernel", "padding", "stride", "dilation"), [(3, 1, 1, 1), (31, 15, 1, 1), (4, 3, 2, 2)])
def test_a_convolution_over_one_dimension_is_one_over_a_row(
    kernel: int, padding: int, stride: int, dilation: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(2, 6, 40), torch.randn(6, 1, kernel), torch.randn(6)

    def forward(m: Any, x: Tensor) -> Tensor:
        return functional.silu(functional.conv1d(x, m.weight, m.bias, stride, padding, dilation, 6))

    program = program_of(forward, x.to(dtype), weight=weight.to(dtype), bias=bias.to(dtype))
    done, before, after = fused(program, ["depthwise"], x.to(dtype))
    assert done.matches == {"depthwise": 1}
    (node,) = nodes(done, "depthwise_conv2d")
    assert node.args[8] == "silu" and sum("view" not in name and "squeeze" not in name for name in operators(done)) == 1
    tolerance = 8 * torch.finfo(dtype).eps * kernel**0.5
    torch.testing.assert_close(after, before, rtol=tolerance, atol=tolerance)
    for channels_last in (False, True):
        plans, reasons = planned_sites(done.module, channels_last=channels_last)
        ((plan,),) = plans.values()
        assert not reasons and plan.layouts == (((2, 6, 1, 40), (240, 40, 0, 1)),) and not plan.channels_last


def test_without_the_switch_the_steps_after_it_remain_one_program() -> None:
    x, weight, bias = torch.randn(1, 8, 6, 6), torch.randn(8, 1, 3, 3), torch.randn(8)

    def forward(m: Any, x: Tensor) -> Tensor:
        return functional.silu(functional.conv2d(x, m.weight, m.bias, padding=1, groups=8))

    names = ["conv_act", "pointwise"]
    program = program_of(forward, x.half(), weight=weight.half(), bias=bias.half())
    for switches, expected in (
        (names, {"conv2d": 1, "pointwise": 1}),
        (["depthwise", *names], {"depthwise_conv2d": 1}),
    ):
        done, before, after = fused(program, switches, x.half())
        assert {name: len(nodes(done, name)) for name in ("conv2d", "pointwise", "depthwise_conv2d")} == {
            "conv2d": 0, "pointwise": 0, "depthwise_conv2d": 0, **expected,
        }  # fmt: skip
        torch.testing.assert_close(after, before, rtol=4e-3, atol=4e-3)


def test_an_image_that_others_read_in_half_precision_stays_cast() -> None:
    def forward(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        half = x.half()
        return functional.conv2d(half, m.weight, groups=4), half * 2

    x = torch.randn(1, 4, 5, 5)
    done, before, after = fused(program_of(forward, x, weight=torch.randn(4, 1, 3, 3).half()), ["depthwise"], x)
    assert done.matches == {"depthwise": 1} and any("_to_copy" in name for name in operators(done))
    torch.testing.assert_close(after, before, rtol=4e-3, atol=4e-3)
