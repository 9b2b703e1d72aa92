"""Trees of elementwise operators compute the same within rounding, and what is no such tree stays."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from autotune.backends.native.fusions.pointwise import INPUTS, POINTWISE
from autotune.backends.native.graph import simplify
from autotune.backends.native.passes import EXACT
from autotune.backends.native.pointwise import parse
from tests.backends.native.graphs import program_of, shared

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
Function = Callable[..., Any]


def fused(function: Function, *inputs: Tensor, **constants: Tensor) -> list[str]:
    """The programs' steps, after checking values, dtypes, strides and memory of every answer."""
    program = program_of(function, *inputs, **constants)
    done = simplify(program, [*EXACT, POINTWISE])
    with torch.no_grad():
        before, after = program.module()(*inputs), done.module(*inputs)
    for one, other in zip(before, after, strict=True):
        assert (one.dtype, one.shape, one.stride()) == (other.dtype, other.shape, other.stride())
        if not one.is_floating_point():
            assert torch.equal(one, other)
            continue
        eps = max(torch.finfo(dtype).eps for dtype in {one.dtype, *(t.dtype for t in inputs)} & {*FLOATS})
        torch.testing.assert_close(other, one, rtol=32 * eps, atol=32 * eps)
    assert shared([*after, *inputs]) <= shared([*before, *inputs])
    texts = [str(node.args[1]) for node in done.module.graph.nodes if "pointwise" in str(node.target)]
    assert done.matches["pointwise"] == len(texts)
    return ["+".join(step.name for step in parse(text).steps) for text in texts]


X = torch.linspace(-3, 3, 120).reshape(2, 3, 4, 5)
CHANNELS_LAST = X.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("function", "inputs", "steps"),
    [
        (lambda m, x: (x * torch.sigmoid(x) + 1).relu(), (X,), ["sigmoid+mul+add+relu"]),
        (lambda m, x: (x * torch.sigmoid(x) + 1).relu(), (CHANNELS_LAST,), ["sigmoid+mul+add+relu"]),
        (lambda m, x: (x.transpose(1, 2) * 2).tanh(), (X,), ["mul+tanh"]),
        (lambda m, x, y: (x.float() * y).half().relu(), (X.half(), X[0, 0, 0]), ["mul+cast+relu"]),
        (lambda m, x, y: CHANNELS_LAST.shape and (x + y).exp(), (CHANNELS_LAST, X[0, 0, 0]), ["add+exp"]),
        (lambda m, x: functional.silu(x).float(), (X.half(),), ["silu"]),
        (lambda m, x: (2 - x).abs().sqrt(), (X,), ["sub+abs+sqrt"]),
        (lambda m, x: functional.hardtanh(x).square(), (X,), ["clamp+pow"]),
        (lambda m, x: functional.gelu(x.clamp(min=-1), approximate="tanh"), (X,), ["clamp+gelu_tanh"]),
        (lambda m, x: (x * m.point).neg(), (X,), ["mul+neg"]),
        (lambda m, x: ((x.neg() + 1).sum(1), (x.abs() * 2).sum(1)), (X,), ["neg+add", "abs+mul"]),
        (lambda m, x, y: (x + y.exp().neg()).relu(), (X, X[0, 0, 0]), ["exp+neg", "add+relu"]),
        (lambda m, x: x.relu(), (X,), ["relu"]),
        (lambda m, x: functional.relu6(x), (X.half(),), ["clamp"]),
        (lambda m, x: functional.leaky_relu(x, 0.1) + 1, (X,), ["leaky_relu+add"]),
        (lambda m, x: functional.hardsigmoid(x) * functional.hardswish(x), (X,), ["hardsigmoid+hardswish+mul"]),
        (lambda m, x, y: x * y, (CHANNELS_LAST, X[:, :, :1, :1].contiguous()), ["mul"]),
        (lambda m, x, y: x * y.sigmoid(), (CHANNELS_LAST, X[:, :, :1, :1].contiguous()), ["mul", "sigmoid"]),
        (lambda m, x, y: x * y.half(), (X.half(), X[0, 0, 0]), ["cast+mul"]),
        (lambda m, x, y: x * (y.half() + 1), (X.half(), X[0, 0, 0]), ["cast+add", "mul"]),
        (lambda m, x: x.half(), (X,), ["cast"]),
        (lambda m, x: x.transpose(1, 2).float(), (X.half(),), ["cast"]),
        (lambda m, x: x.transpose(1, 2).contiguous(), (X,), ["cast"]),
        (lambda m, x: x.contiguous(memory_format=torch.channels_last), (X.half(),), ["cast"]),
        (lambda m, x, y: x.transpose(2, 3).contiguous() + y, (X, X.transpose(2, 3).contiguous()), ["add"]),
        (lambda m, x: x.clone(), (X,), ["cast"]),
        (lambda m, x: (x.relu() + 1, x.relu().sin()), (X,), ["add", "relu"]),
        (lambda m, x: x.relu().sin().relu(), (X,), ["relu", "relu"]),
    ],
)
def test_trees_become_one_operator(function: Function, inputs: tuple[Tensor, ...], steps: list[str]) -> None:
    found = fused(function, *inputs, point=torch.tensor(0.5, dtype=torch.float64))
    assert sorted(found) == sorted(steps)


