"""Factors of features become part of a product's weight and bias, and views do not keep an epilogue from its end."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from tests.backends.native.fusions.comparing import DTYPES, FEW, bound, fused, magnitude, nodes, within
from tests.backends.native.graphs import operators, program_of

N, K = 4, 3


def block(m: Any, x: Tensor, image: Tensor, *, late: bool, biased: bool, residual: bool) -> Tensor:
    """The end of a block as ConvNeXt writes it: a product over channels-last values, layer scale, and the residual."""
    value = functional.linear(x, m.weight, m.bias if biased else None)
    factors = m.factors[:, None, None] if late else m.factors
    value = value.permute(0, 3, 1, 2) * factors if late else (value * factors).permute(0, 3, 1, 2)
    return image + value if residual else value + 0.5


def test_layer_scale_and_the_residual_behind_a_permutation_are_taken_along() -> None:
    whole = 0

    @settings(FEW, max_examples=24)
    @given(data=st.data())
    def check(data: st.DataObject) -> None:
        nonlocal whole
        draw = data.draw
        torch.manual_seed(draw(st.integers(0, 1000)))
        dtype = draw(st.sampled_from(DTYPES))
        sizes = [draw(st.integers(1, 3)), draw(st.integers(2, 4)), draw(st.integers(2, 4))]
        late, biased, residual = (draw(st.booleans()) for _ in range(3))
        x = torch.randn(*sizes, K).to(dtype)
        image = torch.randn(*sizes, N).to(dtype).permute(0, 3, 1, 2)
        if draw(st.booleans()):
            image = image.contiguous()
        weight, bias, factors = torch.randn(N, K).to(dtype), torch.randn(N).to(dtype), torch.rand(N).to(dtype)

        def forward(m: Any, x: Tensor, image: Tensor) -> Tensor:
            return block(m, x, image, late=late, biased=biased, residual=residual)

        program = program_of(forward, x, image, weight=weight, bias=bias, factors=factors)
        done, before, after = fused(program, ["gemm_epilogue"], x, image)
        (gemm,) = nodes(done, "gemm")
        assert not any("mul" in name for name in operators(done))
        assert (gemm.args[2] is not None) == biased
        taken = residual and image.permute(0, 2, 3, 1).is_contiguous()
        assert (gemm.args[3] is not None) == taken
        whole += taken
        sx, sw, sb, sf = magnitude(x, weight, bias, factors)
        size = functional.linear(sx, sw, sb) * sf  # type: ignore[arg-type,operator]
        size = size.permute(0, 3, 1, 2) + image.double().abs() + 0.5
        assert within(before[0], after[0], bound(K + 2, size, dtype))

    check()
    assert whole


@pytest.mark.parametrize(
    ("scale", "folds"),
    [
        (lambda y, m, x: y * m.factors, True),
        (lambda y, m, x: m.factors * y, True),
        (lambda y, m, x: y.view(2, 2, 2, N) * m.factors, True),
        (lambda y, m, x: y * m.factors[:1], True),
        (lambda y, m, x: y * m.tiny, False),
        (lambda y, m, x: y * m.table[:, None].expand(2, 4, N).contiguous(), False),
        (lambda y, m, x: y * x[0, 0, 0], False),
        (lambda y, m, x: (y * m.factors, y.sum()), False),
        (lambda y, m, x: y[None] * m.table[:, None, None], False),
        (lambda y, m, x: y.view(2, 2, N, 2) * m.factors[:2], False),
    ],
    ids=[
        "after", "before", "behind a view", "one for all", "too small for the type", "of rows", "computed",
        "another reader", "more rows", "of split features",
    ],
)  # fmt: skip
def test_what_is_no_factor_of_a_feature_stays(scale: Callable[..., Any], folds: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 4, K).half()
    constants = {
        "weight": torch.randn(N, K), "factors": torch.rand(N), "tiny": torch.full((N,), 1e-6),
        "table": torch.rand(2, N),
    }  # fmt: skip
    program = program_of(
        lambda m, x: scale(functional.linear(x, m.weight), m, x), x, **{name: t.half() for name, t in constants.items()}
    )
    done, before, after = fused(program, ["gemm_epilogue"], x)
    assert any("mul" in name for name in operators(done)) != folds
    torch.testing.assert_close(after, before, rtol=4e-3, atol=4e-3)
