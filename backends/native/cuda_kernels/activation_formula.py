"""The activations of our own GEMMs, each by one of the formulas that ``epilogue.cuh`` has."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

NONE, RELU, CLAMP, TIMES_CLAMP, BEND, TIMES_BEND, ERF = range(7)
"""The numbers of the formulas in ``epilogue.cuh``, which defines them and their coefficients."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivationFormula:
    """A formula with its coefficients. A kernel takes them for each launch, so a new function needs no new kernel."""

    number: int
    scale: float = 0.0
    shift: float = 0.0
    top: float = 0.0
    p0: float = 0.0
    p1: float = 0.0
    p2: float = 0.0
    most: float = 100.0  # finite: times a coefficient of 0 it is 0
    gain: float = 0.0
    offset: float = 0.0


_TANH = math.sqrt(2.0 / math.pi)

FORMULAS: Mapping[str, ActivationFormula] = {
    "none": ActivationFormula(number=NONE),
    "relu": ActivationFormula(number=RELU),
    # erf(x / sqrt 2) is tanh(x P(x^2)) with this P within 1.9e-5, fitted; beyond 4 both are 1.
    "gelu": ActivationFormula(number=TIMES_BEND, p0=0.79771757, p1=0.036798727, p2=-0.00031594865, most=16.0),
    "gelu_tanh": ActivationFormula(number=TIMES_BEND, p0=_TANH, p1=0.044715 * _TANH),
    "silu": ActivationFormula(number=TIMES_BEND, p0=0.5),
    "relu6": ActivationFormula(number=CLAMP, scale=1.0, top=6.0),
    "hardswish": ActivationFormula(number=TIMES_CLAMP, scale=1 / 6, shift=0.5, top=1.0),
    "hardsigmoid": ActivationFormula(number=CLAMP, scale=1 / 6, shift=0.5, top=1.0),
    "sigmoid": ActivationFormula(number=BEND, p0=0.5, gain=0.5, offset=0.5),
    "tanh": ActivationFormula(number=BEND, p0=1.0, gain=1.0),
}
"""The formula of each activation of a result in half precision."""

FULL_PRECISION: Mapping[str, ActivationFormula] = {**FORMULAS, "gelu": ActivationFormula(number=ERF)}
"""The formula of each activation of a result in fp32."""