@pytest.mark.parametrize(
    ("function", "inputs"),
    [
        (lambda m, x: x.relu(), (X.double(),)),
        (lambda m, x: x.float(), (X.double(),)),
        (lambda m, x: x.double(), (X,)),
        (lambda m, x: x.transpose(1, 2).contiguous(), (X.double(),)),
        (lambda m, x: x.transpose(1, 2).contiguous(), (torch.arange(6).reshape(1, 2, 3),)),
        (lambda m, x: (x + 1).abs(), (torch.arange(5),)),
        (lambda m, x: (x > 0).double().neg(), (X,)),
        (lambda m, x: torch.div(x.sin(), 2, rounding_mode="floor").neg(), (X.double(),)),
        (lambda m, x: torch.add(x.sin(), x, alpha=2).neg(), (X.double(),)),
        (lambda m, x: (x + float("inf")).neg(), (X.double(),)),
        (lambda m, x, y: (x.sin() * y).sin(), (X, torch.tensor(0.1, dtype=torch.float64))),
        (lambda m, x: (x + 1).expand(2, 5).transpose(0, 1).sin(), (torch.ones(5).double(),)),
    ],
)
def test_what_is_no_tree_stays(function: Function, inputs: tuple[Tensor, ...]) -> None:
    assert fused(function, *inputs) == []


def test_a_tree_reads_so_many_inputs_and_no_more() -> None:
    def sums(module: Any, *inputs: Tensor) -> Tensor:
        total = inputs[0]
        for one in inputs[1:]:
            total = total + one
        return total

    given = [torch.full((3,), float(one)) for one in range(INPUTS + 1)]
    assert fused(sums, *given[:-1]) == ["+".join(["add"] * (INPUTS - 1))]
    assert sorted(fused(sums, *given)) == ["add", "+".join(["add"] * (INPUTS - 1))]


STEPS: dict[str, tuple[Function, Function]] = {
    # an operator, and its answer's error from those of its arguments
    "add": (lambda x, y: x + y, lambda x, y, e, f: e + f),
    "sub": (lambda x, y: x - y, lambda x, y, e, f: e + f),
    "mul": (lambda x, y: x * y, lambda x, y, e, f: e * y.abs() + f * x.abs() + e * f),
    "maximum": (lambda x, y: torch.maximum(x, y), lambda x, y, e, f: torch.maximum(e, f)),
    "minimum": (lambda x, y: torch.minimum(x, y), lambda x, y, e, f: torch.maximum(e, f)),
    "scaled": (lambda x, y: x * -1.5, lambda x, y, e, f: 1.5 * e),
    "turned": (lambda x, y: 1 - x, lambda x, y, e, f: e),
    "abs": (lambda x, y: x.abs(), lambda x, y, e, f: e),
    "relu": (lambda x, y: x.relu(), lambda x, y, e, f: e),
    "clamp": (lambda x, y: x.clamp(-1, 0.5), lambda x, y, e, f: e),
    "tanh": (lambda x, y: x.tanh(), lambda x, y, e, f: e),
    "sigmoid": (lambda x, y: x.sigmoid(), lambda x, y, e, f: e),
    "silu": (lambda x, y: functional.silu(x), lambda x, y, e, f: 1.1 * e),
    "gelu": (lambda x, y: functional.gelu(x), lambda x, y, e, f: 1.13 * e),
    "erf": (lambda x, y: x.erf(), lambda x, y, e, f: 1.13 * e),
    "half": (lambda x, y: x.half(), lambda x, y, e, f: e),
    "float": (lambda x, y: x.float(), lambda x, y, e, f: e),
    "double": (lambda x, y: x.double(), lambda x, y, e, f: e),
}


