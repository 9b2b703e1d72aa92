"""Residual sums and norms that are spelled out compute the same within rounding, and what only looks so stays."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from autotune.backends.native.fusions.norm import NORM
from autotune.backends.native.graph import simplify
from autotune.backends.native.passes import EXACT
from tests.backends.native.graphs import operators, program_of, shared

EPS = 1e-5
Function = Callable[..., Any]


def llama(x: Tensor, w: Tensor | None) -> Tensor:
    wide = x.float() if x.dtype is not torch.float64 else x
    normed = (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + EPS)).to(x.dtype)
    return normed if w is None else w * normed


def t5(x: Tensor, w: Tensor | None) -> Tensor:
    wide = x.float() if x.dtype is not torch.float64 else x
    normed = x * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + EPS)
    return normed.to(x.dtype) if w is None else w * normed.to(w.dtype)


def weight_first(x: Tensor, w: Tensor | None) -> Tensor:
    wide = x.float() if x.dtype is not torch.float64 else x
    normed = torch.rsqrt(EPS + (wide * wide).mean(-1, keepdim=True)) * wide
    return (normed if w is None else normed * w.to(wide.dtype)).to(x.dtype)


def quotient(x: Tensor, w: Tensor | None) -> Tensor:
    normed = x / (x.square().mean(-1, keepdim=True) + EPS).sqrt()
    return normed if w is None else normed * w


def reciprocal(x: Tensor, w: Tensor | None) -> Tensor:
    normed = x * (x.square().mean([-1], keepdim=True) + EPS).sqrt().reciprocal()
    return normed if w is None else w * normed


def rms(x: Tensor, w: Tensor | None) -> Tensor:
    return functional.rms_norm(x, x.shape[-1:], w, EPS)


def layer(x: Tensor, w: Tensor | None) -> Tensor:
    return functional.layer_norm(x, x.shape[-1:], w, None if w is None else w.flip(0), EPS)


SPELLINGS = (llama, t5, weight_first, quotient, reciprocal, rms, layer)


def bound(x: Tensor, sized: Tensor, w: Tensor, dtype: torch.dtype) -> Tensor:
    """How far two ways of rounding may lie apart, element by element; ``sized`` bounds what x was summed from.

    Relative to x's own size: a mean of n squares errs by (n + 2) u, its root by half of that, then come at most a sum,
    a root, a quotient, two products and three casts. A layer norm's difference from the mean errs by (n + 2) u of the
    sizes that enter it instead, and this passes through the same scale, as does a rounding of the residual sum.
    """
    n, u = x.shape[-1], torch.finfo(dtype).eps / 2
    deviation = (x - x.mean(-1, keepdim=True)).square().mean(-1, keepdim=True)
    scale = (torch.minimum(deviation, x.square().mean(-1, keepdim=True)) + EPS).rsqrt()
    size = (sized + sized.mean(-1, keepdim=True)) * scale
    # the variance's relative error grows with what is subtracted, its root has half of it
    lost = 1 + (size.square()).mean(-1, keepdim=True)
    return 2 * (2 * n + 12) * u * (size * lost * w.abs() + w.abs()) + torch.finfo(dtype).smallest_normal


@settings(max_examples=30, deadline=None, derandomize=True, phases=[Phase.explicit, Phase.generate])
@given(data=st.data())
def test_norms_stay_within_rounding(data: st.DataObject) -> None:
    draw = data.draw
    torch.manual_seed(draw(st.integers(0, 1000)))
    dtype = draw(st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16]))
    spelled, residual, weighted = draw(st.sampled_from(SPELLINGS)), draw(st.booleans()), draw(st.booleans())
    shape = (*draw(st.lists(st.integers(1, 3), min_size=1, max_size=3)), draw(st.integers(2, 17)))
    x, r, w = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype), torch.randn(shape[-1]).to(dtype)
    twice = draw(st.booleans())

    def function(module: Any, *given: Tensor) -> tuple[Tensor, ...]:
        total = given[0] + given[1] if residual else given[0].sin()
        normed = spelled(total, module.w if weighted else None)
        return (normed, total) if twice else (normed,)

    program = program_of(function, x, r, w=w)
    done = simplify(program, [*EXACT, NORM])
    assert done.matches["norm"] == (spelled is not layer or residual)
    with torch.no_grad():
        before, after = program.module()(x, r), done.module(x, r)
    for one, other in zip(before, after, strict=True):
        assert (one.dtype, one.shape, one.stride()) == (other.dtype, other.shape, other.stride())
    assert shared([*after, x, r]) <= shared([*before, x, r])
    if twice:
        assert torch.equal(before[1], after[1])
    total = (x + r if residual else x.sin()).double()
    gain = w.double().abs() + w.double().flip(0).abs() if weighted else torch.ones(1, dtype=torch.float64)
    assert bool(((before[0].double() - after[0].double()).abs() <= bound(total, total.abs(), gain, dtype)).all())


X, R, W = torch.randn(2, 3, 8), torch.randn(2, 3, 8), torch.randn(8)


def left(function: Function, *inputs: Tensor) -> list[str]:
    done = simplify(program_of(function, *inputs, w=W), [*EXACT, NORM])
    return [one.removeprefix("autotune_native.") for one in operators(done)]


def test_what_is_left_is_the_operator_alone() -> None:
    assert left(lambda m, x, r: layer(x + r, m.w), X, R)[-1:] == ["add_norm.default"]
    assert left(lambda m, x, r: llama(x + r, m.w), X, R) == ["add_norm.default"]
    assert left(lambda m, x: t5(x, m.w), X.half().float()) == ["norm.default"]
    half = simplify(program_of(lambda m, x: t5(x, m.w), X.half(), w=W.half()), [*EXACT, NORM])
    assert operators(half) == ["autotune_native.norm.default"]
    chained = left(lambda m, x, r: (llama(x + r, m.w), llama((x + r) + x, m.w)), X, R)
    assert chained == ["add_norm.default", "add_norm.default"]


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x, r: functional.layer_norm(x + r, [3, 8]),
        lambda m, x, r: x * torch.rsqrt(r.pow(2).mean(-1, keepdim=True) + EPS),
        lambda m, x, r: x * torch.rsqrt(x.pow(3).mean(-1, keepdim=True) + EPS),
        lambda m, x, r: x * torch.rsqrt((x * r).mean(-1, keepdim=True) + EPS),
        lambda m, x, r: x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + EPS),
        lambda m, x, r: x * torch.rsqrt(x.pow(2).mean((1, 2), keepdim=True) + EPS),
        lambda m, x, r: x * torch.rsqrt(x.pow(2).sum(-1, keepdim=True) + EPS),
        lambda m, x, r: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True)),
        lambda m, x, r: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + r[..., :1].abs()),
        lambda m, x, r: x * torch.sqrt(x.pow(2).mean(-1, keepdim=True) + EPS),
        lambda m, x, r: (s := torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPS), x * s),
        lambda m, x, r: (s := x.pow(2), x * torch.rsqrt(s.mean(-1, keepdim=True) + EPS)),
        lambda m, x, r: x.half() * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPS),
        lambda m, x, r: x.mT * torch.rsqrt(x.mT.pow(2).mean(-1, keepdim=True) + EPS),
    ],
)
def test_what_only_looks_like_a_norm_stays(function: Function) -> None:
    assert simplify(program_of(function, X, R, w=W), [*EXACT, NORM]).matches["norm"] == 0


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x, r: layer(x, m.w),
        lambda m, x, r: layer(x + r[:1], m.w),
        lambda m, x, r: layer(torch.add(x, r, alpha=2), m.w),
        lambda m, x, r: layer(x.transpose(0, 1) + r.transpose(0, 1), m.w),
        lambda m, x, r: layer(x.transpose(0, 1), m.w),
    ],
)
def test_a_norm_without_a_sum_that_fits_stands_alone(function: Function) -> None:
    done = simplify(program_of(function, X, R, w=W), [*EXACT, NORM])
    assert done.matches["norm"] == 1 and operators(done)[-1] == "autotune_native.norm.default"
    torch.testing.assert_close(done.module(X, R)[0], function(SimpleNamespace(w=W), X, R))


def test_a_product_with_another_tensor_is_no_weight() -> None:
    done = simplify(program_of(lambda m, x, r: llama(x, None) * r, X, R), [*EXACT, NORM])
    assert operators(done) == ["autotune_native.norm.default", "mul.Tensor"]
