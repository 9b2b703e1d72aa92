"""Convolutions over few channels become ones over blocks of pixels, within rounding."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from autotune.backends.native.fusions.space_to_depth import SPACE_TO_DEPTH
from autotune.backends.native.graph import simplify
from autotune.backends.native.passes import EXACT
from autotune.backends.native.sites import reads_any_layout, sites
from tests.backends.native.fusions.comparing import DTYPES, FEW, fused
from tests.backends.native.graphs import operators, program_of

X, WEIGHT = torch.randn(2, 3, 12, 10), torch.randn(5, 3, 3, 3)


@FEW
@given(data=st.data())
def test_the_same_pixels_are_seen(data: st.DataObject) -> None:
    draw = data.draw
    torch.manual_seed(draw(st.integers(0, 1000)))
    dtype = draw(st.sampled_from(DTYPES))
    channels, filters = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    kernel = draw(st.tuples(st.integers(1, 7), st.integers(1, 7)))
    stride = draw(st.sampled_from([2, 3, (2, 4)]))
    padding = draw(st.tuples(st.integers(0, 3), st.integers(0, 3)))
    cast = draw(st.booleans())
    x = torch.randn(2, channels, *draw(st.tuples(st.integers(7, 16), st.integers(7, 16))))
    weight, bias = torch.randn(filters, channels, *kernel).to(dtype), torch.randn(filters).to(dtype)

    def forward(m: Any, x: Tensor) -> Tensor:
        return functional.conv2d(x.to(dtype), m.weight, m.bias, stride, padding).relu()

    inputs = x if cast else x.to(dtype)
    done, (before,), (after,) = fused(program_of(forward, inputs, weight=weight, bias=bias), ["space_to_depth"], inputs)
    assert done.matches == {"space_to_depth": 1}
    (node,) = [node for node in done.module.graph.nodes if "space_to_depth" in str(node.target)]
    images = node.meta["val"]
    assert images.shape[1] % 8 == 0 and images.dtype == dtype
    assert not any("_to_copy" in one for one in operators(done))
    (conv,) = [node for node in done.module.graph.nodes if "conv2d" in str(node.target)]
    filters = conv.args[1].meta["val"]
    assert images.shape[1] * filters.shape[3] % 64 == 0 or filters.shape[2:] == (1, 1)
    size = functional.conv2d(x.abs().double(), weight.abs().double(), bias.abs().double(), stride, padding)
    assert ((after.double() - before.double()).abs() <= 4 * torch.finfo(dtype).eps * size).all()


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: functional.conv2d(x, m.weight, None, 1),
        lambda m, x: functional.conv2d(x, m.weight, None, (1, 2)),
        lambda m, x: functional.conv2d(x, m.weight, None, 2, 0, 2),
        lambda m, x: functional.conv2d(x, m.weight[:3, :1], None, 2, 0, 1, 3),
        lambda m, x: functional.conv2d(torch.cat([x, x], 1), m.wide, None, 2),
        lambda m, x: functional.conv2d(x, x[:1, :, :3, :3], None, 2),
    ],
)
def test_other_convolutions_stay(function: Any) -> None:
    done = simplify(program_of(function, X, weight=WEIGHT, wide=torch.randn(5, 6, 3, 3)), [*EXACT, SPACE_TO_DEPTH])
    assert done.matches["space_to_depth"] == 0 and not any("autotune_native" in one for one in operators(done))


@pytest.mark.parametrize(("side", "channels"), [(16, 768), (4, 48), (3, 32)])
def test_patches_become_a_product_of_as_many_elements_as_they_have(side: int, channels: int) -> None:
    weight, x = torch.randn(8, 3, side, side).half(), torch.randn(2, 3, 2 * side + 1, 3 * side)
    program = program_of(lambda m, x: functional.conv2d(x.half(), m.weight, None, side), x, weight=weight)
    done, before, after = fused(program, ["space_to_depth", "conv_act"], x)
    (site,) = [site for site in sites(done.module, channels_last=True) if site.operator == "conv2d"]
    assert site.problem is not None
    assert (site.problem.m, site.problem.k, site.problem.window) == (12, channels, None)
    assert not any("_to_copy" in one for one in operators(done)) and reads_any_layout(done.module)
    size = 3 * side**2
    torch.testing.assert_close(after, before, rtol=2e-3, atol=2e-3 * size**0.5)


def test_a_cast_that_others_read_stays() -> None:
    def forward(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        half = x.half()
        return functional.conv2d(half, m.weight, None, 2), half * 2

    done, before, after = fused(program_of(forward, X, weight=WEIGHT.half()), ["space_to_depth"], X)
    assert done.matches == {"space_to_depth": 1} and any("_to_copy" in one for one in operators(done))
    torch.testing.assert_close(after, before, rtol=4e-3, atol=4e-3)


@pytest.mark.parametrize("pads", [(0, 1, 0, 1), (1, 0, 2, 1), (1, 1, 1, 1)])
@pytest.mark.parametrize("padding", [0, 1])
def test_blocks_have_the_zeros_of_a_pad_of_any_sizes(pads: Any, padding: int) -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return functional.conv2d(functional.pad(x.half(), pads), m.weight, None, 2, padding)

    done, before, after = fused(program_of(forward, X, weight=WEIGHT.half()), ["space_to_depth"], X)
    assert done.matches == {"space_to_depth": 1}
    assert not any("pad" in one or "_to_copy" in one for one in operators(done))
    torch.testing.assert_close(after, before, rtol=4e-3, atol=4e-3)
