"""Attention in its usual spellings becomes aten's operator, within rounding, and what means something else stays."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.export import ExportedProgram

from autotune.backends.native.fusions.attention import ATTENTION
from autotune.backends.native.graph import Simplified, simplify
from autotune.backends.native.passes import EXACT
from tests.backends.native.graphs import operators, program_of, shared
from tests.thoroughness import examples

Function = Callable[..., Any]
LOWEST = torch.finfo(torch.float32).min
B, H, S, T, D = 2, 3, 5, 7, 4


def tensors(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(shape, generator=generator).to(dtype) for shape in shapes)


FOUR, THREE = ((B, H, S, D), (B, H, T, D), (B, H, T, D)), ((B * H, S, D), (B * H, T, D), (B * H, T, D))
HEADS_LAST = ((B, S, H, D), (B, T, H, D), (B, T, H, D))
SQUARE = ((B, H, T, D),) * 3


def run(program: ExportedProgram, *inputs: Tensor, rtol: float = 1e-5) -> tuple[Simplified, Tensor]:
    """Simplify; values, dtypes, strides and what shares memory must stay."""
    done = simplify(program, [*EXACT, ATTENTION])
    with torch.no_grad():
        before, after = program.module()(*inputs), done.module(*inputs)
    for one, other in zip(before, after, strict=True):
        assert (one.dtype, one.shape, one.stride()) == (other.dtype, other.shape, other.stride())
        torch.testing.assert_close(other, one, rtol=rtol, atol=rtol, equal_nan=True)
    assert shared([*after, *inputs]) <= shared([*before, *inputs])
    return done, after[0]


def spelled_softmax(x: Tensor, *, amax: bool = True) -> Tensor:
    powers = (x - (x.amax(-1, keepdim=True) if amax else x.max(-1, keepdim=True)[0])).exp()
    return powers / powers.sum(-1, keepdim=True)


def gpt(m: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Scores of a joint batch, masked on a view that has batch and heads apart."""
    scores = torch.bmm(q, k.mT).view(B, H, S, T) + m.batch_mask
    return torch.bmm(scores.softmax(-1).view(B * H, S, T), v)


SPELLINGS: list[tuple[str, Function, tuple[tuple[int, ...], ...]]] = [
    ("plain", lambda m, q, k, v: (q @ k.mT).softmax(-1) @ v, FOUR),
    ("scale after", lambda m, q, k, v: (q @ k.transpose(-1, -2) * 0.5).softmax(-1) @ v, FOUR),
    ("division", lambda m, q, k, v: (q @ k.permute(0, 1, 3, 2) / math.sqrt(D)).softmax(3) @ v, FOUR),
    ("division by a tensor", lambda m, q, k, v: (q @ k.mT / torch.tensor(2.0)).softmax(-1) @ v, FOUR),
    ("scale on q", lambda m, q, k, v: ((q * 0.5) @ k.mT).softmax(-1) @ v, FOUR),
    ("scale on k", lambda m, q, k, v: (q @ (k / 2).mT).softmax(-1) @ v, FOUR),
    ("scale on both", lambda m, q, k, v: ((q * 0.7) @ (k.mT * 0.7)).softmax(-1) @ v, FOUR),
    ("additive mask", lambda m, q, k, v: ((q @ k.mT) * 0.5 + m.bias).softmax(-1) @ v, FOUR),
    ("scaled mask", lambda m, q, k, v: ((m.bias + q @ k.mT) * 0.5).softmax(-1) @ v, FOUR),
    ("two masks", lambda m, q, k, v: (q @ k.mT + m.bias + m.batch_mask).softmax(-1) @ v, FOUR),
    ("masked fill", lambda m, q, k, v: (q @ k.mT).masked_fill(m.hidden, -math.inf).softmax(-1) @ v, FOUR),
    ("where", lambda m, q, k, v: torch.where(m.hidden, LOWEST, q @ k.mT).softmax(-1) @ v, FOUR),
    ("where not", lambda m, q, k, v: torch.where(~m.hidden, q @ k.mT, m.low).softmax(-1) @ v, FOUR),
    ("spelled softmax", lambda m, q, k, v: spelled_softmax(q @ k.mT) @ v, FOUR),
    ("spelled softmax with max", lambda m, q, k, v: spelled_softmax(q @ k.mT, amax=False) @ v, FOUR),
    ("wider softmax", lambda m, q, k, v: (q @ k.mT).double().softmax(-1).float() @ v, FOUR),
    ("softmax to dtype", lambda m, q, k, v: (q @ k.mT).softmax(-1, dtype=torch.float64).float() @ v, FOUR),
    ("three dimensions", lambda m, q, k, v: torch.bmm(torch.bmm(q, k.mT).softmax(-1), v), THREE),
    ("baddbmm", lambda m, q, k, v: torch.baddbmm(m.flat, q, k.mT, beta=0.5, alpha=0.3).softmax(-1) @ v, THREE),
    ("unused baddbmm", lambda m, q, k, v: torch.baddbmm(m.flat, q, k.mT, beta=0, alpha=0.3).softmax(-1) @ v, THREE),
    ("views", gpt, THREE),
    ("heads last", lambda m, q, k, v: torch.einsum(
        "bhqk,bkhd->bqhd", torch.einsum("bqhd,bkhd->bhqk", q, k).softmax(-1), v), HEADS_LAST),
    ("einsum", lambda m, q, k, v: torch.einsum(
        "bij,bjd->bid", (torch.einsum("bid,bjd->bij", q, k) * 0.1).softmax(-1), v), THREE),
    ("permuted heads", lambda m, q, k, v: (
        (q.transpose(1, 2) @ k.permute(0, 2, 3, 1)).softmax(-1) @ v.transpose(1, 2)
    ).transpose(1, 2).reshape(B, S, H * D), HEADS_LAST),
    ("dropout", lambda m, q, k, v: torch.dropout((q @ k.mT).softmax(-1), 0.5, False) @ v, FOUR),
    ("other users", lambda m, q, k, v: ((o := (q @ k.mT).softmax(-1) @ v).transpose(1, 2).contiguous(), o), FOUR),
]  # fmt: skip


