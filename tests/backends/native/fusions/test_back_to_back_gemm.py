"""Pairs of products become one operator, where nobody else needs what lies between them."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

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
from tests.backends.native.graphs import program_of

NAMES = ["gemm_epilogue", "back_to_back_gemm"]


@FEW
@given(data=st.data())
def test_pairs_stay_within_rounding(data: st.DataObject) -> None:
    draw = data.draw
    torch.manual_seed(draw(st.integers(0, 1000)))
    dtype = draw(st.sampled_from(DTYPES))
    lead = draw(st.lists(st.integers(1, 4), min_size=1, max_size=2))
    k, between, n = (draw(st.integers(1, 9)) for _ in range(3))
    first, second = (draw(st.sampled_from(sorted(SPELLINGS))) for _ in range(2))
    bias, residual, tapped = (draw(st.booleans()) for _ in range(3))
    x, added = torch.randn(*lead, k).to(dtype), torch.randn(*lead, n).to(dtype)
    w0, w1 = torch.randn(between, k).to(dtype), torch.randn(n, between).to(dtype)
    b0, b1 = torch.randn(between).to(dtype), torch.randn(n).to(dtype)

    def forward(m: Any, x: Tensor, added: Tensor) -> tuple[Tensor, ...]:
        inner = SPELLINGS[first][-1](functional.linear(x, m.w0, m.b0 if bias else None))
        outer = functional.linear(inner, m.w1, m.b1)
        outer = SPELLINGS[second][0](outer + added if residual else outer)
        return (outer, inner.sum()) if tapped else (outer,)

    program = program_of(forward, x, added, w0=w0, w1=w1, b0=b0, b1=b1)
    done, before, after = fused(program, NAMES, x, added)
    assert done.matches == {"gemm_epilogue": 2, "back_to_back_gemm": 0 if tapped else 1}
    for node in nodes(done, "gemm_gemm"):
        assert [one is not None for one in (node.args[2], node.args[5], node.args[6])] == [bias, True, residual]
        assert (node.args[3], node.args[7]) == (first, second)
    sx, s0, s1, t0, t1, sadd = magnitude(x, w0, w1, b0, b1, added)
    inner = functional.linear(sx, s0, t0) + (first in AROUND_ONE)  # type: ignore[arg-type]
    size = functional.linear(inner, s1, t1) + sadd + (second in AROUND_ONE)  # type: ignore[arg-type,operator]
    programmatic_launch = functional.linear(bound(k, inner, dtype), s1)  # type: ignore[arg-type]
    assert within(before[0], after[0], 1.5 * programmatic_launch + bound(between, size, dtype))


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: functional.linear(functional.linear(x, m.a) + x, m.b),
        lambda m, x: functional.linear(functional.linear(x, m.a), m.b) + functional.linear(x, m.a),
        lambda m, x: functional.linear(functional.linear(x, m.a).t(), m.b),
        lambda m, x: functional.linear(functional.leaky_relu(functional.linear(x, m.a)), m.b),
    ],
    ids=["a residual between", "another user", "turned around", "another activation"],
)
def test_other_pairs_stay(function: Any) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 4)
    done, before, after = fused(program_of(function, x, a=torch.randn(4, 4), b=torch.randn(4, 4)), NAMES, x)
    assert done.matches["back_to_back_gemm"] == 0 and len(nodes(done, "gemm")) == 2
    torch.testing.assert_close(after, before)


def test_views_that_cancel_do_not_part_a_pair() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        inner = torch.addmm(m.v, x.view(-1, 4), m.a).view(2, 3, 4)
        return torch.addmm(m.v, functional.gelu(inner).view(-1, 4), m.b).view(2, 3, 4)

    torch.manual_seed(0)
    x = torch.randn(2, 3, 4)
    program = program_of(forward, x, a=torch.randn(4, 4), b=torch.randn(4, 4), v=torch.randn(4))
    done, before, after = fused(program, NAMES, x)
    assert done.matches == {"gemm_epilogue": 2, "back_to_back_gemm": 1}
    torch.testing.assert_close(after, before)
