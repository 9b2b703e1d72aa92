"""Products take bias, residual and activation along within rounding, and nothing else."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from autotune.backends.native.fusions.gemm_epilogue import GEMM_EPILOGUE
from autotune.backends.native.graph import simplify
from autotune.backends.native.operators import ACTIVATIONS
from autotune.backends.native.passes import EXACT
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
from tests.backends.native.graphs import operators, program_of
from tests.thoroughness import examples

PRODUCTS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "linear": lambda m, x: functional.linear(x, m.weight),
    "linear with bias": lambda m, x: functional.linear(x, m.weight, m.bias),
    "matmul of a transpose": lambda m, x: x @ m.weight.t(),
    "matmul of a permutation": lambda m, x: x @ m.weight.permute(1, 0),
    "matmul": lambda m, x: x @ m.turned,
    "mm": lambda m, x: torch.mm(x.reshape(-1, x.shape[-1]), m.turned),
    "addmm": lambda m, x: torch.addmm(m.bias, x.reshape(-1, x.shape[-1]), m.turned),
    "addmm of a transpose": lambda m, x: torch.addmm(m.bias, x.reshape(-1, x.shape[-1]), m.weight.t()),
}


@pytest.mark.parametrize("activation", sorted(SPELLINGS))
def test_products_with_what_follows_stay_within_rounding(activation: str) -> None:
    whole = 0

    @settings(FEW, max_examples=examples(20))
    @given(data=st.data())
    def check(data: st.DataObject) -> None:
        nonlocal whole
        draw = data.draw
        torch.manual_seed(draw(st.integers(0, 1000)))
        kind, dtype = draw(st.sampled_from(sorted(PRODUCTS))), draw(st.sampled_from(DTYPES))
        lead = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
        k, n = draw(st.integers(1, 9)), draw(st.integers(1, 9))
        spell = draw(st.sampled_from(SPELLINGS[activation]))
        add_bias, add_residual, flip = draw(st.booleans()), draw(st.booleans()), draw(st.booleans())
        views, tapped = draw(st.sets(st.sampled_from("brae"), max_size=2)), draw(st.sampled_from(["", "", *"bra"]))
        x, weight = torch.randn(*lead, k).to(dtype), torch.randn(n, k).to(dtype)
        bias, residual = torch.randn(n).to(dtype), torch.randn(*lead, n).to(dtype)
        biased = kind in ("linear with bias", "addmm", "addmm of a transpose")

        def viewed(value: Tensor, place: str) -> Tensor:
            return value.reshape(*lead, n) if place not in views else value.reshape(1, -1, n)

        def forward(m: Any, x: Tensor, added: Tensor) -> tuple[Tensor, ...]:
            value, taps = PRODUCTS[kind](m, x), []
            for place in "bra":
                value = viewed(value, place)
                taps += [value] if place == tapped else []
                if place == "b" and add_bias:
                    value = m.second + value if flip else value + m.second
                if place == "r" and add_residual:
                    other = viewed(added, place)
                    value = other + value if flip else value + other
                if place == "a":
                    value = spell(value)
            return (viewed(value, "e"), *(tap * 2 for tap in taps))

        constants = {"weight": weight, "bias": bias, "second": bias.flip(0).clone(), "turned": weight.t().clone()}
        program = program_of(forward, x, residual, **constants)
        done, before, after = fused(program, ["gemm_epilogue"], x, residual)
        (gemm,) = nodes(done, "gemm")
        assert done.matches == {"gemm_epilogue": 1}
        if not tapped and not (biased and add_bias):  # a second bias stays outside, with all that follows it
            assert [argument is not None for argument in gemm.args[2:4]] == [biased or add_bias, add_residual]
            assert gemm.args[4] == activation
            left = [one for one in operators(done) if not one.startswith(("view", "autotune_native"))]
            assert left == []
            whole += 1
        if tapped == "a":
            assert gemm.args[4] == "none"
        terms = magnitude(x, weight, bias, residual)
        size = functional.linear(terms[0], terms[1]) + 2 * terms[2] + terms[3]  # type: ignore[arg-type,operator]
        for one, other in zip(before, after, strict=True):
            assert within(one, other, 2 * bound(k + 1, size + (activation in AROUND_ONE), dtype))

    check()
    assert whole  # else nothing was seen to take all of it


LINEAR = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("follow", "expected"),
    [
        (lambda m, y, r: y + r[:1], (False, False, "none")),
        (lambda m, y, r: y + m.row, (False, False, "none")),
        (lambda m, y, r: torch.add(y, r, alpha=2), (False, False, "none")),
        (lambda m, y, r: y + r[0], (False, False, "none")),
        (lambda m, y, r: y + y, (False, False, "none")),
        (lambda m, y, r: y + r.double(), (False, False, "none")),
        (lambda m, y, r: y * r.sum(), (False, False, "none")),
        (lambda m, y, r: torch.clamp(y, 0, 6), (False, False, "relu6")),
        (lambda m, y, r: torch.clamp(y, 0, 5), (False, False, "none")),
        (lambda m, y, r: functional.hardswish(y), (False, False, "hardswish")),
        (lambda m, y, r: y * functional.relu6(y + 2.9) / 6, (False, False, "none")),
        (lambda m, y, r: torch.sigmoid(y) + 1e-5, (False, False, "sigmoid")),
        (lambda m, y, r: torch.sigmoid(1.00001 * y), (False, False, "none")),
        (lambda m, y, r: functional.leaky_relu(y), (False, False, "none")),
        (lambda m, y, r: y * torch.sigmoid(1.702 * y), (False, False, "none")),
        (lambda m, y, r: 0.5 * y * (1 + torch.tanh(0.8 * (y + 0.0447 * y**3))), (False, False, "none")),
        (lambda m, y, r: y.t() + r, (False, False, "none")),
        (lambda m, y, r: y.reshape(2, 8) + r.reshape(2, 8), (False, True, "none")),
        (lambda m, y, r: y.sigmoid() * r, (False, False, "sigmoid")),
        (lambda m, y, r: (y.relu(), y * 2), (False, False, "none")),
        (lambda m, y, r: (y + m.vector).relu() + r, (True, False, "relu")),
        (lambda m, y, r: r.t() + (y + m.vector), (True, False, "none")),  # the sum is in the order of the residual
        (lambda m, y, r: r.t() + y.relu(), (False, False, "relu")),
        (lambda m, y, r: (y + m.vector)[None] + r.t()[None], (True, False, "none")),
        (lambda m, y, r: (y + r) + m.vector, (False, True, "none")),
        (lambda m, y, r: torch.relu(torch.relu(y + r)), (False, True, "relu")),
        (lambda m, y, r: y + m.vector + m.vector, (True, False, "none")),
    ],
)
def test_an_epilogue_ends_where_it_must(follow: Any, expected: tuple[bool, bool, str]) -> None:
    torch.manual_seed(0)
    x, r = torch.randn(4, 4), torch.randn(4, 4)
    constants = {"weight": LINEAR, "row": torch.randn(1, 4), "vector": torch.randn(4)}
    program = program_of(lambda m, x, r: follow(m, functional.linear(x, m.weight), r), x, r, **constants)
    done, before, after = fused(program, ["gemm_epilogue"], x, r)
    ((_, _, bias, residual, activation),) = (node.args for node in nodes(done, "gemm"))
    assert (bias is not None, residual is not None, activation) == expected
    torch.testing.assert_close(after, before)


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: functional.linear(x, x),
        lambda m, x: functional.linear(x, m.weight, x[0]),
        lambda m, x: m.weight @ x,
        lambda m, x: x.long() @ m.weight.long(),
        lambda m, x: torch.addmm(m.vector, x, m.weight, beta=2),
        lambda m, x: torch.addmm(m.vector, x, m.weight, alpha=0.5),
        lambda m, x: torch.addmm(x[:1], x, m.weight),
        lambda m, x: torch.bmm(x[None], m.weight[None]),
        lambda m, x: torch.complex(x, x) @ torch.complex(m.weight, m.weight),
        lambda m, x: x[:0] @ m.weight,
        lambda m, x: x @ m.weight[0],
    ],
)
def test_other_products_stay(function: Any) -> None:
    program = program_of(function, torch.randn(4, 4), weight=LINEAR, vector=torch.randn(4))
    assert simplify(program, [*EXACT, GEMM_EPILOGUE]).matches["gemm_epilogue"] == 0


def test_of_two_products_that_are_added_one_takes_the_other() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 4)
    program = program_of(lambda m, x: (functional.linear(x, m.weight) + x @ m.weight).relu(), x, weight=LINEAR)
    done, before, after = fused(program, ["gemm_epilogue"], x)
    found = [(node.args[3] is not None, node.args[4]) for node in nodes(done, "gemm")]
    assert found == [(False, "none"), (True, "relu")]
    torch.testing.assert_close(after, before)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_spelling_is_known_in_every_dtype(dtype: torch.dtype) -> None:
    assert set(SPELLINGS) == set(ACTIVATIONS)
    torch.manual_seed(0)
    x = torch.randn(3, 4).to(dtype)
    for name, spellings in SPELLINGS.items():
        for spell in spellings:
            program = program_of(lambda m, x, spell=spell: spell(x @ m.weight), x, weight=LINEAR.to(dtype))
            (gemm,) = nodes(fused(program, ["gemm_epilogue"], x)[0], "gemm")
            assert gemm.args[4] == name


def test_an_activation_in_a_wider_type_is_taken_along() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 4).half()
    program = program_of(lambda m, x: functional.gelu((x @ m.weight).float()).half(), x, weight=LINEAR.half())
    done, before, after = fused(program, ["gemm_epilogue"], x)
    assert [node.args[4] for node in nodes(done, "gemm")] == ["gelu"]
    torch.testing.assert_close(after, before)