def constants() -> dict[str, Tensor]:
    bias, batch_mask, flat = tensors((H, S, T), (B, 1, 1, T), (B * H, 1, T))
    hidden = torch.zeros(B, 1, S, T, dtype=torch.bool)
    hidden[0, ..., 4:] = True
    return {"bias": bias, "batch_mask": batch_mask, "flat": flat, "hidden": hidden, "low": torch.tensor(LOWEST)}


@pytest.mark.parametrize(("function", "shapes"), [one[1:] for one in SPELLINGS], ids=[one[0] for one in SPELLINGS])
def test_every_spelling_becomes_the_operator(function: Function, shapes: tuple[tuple[int, ...], ...]) -> None:
    inputs = tensors(*shapes)
    done, _ = run(program_of(function, *inputs, **constants()), *inputs)
    assert done.matches["attention"] == 1
    left = " ".join(operators(done))
    assert "scaled_dot_product_attention" in left
    assert not any(one in left for one in ("softmax", "matmul", "bmm", "einsum", "exp.", "mul."))


@pytest.mark.parametrize(
    "function",
    [
        lambda m, q, k, v: (p := (q @ k.mT).softmax(-1), p @ v),
        lambda m, q, k, v: (s := q @ k.mT, s.softmax(-1) @ v),
        lambda m, q, k, v: (q @ k.mT).softmax(-2) @ v,
        lambda m, q, k, v: (q @ k.mT * -0.5).softmax(-1) @ v,
        lambda m, q, k, v: (q @ k.mT * q[..., :1]).softmax(-1) @ v,
        lambda m, q, k, v: (q @ k.mT).relu().softmax(-1) @ v,
        lambda m, q, k, v: (q @ k.mT).sigmoid() @ v,
        lambda m, q, k, v: (q @ k.mT).softmax(-1).masked_fill(m.hidden, 0) @ v,
        lambda m, q, k, v: (q @ k.mT).masked_fill(m.hidden, -5.0).softmax(-1) @ v,
        lambda m, q, k, v: (q @ k.mT).masked_fill(m.everything, -math.inf).softmax(-1) @ v,
        lambda m, q, k, v: (q @ k.mT).masked_fill(m.everything, LOWEST).softmax(-1) @ v,
        lambda m, q, k, v: (q[:, :1] @ k.mT).softmax(-1) @ v,
        lambda m, q, k, v: (q.double() @ k.double().mT).softmax(-1) @ v.double(),
        lambda m, q, k, v: ((q @ k.mT) - (q @ k.mT).amin(-1, keepdim=True)).exp() @ v,
    ],
)  # fmt: skip
def test_what_means_something_else_stays(function: Function) -> None:
    inputs = tensors(*FOUR)
    everything = torch.zeros(B, 1, S, T, dtype=torch.bool)
    everything[0, 0, 2] = True
    program = program_of(function, *inputs, **constants(), everything=everything)
    done, _ = run(program, *inputs)
    wide = "_to_copy.default" in operators(done)
    assert done.matches["attention"] == int(wide)  # in float64 throughout it is attention, and fused as such


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("fill", [-math.inf, "lowest"])
@pytest.mark.parametrize("kind", ["fill", "add", "where", "minus"])
def test_rows_of_which_everything_is_masked_keep_their_meaning(dtype: torch.dtype, fill: Any, kind: str) -> None:
    q, k, v = tensors(*FOUR, dtype=dtype)
    number = torch.finfo(dtype).min if fill == "lowest" else fill
    hidden = torch.zeros(B, 1, 1, T, dtype=torch.bool)
    hidden[0], hidden[1, ..., 3:] = True, True

    def function(m: Any, q: Tensor, k: Tensor, v: Tensor, hidden: Tensor) -> Tensor:
        scores = q @ k.mT
        if kind == "fill":
            scores = scores.masked_fill(hidden, number)
        elif kind == "where":
            scores = torch.where(~hidden, scores, number)
        elif kind == "add":
            scores = scores + torch.zeros((), dtype=dtype).masked_fill(hidden, number)
        else:
            scores = scores + (1.0 - (~hidden).to(dtype)) * number
        return scores.softmax(-1) @ v

    loose = 8 * torch.finfo(dtype).eps
    done, answer = run(program_of(function, q, k, v, hidden), q, k, v, hidden, rtol=loose)
    if fill == "lowest":
        torch.testing.assert_close(answer[0], v[0].mean(-2, keepdim=True).expand(H, S, D), rtol=loose, atol=loose)
        assert done.matches["attention"] == (dtype is not torch.float16)
    elif kind != "minus":  # 0 times infinity is a matter of its own
        assert bool(answer[0].isnan().all()) and bool(answer[1].isfinite().all())
        assert done.matches["attention"] == 1


