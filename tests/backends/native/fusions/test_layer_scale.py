"""Factors of features become part of a product's weight and bias, and views do not keep an epilogue from its end."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from autotune.backends.native.fusions import FUSIONS, fuse
from autotune.backends.native.weight_layout import convolutions_in_channels_last
from autotune.model.precision import flat_module
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


class Stream(nn.Module):
    """Blocks whose stream of residuals begins with a convolution's answer, that is captured in contiguous memory."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.depthwise = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1, groups=8) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(8) for _ in range(2))
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))
        self.factors = nn.ParameterList(torch.rand(8) for _ in range(2))

    def forward(self, x: Tensor) -> tuple[Tensor]:
        x = self.stem(x)
        for depthwise, norm, layer, factor in zip(self.depthwise, self.norms, self.layers, self.factors, strict=True):
            x = x + (layer(norm(depthwise(x).permute(0, 2, 3, 1))) * factor).permute(0, 3, 1, 2)
        return (x,)


class Pooled(Stream):
    """The mean over images: its strides do not depend on those of the stream."""

    def forward(self, x: Tensor) -> tuple[Tensor]:
        (x,) = super().forward(x)
        return (x.mean((2, 3)),)


@pytest.mark.parametrize(("kind", "residuals"), [(Pooled, 2), (Stream, 0)])
@pytest.mark.parametrize("names", [["norm", "gemm_epilogue"], list(FUSIONS)], ids=["two", "all"])
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_a_stream_of_residuals_is_put_in_the_order_of_rows_unless_it_is_an_output(
    kind: type[Stream], residuals: int, names: list[str], memory: torch.memory_format
) -> None:
    torch.manual_seed(0)
    model, x = kind().double().eval(), torch.randn(2, 3, 6, 7, dtype=torch.float64)
    with torch.no_grad():
        program = torch.export.export(model, (x,))
        done = fuse(program, names)
        again = flat_module(torch.export.export(done.module, (x,)))
        # as it runs: weights of convolutions in channels-last memory
        if memory is torch.channels_last:
            convolutions_in_channels_last(again)
        (before,), (after,) = flat_module(program)(x), again(x.contiguous(memory_format=memory))
    torch.testing.assert_close(after, before, rtol=1e-10, atol=1e-10)
    products = [node for name in ("gemm", "gemm_gemm") for node in nodes(done, name)]
    assert sum(node.args[-2] is not None for node in products) == residuals
    if memory is torch.contiguous_format:
        assert after.stride() == before.stride()
