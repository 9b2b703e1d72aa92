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
    batch, heads, rows = (draw(st.integers(1, 4)) for _ in range(3))
    depth = draw(st.integers(2, 4))  # torch may give the answer of heads of one number any stride there
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


def test_heads_of_one_number_whose_answer_torch_strides_as_the_kernel_does_not_stay() -> None:
    def forward(m: Any, x: Tensor, keys: Tensor) -> Tensor:
        heads = x.unflatten(2, (4, 1)).transpose(1, 2)
        return functional.scaled_dot_product_attention(heads, heads, heads, keys).transpose(1, 2).flatten(2) * 2

    x, keys = torch.randn(2, 3, 4, dtype=torch.float64), torch.ones(2, 1, 1, 3, dtype=torch.bool)
    done, before, after = fused(program_of(forward, x, keys), ["attention_kernel"], x, keys)
    assert done.matches == {"attention_kernel": 0}
    torch.testing.assert_close(after, before)


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


@pytest.mark.parametrize(
    ("depth", "copies"),
    [(8, 0), (3, 3)],  # rows of 12 bytes do not begin where the kernel may load
)
def test_copies_of_queries_keys_and_values_are_dropped_if_the_kernel_reads_their_source(
    depth: int, copies: int
) -> None:
    torch.manual_seed(0)
    heads, x = 2, torch.randn(2, 5, 16)
    weights = {name: torch.randn(heads * depth, 16) for name in "qkv"}

    def forward(m: Any, x: Tensor) -> Tensor:
        layers = [functional.linear(x, m.get_buffer(name)) for name in "qkv"]
        parts = [one.view(2, 5, heads, depth).transpose(1, 2).contiguous() for one in layers]
        return functional.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2)

    done, before, after = fused(program_of(forward, x, **weights), ["qkv", "attention_kernel"], x)
    assert done.matches == {"qkv": 1, "attention_kernel": 1}
    assert sum("clone" in one for one in operators(done)) == copies
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5)


def test_a_copy_that_others_read_or_that_is_turned_stays() -> None:
    def forward(m: Any, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        copied, turned = q.transpose(1, 2).contiguous(), k.mT.contiguous()
        return functional.scaled_dot_product_attention(copied, turned, turned) * 2, copied.exp()

    q, k = torch.randn(2, 5, 3, 8), torch.randn(2, 3, 8, 5)
    done, before, after = fused(program_of(forward, q, k), ["attention_kernel"], q, k)
    # of the queries, of keys that are values too, and of the answer, whose strides the product keeps
    assert done.matches == {"attention_kernel": 1} and sum("clone" in one for one in operators(done)) == 3
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5)