def test_masks_of_which_nothing_is_known_may_be_infinite() -> None:
    inputs = (*tensors(*FOUR), torch.tensor([0.0, -math.inf]).repeat_interleave(S)[None].reshape(2, 1, S, 1))
    done, answer = run(program_of(lambda m, q, k, v, b: (q @ k.mT + b).softmax(-1) @ v, *inputs), *inputs)
    assert done.matches["attention"] == 1 and bool(answer[1].isnan().all())
    half = tuple(one.half() for one in inputs)
    done, _ = run(program_of(lambda m, q, k, v, b: (q @ k.mT + b).softmax(-1) @ v, *half), *half, rtol=1e-2)
    assert done.matches["attention"] == 0


def mask_arguments(done: Simplified) -> list[tuple[bool, bool]]:
    """For each attention, whether it has a mask and whether it is causal."""
    found = [n for n in done.module.graph.nodes if "scaled_dot_product_attention" in str(n.target)]
    return [(len(n.args) > 3 and n.args[3] is not None, bool(n.kwargs.get("is_causal", n.args[5:]) in (True, (True,))))
            for n in found]  # fmt: skip


TRIANGLE = torch.ones(T, T, dtype=torch.bool).tril()


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        (torch.zeros(1, 1, T, T), (False, False)),
        (torch.zeros(T, T).masked_fill(~TRIANGLE, -math.inf), (False, True)),
        (torch.zeros(B, 1, T, T).masked_fill(~TRIANGLE, LOWEST), (False, True)),
        (torch.zeros(T, T).masked_fill(~TRIANGLE.T, LOWEST), (True, False)),
        (torch.zeros(T, T).masked_fill(~TRIANGLE.tril(-1) & (torch.arange(T) > 0), LOWEST), (True, False)),
        (torch.zeros(T, T).masked_fill(~TRIANGLE, -1.0), (True, False)),
    ],
)
def test_constant_masks_are_known(mask: Tensor, expected: tuple[bool, bool]) -> None:
    inputs = tensors(*SQUARE)
    done, _ = run(program_of(lambda m, q, k, v: (q @ k.mT + m.mask).softmax(-1) @ v, *inputs, mask=mask), *inputs)
    assert done.matches["attention"] == 1 and mask_arguments(done) == [expected]


