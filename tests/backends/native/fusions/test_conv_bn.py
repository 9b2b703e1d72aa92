"""Batch norms fold into the layer before them within the rounding that both ways of computing have."""

from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from autotune.backends.native.fusions import fuse
from autotune.backends.native.fusions.conv_bn import CONV_BN, fits
from autotune.backends.native.graph import simplify
from autotune.model.precision import flat_module
from tests.thoroughness import examples


def normed(layer: nn.Module, norm: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A layer and its norm with statistics and weights that are not those of a fresh one."""
    for name in ("weight", "bias", "running_mean"):
        if getattr(norm, name) is not None:
            getattr(norm, name).data.normal_()
    norm.get_buffer("running_var").uniform_(0.01, 4)
    return nn.Sequential(layer, norm).eval().to(dtype)


def bound(model: Any, x: Tensor) -> Tensor:
    """How far two ways of rounding may lie apart: twice (terms + roundings) · u · the sum of the terms' sizes.

    A dot product of k terms in any order errs by (k + 1) u of the sum of its terms' sizes at most, with u half the
    type's eps (Higham, Accuracy and Stability of Numerical Algorithms, 3.1). The norm's scale takes a sum, a root and a
    quotient (its root halves what comes before), then a product, the shift a product and a sum, the result a product
    and a sum: twelve roundings are more than any of the two ways has.
    """
    layer, norm = (part.double() for part in model)
    scale = (norm.running_var + norm.eps).rsqrt() * (1 if norm.weight is None else norm.weight)
    shift = (norm.running_mean * scale).abs() + (0 if norm.bias is None else norm.bias.abs())
    layer.weight.data.abs_()
    if layer.bias is not None:
        layer.bias.data.abs_()
    across = (1, -1, *[1] * (x.dim() - 2))
    size = layer(x.double().abs()) * scale.abs().reshape(across) + shift.reshape(across)
    terms = layer.weight[0].numel()
    return 2 * (terms + 12) * torch.finfo(x.dtype).eps / 2 * size


@settings(max_examples=examples(30), deadline=None, derandomize=True, phases=[Phase.explicit, Phase.generate])
@given(data=st.data())
def test_folding_stays_within_rounding(data: st.DataObject) -> None:
    draw = data.draw
    torch.manual_seed(draw(st.integers(0, 1000)))
    dims, groups = draw(st.integers(0, 3)), draw(st.integers(1, 2))
    inside, outside = groups * draw(st.integers(1, 4)), groups * draw(st.integers(1, 4))
    bias, affine = draw(st.booleans()), draw(st.booleans())
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    if dims:
        layer = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1](
            inside, outside, draw(st.integers(1, 3)), groups=groups, bias=bias, padding=draw(st.sampled_from([0, 1]))
        )
        norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[dims - 1](outside, affine=affine)
    else:
        layer, norm = nn.Linear(inside, outside, bias=bias), nn.BatchNorm1d(outside, affine=affine)
    model, x = normed(layer, norm, dtype), torch.randn(2, inside, *[5] * dims, dtype=dtype)
    with torch.no_grad():
        program = torch.export.export(model, (x,))
        kept = {name: tensor.clone() for name, tensor in program.state_dict.items()}
        done = fuse(program, ["conv_bn"])
        assert done.matches["conv_bn"] == 1
        before, after = flat_module(program)(x), done.module(x)
        assert all(torch.equal(kept[name], tensor) for name, tensor in program.state_dict.items())
        before, after = (one[0] if isinstance(one, tuple | list) else one for one in (before, after))
        assert before.dtype == after.dtype
        assert bool(((before.double() - after.double()).abs() <= bound(model, x)).all())


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = normed(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        between = self.layer(x)
        return between.relu(), self.norm(between)


def overflowing() -> nn.Module:
    model: Any = normed(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    model[0].weight.data.fill_(1e4)
    model[1].weight.data.fill_(1e4)
    return model.half()  # type: ignore[no-any-return]


def negative_variance() -> nn.Module:
    model: Any = normed(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    model[1].running_var.fill_(-1)
    return model  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (Twice(), (1, 3, 2, 2)),
        (overflowing(), (1, 3, 2, 2)),
        (negative_variance(), (1, 3, 2, 2)),
        (normed(nn.ConvTranspose2d(3, 4, 2), nn.BatchNorm2d(4)), (1, 3, 2, 2)),
        (normed(nn.Linear(3, 5), nn.BatchNorm1d(4)), (2, 4, 3)),
        (normed(nn.ReLU(), nn.BatchNorm2d(3)), (1, 3, 2, 2)),
    ],
    ids=["used twice", "overflow", "no scale", "transposed", "other dimension", "no weights"],
)
def test_what_cannot_be_folded_stays(model: nn.Module, shape: tuple[int, ...]) -> None:
    dtype = next((parameter.dtype for parameter in model.parameters()), torch.float32)
    with torch.no_grad():
        program = torch.export.export(model.eval(), (torch.randn(shape).to(dtype),))
    assert simplify(program, [CONV_BN]).matches == {"conv_bn": 0}


@settings(max_examples=examples(200), deadline=None, derandomize=True, phases=[Phase.explicit, Phase.generate])
@given(data=st.data())
def test_weights_fit_a_type_if_none_changes_by_more_than_its_channel_allows(data: st.DataObject) -> None:
    draw = data.draw
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
    limits = torch.finfo(dtype)
    edges = [0.0, limits.max, limits.max * 1.0001, limits.tiny, limits.tiny * 0.7, limits.tiny / 2**40, 1e300]
    number = st.one_of(
        st.sampled_from([*edges, float("nan"), float("inf")]), st.floats(-4, 4), st.floats(-4 * limits.tiny, 0)
    )
    channels, terms = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    values = draw(st.lists(number, min_size=channels * (terms + 1), max_size=channels * (terms + 1)))
    rows = torch.tensor(values, dtype=torch.float64).view(channels, terms + 1)
    error = (rows.to(dtype).double() - rows).abs()
    expected = bool((error <= limits.eps / 2 * rows.abs().amax(dim=1, keepdim=True)).all())
    assert fits(rows[:, :terms], rows[:, terms], dtype) == expected
