"""Layers of one input are joined, and what reads their answers gets the strides that it can take."""

from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from tests.backends.native.fusions.comparing import DTYPES, FEW, bound, fused, magnitude, within
from tests.backends.native.graphs import operators, program_of

READERS = {
    "heads": lambda y: y.view(*y.shape[:-1], -1, 2).transpose(-2, -3).exp(),
    "flat": lambda y: y.view(-1).abs(),
    "rows": lambda y: y.view(-1, y.shape[-1]).abs(),
    "output": lambda y: y,
    "view as output": lambda y: y.unsqueeze(0),
    "narrow": lambda y: y[..., :1] * 2,
    "halves": lambda y: torch.mul(*y.chunk(2, -1)),
    "several": lambda y: (y * 2).sum(-1) + y.abs().amax(-1),
    "product": lambda y: y @ y.mT,
}


def test_joined_layers_stay_within_rounding() -> None:
    copied: Counter[bool] = Counter()

    @FEW
    @given(data=st.data())
    def check(data: st.DataObject) -> None:
        draw = data.draw
        torch.manual_seed(draw(st.integers(0, 1000)))
        dtype, bias, turned = draw(st.sampled_from(DTYPES)), draw(st.booleans()), draw(st.booleans())
        lead, k = draw(st.lists(st.integers(1, 3), min_size=1, max_size=3)), draw(st.integers(1, 6))
        widths = draw(st.lists(st.sampled_from([2, 4, 6]), min_size=2, max_size=4))
        readers = [draw(st.sampled_from(sorted(READERS))) for _ in widths]
        if len(lead) == 1:  # heads and products need two dimensions
            readers = [one if one not in ("heads", "product") else "rows" for one in readers]
        x = torch.randn(*lead, k).to(dtype)
        constants = {f"w{i}": torch.randn(width, k).to(dtype) for i, width in enumerate(widths)}
        constants |= {f"b{i}": torch.randn(width).to(dtype) for i, width in enumerate(widths)}

        def layer(m: Any, x: Tensor, i: int) -> Tensor:
            weight, offset = getattr(m, f"w{i}"), getattr(m, f"b{i}") if bias else None
            return x @ weight.t() if turned and not bias else functional.linear(x, weight, offset)

        def forward(m: Any, x: Tensor) -> tuple[Tensor, ...]:
            answers = [layer(m, x, i) for i in range(len(widths))]
            taken = [READERS[reader](answer) for reader, answer in zip(readers, answers, strict=True)]
            return (*taken, *(-answer for answer in answers))

        program = program_of(forward, x, **constants)
        done, before, after = fused(program, ["qkv"], x)
        left = operators(done)
        assert done.matches == {"qkv": 1}
        assert left.count("linear.default") == 1 and left.count("slice.Tensor") >= len(widths)
        needed = sum(reader in ("output", "view as output") for reader in readers)
        assert left.count("clone.default") >= needed
        copied.update(["clone.default" in left])
        for i, (one, other) in enumerate(zip(before[len(widths) :], after[len(widths) :], strict=True)):
            terms = magnitude(x, constants[f"w{i}"], constants[f"b{i}"])
            assert within(one, other, bound(k, functional.linear(*terms), dtype))  # type: ignore[arg-type]
        near = {torch.float64: 1e-9, torch.float32: 1e-4}.get(dtype, 0.1)  # a reader's own rounding comes on top
        torch.testing.assert_close(after, before, rtol=near, atol=5 * near)

    check()
    assert copied[True] and copied[False], copied


def attention(m: Any, x: Tensor) -> Tensor:
    q, k, v = (functional.linear(x, getattr(m, name)) for name in "qkv")
    q, k, v = (one.view(2, 5, -1, 4).transpose(1, 2) for one in (q, k, v))
    answer = functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)
    return answer.transpose(1, 2).reshape(2, 5, 16)


def test_heads_that_share_keys_are_joined_without_a_copy() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 5, 16)
    program = program_of(attention, x, q=torch.randn(16, 16) / 4, k=torch.randn(8, 16) / 4, v=torch.randn(8, 16))
    done, before, after = fused(program, ["qkv"], x)
    assert done.matches == {"qkv": 1} and "clone.default" not in operators(done)
    assert [node.args[2:] for node in done.module.graph.nodes if "slice" in str(node.target)] == [
        (0, 16), (16, 24), (24, 32),
    ]  # fmt: skip
    torch.testing.assert_close(after, before)


def test_a_view_that_only_tensors_without_data_have_is_not_believed() -> None:
    def forward(m: Any, x: Tensor) -> tuple[Tensor, ...]:
        return functional.linear(x, m.a).view(-1).abs(), functional.linear(x, m.b).abs()

    torch.manual_seed(0)
    x = torch.randn(2, 2, 1, 6)
    done, before, after = fused(program_of(forward, x, a=torch.randn(4, 6), b=torch.randn(3, 6)), ["qkv"], x)
    assert done.matches == {"qkv": 1} and operators(done).count("clone.default") == 1
    torch.testing.assert_close(after, before)


@pytest.mark.parametrize(
    ("function", "joined"),
    [
        (lambda m, x: (functional.linear(x, m.a).abs(), functional.linear(x * 2, m.b).abs()), 0),
        (lambda m, x: (functional.linear(x, m.a).abs(), functional.linear(x, m.b, m.v).abs()), 0),
        (lambda m, x: (functional.linear(x, m.a).abs(), functional.linear(x, x).abs()), 0),
        (lambda m, x: functional.linear(functional.linear(x, m.a), m.b), 0),
        (lambda m, x: functional.linear(functional.linear(x, m.a), m.b) + functional.linear(x, m.b), 1),
        (lambda m, x: (x @ m.a, functional.linear(x, m.b)), 1),
        (lambda m, x: torch.addmm(m.v, x, m.a) * functional.linear(x, m.b, m.v), 1),
        (lambda m, x: tuple(functional.linear(y, w) * 2 for y in (x, x + 1) for w in (m.a, m.b)), 2),
    ],
)
def test_only_layers_of_one_input_are_joined(function: Any, joined: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 4)
    program = program_of(function, x, a=torch.randn(4, 4), b=torch.randn(4, 4), v=torch.randn(4))
    done, before, after = fused(program, ["qkv"], x)
    assert done.matches == {"qkv": joined}
    torch.testing.assert_close(after, before)