def test_a_mask_that_was_too_large_to_fold_is_worked_out() -> None:
    length = 600  # a float32 table of it is more than a mebibyte
    inputs = tensors(*[(1, 1, length, 2)] * 3)

    def function(m: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        later = torch.arange(length)[None, :] > torch.arange(length)[:, None]
        return (q @ k.mT + torch.zeros(length, length).masked_fill(later, LOWEST)).softmax(-1) @ v

    done, _ = run(program_of(function, *inputs), *inputs)
    assert mask_arguments(done) == [(False, True)]


@pytest.mark.parametrize(
    ("mask", "matches", "expected"),
    [
        (torch.ones(T, T, dtype=torch.bool), 1, (False, False)),
        (torch.zeros(1, 1, 1, T), 1, (False, False)),
        (TRIANGLE, 1, (False, True)),
        (TRIANGLE.T.contiguous(), 0, (True, False)),
        (torch.ones(T, T), 0, (True, False)),
    ],
)
def test_masks_of_the_operator_itself(mask: Tensor, matches: int, expected: tuple[bool, bool]) -> None:
    attend = torch.nn.functional.scaled_dot_product_attention
    inputs = tensors(*SQUARE)
    program = program_of(lambda m, q, k, v: attend(q, k, v, m.mask, scale=0.3), *inputs, mask=mask)
    done, _ = run(program, *inputs)
    assert done.matches["attention"] == matches and mask_arguments(done) == [expected]
    wide = program_of(lambda m, q, k, v: attend(q[:, :, :3], k, v, m.mask), *inputs, mask=TRIANGLE[:3])
    assert run(wide, *inputs)[0].matches["attention"] == 0


def bound(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """How far two ways of rounding may lie apart.

    A score errs by (d + 4) u of the sum of its terms' sizes, scales and the mask's sum included; a weight by as much,
    as the exponent of its own error and of its row's largest, and by (t + 8) u for exponential, sum and quotient; the
    product by t u more. Weights may underflow to half of the smallest number each.
    """
    limits = torch.finfo(dtype)
    u, t = limits.eps / 2, k.shape[-2]
    q, k, v, bias = (one.double() for one in (q, k, v, bias))
    sizes = (q.abs() @ k.abs().mT * scale + bias.abs().clamp(max=100)).amax(-1, keepdim=True)
    weights = (q @ k.mT * scale + bias).softmax(-1)
    error = torch.expm1(2 * (q.shape[-1] + 4) * u * sizes + (2 * t + 8) * u)
    return 2 * (error * (weights @ v.abs()) + t * limits.smallest_normal * limits.eps * v.abs().amax(-2, keepdim=True))


@settings(max_examples=examples(30), deadline=None, derandomize=True, phases=[Phase.explicit, Phase.generate])
@given(data=st.data())
def test_random_attention_stays_within_rounding(data: st.DataObject) -> None:
    draw = data.draw
    torch.manual_seed(draw(st.integers(0, 1000)))
    dtype = draw(st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16]))
    b, h, s, t, d, e = (draw(st.integers(1, 5)) for _ in range(6))
    scale, place = draw(st.sampled_from([0.25, 0.5, 1.0])), draw(st.sampled_from(["q", "k", "after", "div", "both"]))
    joined, wide, layout = draw(st.booleans()), draw(st.booleans()), draw(st.sampled_from(["heads", "length", "keys"]))
    kind = draw(st.sampled_from(["none", "bias", "fill", "known"]))
    q, k, v = (torch.randn(b, h, *shape).to(dtype) for shape in ((s, d), (t, d), (t, e)))
    if layout == "length":
        q, k, v = (one.transpose(1, 2).contiguous().transpose(1, 2) for one in (q, k, v))
    elif layout == "keys":
        k = k.mT.contiguous().mT
    mask_shape = [size if draw(st.booleans()) else 1 for size in (b, h, s, t)]
    hidden = torch.rand(mask_shape) < 0.4
    hidden[..., 0] = False
    bias = torch.randn(mask_shape).to(dtype) if kind == "bias" else torch.zeros(mask_shape, dtype=dtype)
    if kind in ("fill", "known"):
        bias = bias.masked_fill(hidden, -math.inf)

    def function(m: Any, q: Tensor, k: Tensor, v: Tensor, hidden: Tensor) -> Tensor:
        if joined:
            q, k, v = (one.reshape(b * h, *one.shape[2:]) for one in (q, k, v))
        q = q * {"q": scale, "both": scale**0.5}.get(place, 1.0)
        k = k * {"k": scale, "both": scale**0.5}.get(place, 1.0)
        scores = q @ k.mT
        scores = scores * scale if place == "after" else scores / (1 / scale) if place == "div" else scores
        if kind != "none":
            scores = scores.view(b, h, s, t)
            scores = scores.masked_fill(hidden, -math.inf) if kind == "fill" else scores + m.bias
        scores = scores.float().softmax(-1).to(dtype) if wide else scores.softmax(-1)
        return scores.view(*v.shape[:-2], s, t) @ v

    program = program_of(function, q, k, v, hidden, bias=bias)
    done = simplify(program, [*EXACT, ATTENTION])
    assert done.matches["attention"] == 1
    with torch.no_grad():
        before, after = program.module()(q, k, v, hidden)[0], done.module(q, k, v, hidden)[0]
    assert (before.dtype, before.shape, before.stride()) == (after.dtype, after.shape, after.stride())
    rounded = torch.float32 if wide and dtype is torch.float64 else dtype
    far = (before.double() - after.double()).abs()
    assert bool((far.reshape(b, h, s, e) <= bound(q, k, v, bias, scale, rounded)).all())
