"""Fused attention becomes an operator of ours within rounding; what it cannot compute stays torch's."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from autotune.backends.native.fusions.attention_kernel import ATTENTION_KERNEL
from autotune.backends.native.graph import simplify
from autotune.backends.native.passes import EXACT
from tests.backends.native.fusions.comparing import DTYPES, FEW, fused
from tests.backends.native.graphs import operators, program_of

Q = torch.randn(2, 3, 5, 8)


@FEW
@given(data=st.data())
def test_attention_stays_within_rounding(data: st.DataObject) -> None:
    draw = data.draw
    torch.manual_seed(draw(st.integers(0, 1000)))
    dtype = draw(st.sampled_from(DTYPES))
    batch, heads, rows, depth = (draw(st.integers(1, 4)) for _ in range(4))
    kind = draw(st.sampled_from(["none", "causal", "keys", "added"]))
    columns = rows if kind == "causal" else draw(st.integers(1, 5))
    joined = draw(st.booleans())  # parts of one layer's answer, or tensors of their own
    scale = draw(st.sampled_from([None, 0.3]))
    q = torch.randn(batch, rows, heads * depth).to(dtype)
    k, v = torch.randn(2, batch, columns, heads * depth).to(dtype)
    mask = {
        "keys": torch.rand(batch, 1, 1, columns) > 0.3,
        "added": torch.randn(1, heads, rows, columns).to(dtype),
    }.get(kind)

    def forward(m: Any, *given: Tensor) -> Tensor:
        q, k, v, *masks = given
        parts = [one.unflatten(2, (heads, depth)).transpose(1, 2) for one in (q, k, v)]
        parts = parts if joined else [one.contiguous() for one in parts]
        answer = functional.scaled_dot_product_attention(
            *parts, masks[0] if masks else None, 0.0, kind == "causal", scale=scale
        )
        return answer.transpose(1, 2).flatten(2) * 2

    inputs = (q, k, v) if mask is None else (q, k, v, mask)
    done, (before,), (after,) = fused(program_of(forward, *inputs), ["attention_kernel"], *inputs)
    assert done.matches == {"attention_kernel": 1}
    tolerance = 8 * torch.finfo(dtype).eps
    torch.testing.assert_close(after, before, rtol=tolerance, atol=tolerance, equal_nan=True)


def test_a_mask_is_read_as_short_as_it_is() -> None:
    shown = torch.ones(1, 1, 5, 5, dtype=torch.bool)

    def forward(m: Any, q: Tensor, keys: Tensor) -> Tensor:
        mask = m.shown & keys[:, None, None, :].expand(2, 1, 5, 5)
        return functional.scaled_dot_product_attention(q, q, q, mask).transpose(1, 2).flatten(2)

    keys = torch.tensor([[True, True, False, True, False], [True, False, False, False, True]])
    done, before, after = fused(program_of(forward, Q, keys, shown=shown), ["attention_kernel"], Q, keys)
    (node,) = [node for node in done.module.graph.nodes if "attention" in str(node.target)]
    assert node.args[3].meta["val"].shape == (2, 1, 1, 5)
    torch.testing.assert_close(after, before)


@pytest.mark.parametrize(
    "function",
    [
        lambda m, q: functional.scaled_dot_product_attention(q[0], q[0], q[0]),
        lambda m, q: functional.scaled_dot_product_attention(q, q[:, :1], q[:, :1], enable_gqa=True),
        lambda m, q: functional.scaled_dot_product_attention(q, q, q[..., :4]),
    ],
)
def test_other_attention_stays(function: Any) -> None:
    done = simplify(program_of(function, Q), [*EXACT, ATTENTION_KERNEL])
    assert done.matches["attention_kernel"] == 0
    assert not any("autotune_native" in one for one in operators(done))
