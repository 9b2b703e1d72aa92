"""Convolutions take residual and activation along within rounding, and nothing else."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from autotune.backends.native.fusions.conv_act import CONV_ACT
from autotune.backends.native.graph import simplify
from autotune.backends.native.passes import EXACT
from tests.backends.native.fusions.comparing import (
    AROUND_ONE,
    DTYPES,
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
def test_convolutions_with_what_follows_stay_within_rounding(activation: str) -> None:
    whole = 0

    @settings(FEW, max_examples=examples(15))
    @given(data=st.data())
    def check(data: st.DataObject) -> None:
        nonlocal whole
        draw = data.draw
        torch.manual_seed(draw(st.integers(0, 1000)))
        dtype, groups = draw(st.sampled_from(DTYPES)), draw(st.integers(1, 2))
        inside, outside = groups * draw(st.integers(1, 3)), groups * draw(st.integers(1, 3))
        height, width = draw(st.integers(1, 3)), draw(st.integers(1, 3))
        stride, dilation = draw(st.integers(1, 2)), draw(st.integers(1, 2))
        padding = draw(st.sampled_from([0, 1, (1, 0), "valid", "same"]))
        if padding == "same":
            stride, dilation = 1, 2
        spell = draw(st.sampled_from(SPELLINGS[activation]))
        add_bias, add_residual, flip, tapped = (draw(st.booleans()) for _ in range(4))
        memory = draw(st.sampled_from([torch.contiguous_format, torch.channels_last]))
        weight, bias = torch.randn(outside, inside // groups, height, width).to(dtype), torch.randn(outside).to(dtype)
        x = torch.randn(2, inside, 6, 7).to(dtype).to(memory_format=memory)

        def convolved(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            return functional.conv2d(x, weight, bias if add_bias else None, stride, padding, dilation, groups)

        def forward(m: Any, x: Tensor, added: Tensor) -> tuple[Tensor, ...]:
            value = product = convolved(x, m.weight, m.bias)
            if add_residual:
                value = added + product if flip else product + added
            return (spell(value), product.sum()) if tapped else (spell(value),)

        product = convolved(x, weight, bias)
        residual = torch.randn_like(product)
        program = program_of(forward, x, residual, weight=weight, bias=bias)
        done, before, after = fused(program, ["conv_act"], x, residual)
        (conv,) = nodes(done, "conv2d")
        assert done.matches == {"conv_act": 1} and (conv.args[2] is not None) == add_bias
        if tapped:
            assert conv.args[3] is None and conv.args[8] == "none"
        else:
            assert (conv.args[3] is not None, conv.args[8]) == (add_residual, activation)
            assert len(operators(done)) == 1
            whole += 1
        size = convolved(*magnitude(x, weight, bias)) + residual.double().abs()  # type: ignore[arg-type]
        terms = weight[0].numel()
        assert within(before[0], after[0], bound(terms, size + (activation in AROUND_ONE), dtype))

    check()
    assert whole  # else nothing was seen to take all of it


@pytest.mark.parametrize(
    ("follow", "expected"),
    [
        (lambda y, r: functional.leaky_relu(y), (False, "none")),
        (lambda y, r: functional.hardtanh(y), (False, "none")),
        (lambda y, r: functional.relu6(y + r), (True, "relu6")),
        (lambda y, r: y.clamp(min=0, max=3), (False, "none")),
        (lambda y, r: y + r[:, :, :1], (False, "none")),
        (lambda y, r: y + r.to(memory_format=torch.channels_last), (False, "none")),
        (lambda y, r: torch.add(y, r, alpha=0.5), (False, "none")),
        (lambda y, r: y + 1.0, (False, "none")),
        (lambda y, r: y.view(1, 4, 9).relu(), (False, "relu")),
        (lambda y, r: functional.gelu(y.flatten(2).transpose(1, 2)), (False, "gelu")),
        (lambda y, r: y.permute(0, 2, 3, 1) + r.permute(0, 2, 3, 1), (False, "none")),
        (lambda y, r: y.relu() + r, (False, "relu")),
        (lambda y, r: (y + r).relu() + r, (True, "relu")),
    ],
)
def test_an_epilogue_ends_where_it_must(follow: Any, expected: tuple[bool, str]) -> None:
    torch.manual_seed(0)
    x, r = torch.randn(1, 4, 3, 3), torch.randn(1, 4, 3, 3)
    weight = torch.randn(4, 4, 3, 3)
    program = program_of(lambda m, x, r: follow(functional.conv2d(x, m.weight, padding=1), r), x, r, weight=weight)
    done, before, after = fused(program, ["conv_act"], x, r)
    (conv,) = nodes(done, "conv2d")
    assert (conv.args[3] is not None, conv.args[8]) == expected
    torch.testing.assert_close(after, before)


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: functional.conv1d(x[:, :, 0], m.weight[:, :, 0]),
        lambda m, x: functional.conv2d(x[0], m.weight),
        lambda m, x: functional.conv3d(x[:, :, None], m.weight[:, :, None]),
        lambda m, x: functional.conv2d(x, x[:, :, :1, :1].repeat(4, 1, 1, 1)),
        lambda m, x: functional.conv2d(x, m.weight, x[0, :, 0, 0]),
        lambda m, x: functional.conv2d(x, m.weight, padding="same"),
        lambda m, x: functional.conv_transpose2d(x, m.weight),
    ],
    ids=["1-D", "no batch", "3-D", "a weight that varies", "a bias that varies", "uneven padding", "transposed"],
)
def test_other_convolutions_stay(function: Any) -> None:
    program = program_of(function, torch.randn(1, 4, 3, 3), weight=torch.randn(4, 4, 2, 2))
    assert simplify(program, [*EXACT, CONV_ACT]).matches["conv_act"] == 0


def test_pads_of_zeros_before_convolutions_are_folded_as_far_as_padding_can_express_them() -> None:
    folded = []

    @settings(FEW, max_examples=examples(40))
    @given(data=st.data())
    def check(data: st.DataObject) -> None:
        draw = data.draw
        torch.manual_seed(draw(st.integers(0, 1000)))
        pads = draw(st.lists(st.integers(-1, 2), min_size=4, max_size=4))
        size, kernel, stride = draw(st.integers(5, 8)), draw(st.integers(1, 3)), draw(st.integers(1, 2))
        padding, dilation = draw(st.integers(0, 1)), draw(st.integers(1, 2))
        x, weight = torch.randn(2, 8, size, size + 1), torch.randn(8, 8, kernel, kernel)

        def forward(m: Any, x: Tensor) -> Tensor:
            return functional.conv2d(functional.pad(x, pads), m.weight, None, stride, padding, dilation).relu()

        done, before, after = fused(program_of(forward, x, weight=weight), ["conv_act"], x)
        left = [one for one in operators(done) if "pad" in one]
        torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5)
        if pads[0] == pads[1] >= 0 and pads[2] == pads[3] >= 0:
            assert not left
        if min(pads) < 0:
            assert left
        folded.append((not left, pads[0] != pads[1] or pads[2] != pads[3]))

    check()
    # also pads of two sizes, whose end no window reads, and such that no padding expresses
    assert {(True, True), (False, True)} <= set(folded)


@pytest.mark.parametrize(
    "pad",
    [
        lambda x: functional.pad(x, (1, 1, 1, 1), value=1.0),
        lambda x: functional.pad(x, (1, 1, 1, 1), mode="reflect"),
        lambda x: functional.pad(x, (0, 0, 0, 0, 2, 2)),
        lambda x: functional.pad(x, (0, 1, 0, 1)),
    ],
    ids=["ones", "reflection", "channels", "the end alone"],
)
def test_other_pads_stay(pad: Any) -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 4, 6, 6)
    weight = torch.randn(4, pad(x).shape[1], 3, 3)
    program = program_of(lambda m, x: functional.conv2d(pad(x), m.weight, stride=2), x, weight=weight)
    done, before, after = fused(program, ["conv_act"], x)
    assert any("pad" in one for one in operators(done))
    torch.testing.assert_close(after, before)
