"""Pooling becomes an operator of ours and keeps every value; what has no kernel stays."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from autotune.backends.native.fusions.pooling import POOLING
from autotune.backends.native.graph import simplify
from autotune.backends.native.passes import EXACT
from tests.backends.native.fusions.comparing import DTYPES, FEW, fused
from tests.backends.native.graphs import operators, program_of

X = torch.randn(2, 3, 8, 9)


@FEW
@given(data=st.data())
def test_pooling_keeps_every_value(data: st.DataObject) -> None:
    draw = data.draw
    torch.manual_seed(draw(st.integers(0, 1000)))
    x = torch.randn(2, draw(st.integers(1, 4)), 9, 8).to(draw(st.sampled_from(DTYPES)))
    kernel = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    stride = draw(st.sampled_from([None, 1, (2, 1)]))
    padding = [draw(st.integers(0, side // 2)) for side in kernel]
    dilation = draw(st.integers(1, 2))
    spelled = draw(st.sampled_from(["adaptive", "mean", "dropped"]))

    def forward(m: Any, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        pooled = functional.max_pool2d(x, kernel, stride, padding, dilation)
        mean = functional.adaptive_avg_pool2d(x, 1) if spelled == "adaptive" else x.mean((-1, 2), spelled == "mean")
        return pooled.relu(), mean

    done, before, after = fused(program_of(forward, x), ["pooling"], x)
    assert done.matches == {"pooling": 2}
    assert torch.equal(before[0], after[0])
    tolerance = 4 * torch.finfo(x.dtype).eps
    torch.testing.assert_close(after[1], before[1], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: functional.max_pool2d(x, 2, ceil_mode=True),
        lambda m, x: functional.max_pool2d(x[0], 2),
        lambda m, x: functional.adaptive_avg_pool2d(x, (2, 1)),
        lambda m, x: x.mean((1, 2), keepdim=True),
        lambda m, x: x.mean((2, 3), keepdim=True, dtype=torch.float64),
        lambda m, x: functional.avg_pool2d(x, 2),
    ],
)
def test_other_pooling_stays(function: Any) -> None:
    done = simplify(program_of(function, X), [*EXACT, POOLING])
    assert done.matches["pooling"] == 0 and not any("autotune_native" in one for one in operators(done))
