"""Casts before and after norms and means become part of them, if nothing else reads what they read or write."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from tests.backends.native.fusions.comparing import FEW, fused, nodes
from tests.backends.native.graphs import operators, program_of

X, R, W = torch.randn(2, 3, 8), torch.randn(2, 3, 8), torch.randn(8)
IMAGES = torch.randn(2, 8, 5, 4)
Function = Callable[..., Any]


def layer(m: Any, x: Tensor) -> Tensor:
    return functional.layer_norm(x, [8], m.w.to(x.dtype), m.w.to(x.dtype))


@FEW
@given(data=st.data())
def test_casts_beside_norms_are_absorbed_within_rounding(data: st.DataObject) -> None:
    draw = data.draw
    torch.manual_seed(draw(st.integers(0, 1000)))
    types = st.sampled_from([torch.float16, torch.bfloat16, torch.float32])
    before, inside, after = draw(types), draw(types), draw(types)
    add, is_read_twice, is_rms = (draw(st.booleans()) for _ in range(3))
    x, r, w = torch.randn(3, 5, 8).to(before), torch.randn(3, 5, 8).to(inside), torch.randn(8).to(inside)

    def forward(m: Any, x: Tensor, r: Tensor) -> tuple[Tensor, ...]:
        given = x.to(inside) + r if add else x.to(inside)
        normed = functional.rms_norm(given, [8], m.w, 1e-5) if is_rms else functional.layer_norm(given, [8], m.w)
        return (normed.to(after), normed.sin()) if is_read_twice else (normed.to(after),)

    done, ours, torchs = fused(program_of(forward, x, r, w=w), ["norm"], x, r)
    (norm,) = nodes(done, "add_norm" if add else "norm")
    casts = [name for name in operators(done) if "_to_copy" in name]
    assert len(casts) == (add and before is not inside) + (is_read_twice and after is not inside)
    answer = norm.meta["val"][1] if add else norm.meta["val"]
    assert answer.dtype is (inside if is_read_twice else after)
    # each way rounds what is read and what is written to one of the types at most
    eps = max(torch.finfo(dtype).eps for dtype in (before, inside, after))
    for one, other in zip(ours, torchs, strict=True):
        torch.testing.assert_close(one.float(), other.float(), rtol=16 * eps, atol=16 * eps)


@pytest.mark.parametrize(
    ("function", "names", "left"),
    [
        (lambda m, x: x.half().mean((2, 3)).float(), ["pooling"], ["mean_pool2d", "view"]),
        (lambda m, x: x.half().mean((2, 3), keepdim=True).float(), ["pooling"], ["mean_pool2d"]),
        (lambda m, x: functional.adaptive_avg_pool2d(x.half(), 1).flatten(1).float(), ["pooling"],
         ["mean_pool2d", "view"]),
        (lambda m, x: x.double().mean((2, 3)).float(), ["pooling"], ["_to_copy", "mean_pool2d", "view", "_to_copy"]),
    ],
    ids=["mean", "kept dimensions", "flattened", "float64"],
)  # fmt: skip
def test_casts_beside_means_are_absorbed(function: Function, names: list[str], left: list[str]) -> None:
    done, before, after = fused(program_of(function, IMAGES), names, IMAGES)
    assert [name.removeprefix("autotune_native.").partition(".")[0] for name in operators(done)] == left
    torch.testing.assert_close(after, before, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize(
    ("function", "casts"),
    [
        (lambda m, x: (layer(m, x.half()).float(),), 0),
        (lambda m, x: (layer(m, x.half()).transpose(0, 1).float(),), 0),
        (lambda m, x: (layer(m, x.half()).view(6, 8).float(),), 0),
        (lambda m, x: (layer(m, x.half()).float(), x.half() * 2), 1),
        (lambda m, x: (layer(m, x.double()).float(),), 2),
        (lambda m, x: (layer(m, x.half()).to(torch.int32),), 1),
        (lambda m, x: (torch.einsum("...d,d->...", layer(m, x.half()), m.w.half()).float(),), 1),
        (lambda m, x: (layer(m, x.half()).type_as(x).float(),), 0),
        (lambda m, x: (torch.broadcast_tensors(layer(m, x.half()), m.w.half())[0].float(),), 1),
    ],
    ids=[
        "both",
        "a transposed answer",
        "a view between",
        "a cast that others read",
        "float64",
        "integers",
        "einsum",
        "type_as",
        "broadcast_tensors",
    ],
)
def test_other_casts_stay(function: Function, casts: int) -> None:
    done, before, after = fused(program_of(function, X, w=W), ["norm"], X)
    assert sum("_to_copy" in name for name in operators(done)) == casts
    for one, other in zip(before, after, strict=True):
        torch.testing.assert_close(other.float(), one.float(), rtol=1e-2, atol=1 if one.dtype is torch.int32 else 1e-2)