def test_random_trees_stay_within_rounding() -> None:
    found = []

    @settings(
        max_examples=30,
        deadline=None,
        derandomize=True,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )
    @given(data=st.data())
    def stay_within_rounding(data: st.DataObject) -> None:
        found.append(one_random_tree(data))

    stay_within_rounding()
    assert sum(found) > len(found) / 3, "graphs in which there is nothing to fuse prove nothing"


def one_random_tree(data: st.DataObject) -> int:
    """Check a random tree and return how many were fused.

    The bound passes on the arguments' errors times an operator's slope and adds a rounding by the coarsest type, four
    of its units because torch's functions are good to a few; two ways of computing are compared, hence twice.
    """
    torch.manual_seed(data.draw(st.integers(0, 1000)))
    shape = tuple(data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4)))
    inputs = []
    for _ in range(data.draw(st.integers(1, 3))):
        kept = tuple(size if data.draw(st.booleans()) else 1 for size in shape)
        x = torch.randn(kept[data.draw(st.integers(0, len(kept))) :]).to(data.draw(st.sampled_from(FLOATS)))
        inputs.append(x.transpose(0, -1).contiguous().transpose(0, -1) if x.dim() and data.draw(st.booleans()) else x)
    chosen = [
        (data.draw(st.sampled_from(sorted(STEPS))), data.draw(st.integers(0, 99)), data.draw(st.integers(0, 2)))
        for _ in range(data.draw(st.integers(2, 7)))
    ]
    outputs = data.draw(st.integers(1, 2))
    casts = {"half": torch.float16, "float": torch.float32}
    met = [x.dtype for x in inputs] + [casts[name] for name, *_ in chosen if name in casts]
    coarse = torch.finfo(max(met, key=lambda dtype: torch.finfo(dtype).eps))

    def walk(values: list[Any], apply: Function) -> list[Any]:
        for name, i, back in chosen:
            values.append(apply(name, values[i % len(values)], values[-1 - min(back, len(values) - 1)]))
        return values[-outputs:]

    def tree(module: Any, *given: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.stack([one]) for one in walk(list(given), lambda name, x, y: STEPS[name][0](y, x)))

    def bound(name: str, x: tuple[Tensor, Tensor], y: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        function, slope = STEPS[name]
        (first, error), (second, other) = y, x
        exact = first if name in ("half", "float", "double") else function(first, second)
        passed = slope(first, second, error, other).expand(exact.shape)
        # once to nearest, and torch's functions are good to a few of their last places; a subnormal's are fixed
        return exact, passed + 4 * coarse.eps * (exact.abs() + passed) + coarse.smallest_normal * coarse.eps

    program = program_of(tree, *inputs)
    done = simplify(program, [*EXACT, POINTWISE])
    with torch.no_grad():
        before, after = program.module()(*inputs), done.module(*inputs)
    bounds = walk([(x.double(), torch.zeros((), dtype=torch.float64)) for x in inputs], bound)
    assume(all(bool((exact.abs() < 1000).all()) for exact, _ in bounds))
    for one, other, (_, error) in zip(before, after, bounds, strict=True):
        assert (one.dtype, one.shape, one.stride()) == (other.dtype, other.shape, other.stride())
        assert bool(((one.double() - other.double()).abs() <= 2 * error).all())
    return done.matches["pointwise"]


def test_a_smaller_cast_joins_a_program_unless_it_is_from_float64() -> None:
    small = torch.linspace(-1, 1, 2).reshape(2, 1, 1, 1)

    def joined(m: Any, x: Tensor, small: Tensor) -> Tensor:
        return torch.relu(x * small.half().float() + 1)

    def apart(m: Any, x: Tensor, small: Tensor) -> Tensor:
        return torch.relu(x * small.double().float() + 1)

    assert fused(joined, X, small)[-1] == "cast+mul+add+relu"
    assert fused(apart, X, small)[-1] == "mul+add+relu"
