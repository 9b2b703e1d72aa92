"""The formulas of activations against torch, as the kernels compute them."""

import math
from typing import get_args

import pytest
import torch
from torch.nn import functional

from autotune.backends.native.cuda_kernels.activation_formula import (
    BEND,
    CLAMP,
    ERF,
    FORMULAS,
    FULL_PRECISION,
    NONE,
    RELU,
    TIMES_BEND,
    TIMES_CLAMP,
    ActivationFormula,
)
from autotune.records.kernel_problem import Activation

EXPECTED = {
    "none": lambda x: x, "relu": torch.relu, "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"), "silu": functional.silu, "relu6": functional.relu6,
    "hardswish": functional.hardswish, "hardsigmoid": functional.hardsigmoid, "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
}  # fmt: skip


def computed(by: ActivationFormula, x: torch.Tensor) -> torch.Tensor:
    """Compute a formula as ``epilogue.cuh`` defines it."""
    square = torch.clamp(x * x, max=by.most)
    bent = torch.tanh(x * ((by.p2 * square + by.p1) * square + by.p0))
    share = torch.clamp(by.scale * x + by.shift, 0.0, by.top)
    return {
        NONE: x, RELU: torch.relu(x), CLAMP: share, TIMES_CLAMP: x * share, BEND: by.gain * bent + by.offset,
        TIMES_BEND: 0.5 * x * bent + 0.5 * x, ERF: 0.5 * x * (1 + torch.erf(x / math.sqrt(2))),
    }[by.number]  # fmt: skip


@pytest.mark.parametrize("name", get_args(Activation))
def test_a_formula_is_its_activation(name: str) -> None:
    x = torch.cat([torch.linspace(-12, 12, 4001, dtype=torch.float64), torch.tensor([-6e4, 6e4, -1e-7, 0.0])])
    expected = EXPECTED[name](x)
    for formulas, limit in ((FORMULAS, 4e-5), (FULL_PRECISION, 1e-6)):
        error = (computed(formulas[name], x) - expected).abs() / (1 + x.abs())
        assert error.max() < limit, (name, x[error.argmax()])


def test_an_infinite_sum_stays_what_it_is() -> None:
    x = torch.tensor([math.inf])
    for name in ("gelu", "gelu_tanh", "silu"):
        assert computed(FORMULAS[name], x).item() == math.inf
