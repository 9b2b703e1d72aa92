"""Where each pass matches, how often, and the traps in which it must not."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from autotune.backends.native.graph import Simplified, simplify
from autotune.backends.native.passes import (
    CASTS_AND_VIEWS,
    COMMON_SUBEXPRESSIONS,
    DEAD_CODE,
    EXACT,
    FOLD_CONSTANTS,
    IDENTITIES,
)
from autotune.backends.native.passes.casts_and_views import lossless
from autotune.backends.native.passes.fold_constants import LIMIT_BYTES
from autotune.errors import WorkError
from autotune.model.precision import flat_module
from tests.backends.native.graphs import DTYPES, SPECIAL, check, operators, program_of

F32, F16, I32 = torch.tensor(SPECIAL), torch.tensor(SPECIAL).half(), torch.tensor([3, 0, -7], dtype=torch.int32)
F64, MATRIX = torch.tensor(SPECIAL, dtype=torch.float64), torch.arange(6.0).reshape(2, 3)
Function = Callable[..., Any]


def run(one: Any, function: Function, *inputs: Tensor, **constants: Tensor) -> Simplified:
    return check(program_of(function, *inputs, **constants), [one], *inputs)


@pytest.mark.parametrize(
    ("function", "x"),
    [
        (lambda m, x: x.abs() * 1, F32),
        (lambda m, x: (1.0 * x.abs()).abs(), F16),
        (lambda m, x: (x / 1).abs(), F32),
        (lambda m, x: (x + -0.0).abs(), F32),
        (lambda m, x: (x - 0.0).abs(), F32),
        (lambda m, x: (x - 0).abs(), F16),
        (lambda m, x: (x + 0).abs(), I32),
        (lambda m, x: (x * m.ones).abs(), MATRIX),
        (lambda m, x: x.clone().abs(), F32),
        (lambda m, x: nn.functional.dropout(x, 0.5, training=False).abs(), F32),
        (lambda m, x: nn.functional.pad(x, (0, 0)).abs(), F32),
        (lambda m, x: nn.functional.pad(x, (0, 0, 0, 0), mode="constant", value=1.0).abs(), MATRIX),
        (lambda m, x: x.view(2, 3).abs(), MATRIX),
        (lambda m, x: x.expand(2, 3).abs(), MATRIX),
        (lambda m, x: x.t().t().abs(), MATRIX),
        (lambda m, x: x.permute(1, 0).transpose(0, 1).abs(), MATRIX),
    ],
)
def test_identities_are_taken_out(function: Function, x: Tensor) -> None:
    done = run(IDENTITIES, function, x, ones=torch.ones(3))
    assert done.matches["identities"] == 1
    assert set(operators(check(program_of(function, x, ones=torch.ones(3)), EXACT, x))) == {"abs.default"}


@pytest.mark.parametrize(
    ("function", "x"),
    [
        (lambda m, x: (x + 0.0).sin(), F32),
        (lambda m, x: (x + 0).sin(), F32),
        (lambda m, x: (x - -0.0).sin(), F32),
        (lambda m, x: (x + m.zeros).sin(), F32),
        (lambda m, x: torch.sub(x, 0.0, alpha=-1).sin(), F32),
        (lambda m, x: (x * (1 + 1e-12)).sin(), F64),
        (lambda m, x: (x * 1.0).sin(), I32),
        (lambda m, x: (x * 1).sin(), torch.tensor([True, False])),
        (lambda m, x: (x / 1).sin(), I32),
        (lambda m, x: (0 - x).sin(), I32),
        (lambda m, x: torch.div(x, 1, rounding_mode="floor").sin(), F32),
        (lambda m, x: (x + m.larger).sin(), I32),
        (lambda m, x: (x * m.wide).sin(), F32),
        (lambda m, x: x.expand(2, 8).contiguous().view(-1).sin(), F32),
        (lambda m, x: x * 1, F32),  # the output would be the input
        (lambda m, x: nn.functional.pad(x, (0, 0)), F32),
        (lambda m, x: nn.functional.pad(x, (0, 1)).sin(), F32),
    ],
)
def test_what_only_looks_like_an_identity_stays(function: Function, x: Tensor) -> None:
    zeros, larger = torch.zeros(()), torch.zeros(2, 3, dtype=torch.int32)
    done = run(IDENTITIES, function, x, zeros=zeros, larger=larger, wide=torch.ones(1, dtype=torch.float64))
    assert done.matches["identities"] == 0


@pytest.mark.parametrize(
    ("function", "x", "left"),
    [
        (lambda m, x: x.float().half().sin(), F16, ["sin.default"]),
        (lambda m, x: x.float().double().half().sin(), F16, ["sin.default"]),
        (lambda m, x: x.float().double().sin(), F16, ["_to_copy.default", "sin.default"]),
        (lambda m, x: x.long().int().neg(), I32, ["neg.default"]),
        (lambda m, x: x.reshape(-1).reshape(3, 2).sin(), MATRIX, ["view.default", "sin.default"]),
        (lambda m, x: x[None].permute(1, 2, 0).permute(1, 0, 2).sin(), MATRIX, None),
        (lambda m, x: x.half().float().sin(), F32, ["_to_copy.default"] * 2 + ["sin.default"]),
        (lambda m, x: x.bfloat16().half().sin(), F16, ["_to_copy.default"] * 2 + ["sin.default"]),
        (lambda m, x: x.float().int().neg(), I32, ["_to_copy.default"] * 2 + ["neg.default"]),
        (lambda m, x: x.float().to(torch.int8).neg(), F16, ["_to_copy.default"] * 2 + ["neg.default"]),
    ],
)
def test_casts_and_views(function: Function, x: Tensor, left: list[str] | None) -> None:
    done = check(program_of(function, x), [CASTS_AND_VIEWS, DEAD_CODE], x)
    expected = left if left is not None else ["unsqueeze.default", "permute.default", "sin.default"]
    assert operators(done) == expected


@pytest.mark.parametrize("narrow", DTYPES)
@pytest.mark.parametrize("wide", DTYPES)
def test_a_lossless_cast_brings_every_value_back(narrow: torch.dtype, wide: torch.dtype) -> None:
    if narrow.is_floating_point:
        limits = torch.finfo(narrow)
        values = torch.tensor([limits.min, limits.max, limits.tiny, 1 + limits.eps], dtype=torch.float64)
    elif narrow is torch.bool:
        values = torch.tensor([False, True])
    else:
        values = torch.tensor([torch.iinfo(narrow).min, torch.iinfo(narrow).max - 1, 1])
    there = values.to(narrow)
    comes_back = torch.equal(there.to(wide).to(narrow), there)
    assert comes_back or not lossless(narrow, wide)
    assert lossless(narrow, narrow)


@pytest.mark.parametrize(
    ("function", "looked_at"),
    [
        (lambda m, x: x[m.deep, m.columns] + 1.0, 1),
        (lambda m, x: x[m.down, m.columns] * 2.0, 1),
        (lambda m, x: x[m.rows] - 1.0, 1),
        (lambda m, x: x[:, m.columns] + 1.0, 0),  # a slice before the indices is no constant
        (lambda m, x: x[m.turned] + 1.0, 0),
        (lambda m, x: x[m.first] + 1.0, 0),
        (lambda m, x: x.t()[m.across, m.rows] + 1.0, 0),
        (lambda m, x: x[m.rows], 0),  # the caller's own memory
    ],
)
def test_a_gathering_of_all_elements_in_their_order_is_a_view(function: Function, looked_at: int) -> None:
    rows, columns = torch.arange(2), torch.arange(3)
    constants = {
        "rows": rows, "columns": columns, "down": rows[:, None].clone(), "deep": rows[:, None, None].clone(),
        "across": columns[:, None].clone(), "turned": rows.flip(0), "first": rows[:1].clone(),
    }  # fmt: skip
    done = run(IDENTITIES, function, torch.randn(2, 3), **constants)
    assert ("index.Tensor" in operators(done)) == (looked_at == 0)


def test_constants_fold_up_to_the_limit() -> None:
    def tables(module: Any, x: Tensor) -> Tensor:
        return x + torch.arange(4.0).mul(2).unsqueeze(0)

    assert run(FOLD_CONSTANTS, tables, torch.ones(2, 4)).matches["fold_constants"] == 3
    count = LIMIT_BYTES // 4 + 1
    assert run(FOLD_CONSTANTS, lambda m, x: x + torch.zeros(count), torch.ones(1)).matches["fold_constants"] == 0
    assert run(FOLD_CONSTANTS, lambda m, x: x + torch.zeros(count - 1), torch.ones(1)).matches["fold_constants"] == 1
    large = torch.ones(count)
    assert run(FOLD_CONSTANTS, lambda m, x: x + m.w.neg(), torch.ones(1), w=large).matches["fold_constants"] == 1


def test_random_numbers_and_outputs_are_not_folded_or_merged() -> None:
    def random(module: Any, x: Tensor) -> tuple[Tensor, ...]:
        return x + torch.rand(4), x + torch.rand(4), nn.functional.dropout(x, 0.5), nn.functional.dropout(x, 0.5)

    assert not any(check(program_of(random, torch.ones(4)), EXACT[:4], torch.ones(4)).matches.values())
    assert run(FOLD_CONSTANTS, lambda m, x: (x.abs(), torch.zeros(3)), F32).matches["fold_constants"] == 0
    assert run(COMMON_SUBEXPRESSIONS, lambda m, x: (x.sin(), x.sin()), F32).matches["common_subexpressions"] == 0


def test_the_same_is_computed_once_and_what_differs_is_not() -> None:
    name = "common_subexpressions"
    assert run(COMMON_SUBEXPRESSIONS, lambda m, x: x.sin() + x.sin(), F32).matches[name] == 1
    for function in (
        lambda m, x: (x + 0.0).atan2(x + -0.0),
        lambda m, x: torch.add(x, 1).sin() + torch.add(x, 1.0, alpha=2).sin(),
        lambda m, x: x.double() + x.half(),
    ):
        assert run(COMMON_SUBEXPRESSIONS, function, F32).matches[name] == 0


def test_unneeded_weights_go_and_the_callers_stay() -> None:
    program = program_of(lambda m, x: (x * m.used, (x * m.unused).sin())[:1], F32, used=F32.clone(), unused=F32.clone())
    done = check(program, [DEAD_CODE], F32)
    assert operators(done) == ["mul.Tensor"]
    assert hasattr(done.module, "used") and not hasattr(done.module, "unused")
    assert hasattr(flat_module(program), "unused")


def test_graphs_that_write_or_vary_are_refused() -> None:
    def writes(module: Any, x: Tensor) -> Tensor:
        return x.add_(1)

    with pytest.raises(WorkError, match="writes into inputs_0"):
        simplify(program_of(writes, torch.ones(3)), EXACT)
    with pytest.raises(WorkError, match="evaluation mode"):
        training = torch.export.export(nn.BatchNorm1d(2).train(), (torch.randn(4, 2),))
        simplify(training, EXACT)
    rows = {"x": {0: torch.export.Dim("rows", min=2)}}
    varying = torch.export.export(nn.Linear(3, 3), (torch.ones(4, 3),), dynamic_shapes={"input": rows["x"]})
    with pytest.raises(WorkError, match="do not depend on the inputs"):
        simplify(varying, EXACT)
