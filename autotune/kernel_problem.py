"""One kernel's work, with everything that decides which tiles it can take."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from autotune.canonical import canonical, digest

OperandType = Literal["fp16", "bf16", "fp32"]
Activation = Literal["none", "relu", "gelu", "gelu_tanh", "silu"]
Major = Literal["k", "mn"]

BYTES: Mapping[str, int] = {"fp16": 2, "bf16": 2, "fp32": 4}
"""Bytes of one element of each type."""

BIAS_BYTES = 4
"""A bias is a vector of fp32: it is added to the fp32 accumulators."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GemmProblem:
    """D = activation(A·B + bias + residual), with A of m×k, B of k×n, and D and the residual of m×n, row-major.

    ``dtype`` is of A and B, ``output`` of D and the residual; accumulators are fp32. ``a_major`` and ``b_major`` say
    which dimension is contiguous: ``k`` (a linear layer's activations and weights as torch stores them), or ``mn``
    (the other one). The bias has length n. ``gelu`` is the one with erf. An activation comes with a bias.
    """

    m: int
    n: int
    k: int
    dtype: OperandType = "fp16"
    output: OperandType = "fp16"
    a_major: Major = "k"
    b_major: Major = "k"
    bias: bool = False
    activation: Activation = "none"
    residual: bool = False

    def __post_init__(self) -> None:
        for name in ("m", "n", "k"):
            size = getattr(self, name)
            if type(size) is not int or size < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, found {size!r}")
        for name, kind in _CHOICES.items():
            if getattr(self, name) not in get_args(kind):
                raise ValueError(f"{name} must be one of {', '.join(get_args(kind))}, found {getattr(self, name)!r}")
        for name in ("bias", "residual"):
            if type(getattr(self, name)) is not bool:
                raise ValueError(f"{name} must be true or false, found {getattr(self, name)!r}")
        if self.activation != "none" and not self.bias:
            raise ValueError(f"activation {self.activation} comes with a bias, found none")

    @property
    def flops(self) -> int:
        """Floating-point operations of the product: a multiplication and an addition per m·n·k; the epilogue's not."""
        return 2 * self.m * self.n * self.k

    @property
    def bytes(self) -> int:
        """The least traffic to memory: every operand read once, D written once."""
        results = (2 if self.residual else 1) * self.m * self.n * BYTES[self.output]
        operands = (self.m + self.n) * self.k * BYTES[self.dtype]
        return operands + results + (BIAS_BYTES * self.n if self.bias else 0)

    @property
    def alignment_a_bytes(self) -> int:
        """The largest power of two up to 16 that divides a row of A's contiguous dimension, in bytes."""
        return _alignment(self.k if self.a_major == "k" else self.m, self.dtype)

    @property
    def alignment_b_bytes(self) -> int:
        """The same of B."""
        return _alignment(self.k if self.b_major == "k" else self.n, self.dtype)

    @property
    def alignment_d_bytes(self) -> int:
        """The same of D and the residual, whose contiguous dimension is n."""
        return _alignment(self.n, self.output)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "GemmProblem":
        """Read what :meth:`as_dict` wrote, also after a trip through JSON."""
        return cls(**data)

    @property
    def canonical(self) -> str:
        """Canonical JSON: sorted keys, no white space."""
        return canonical(self.as_dict())

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON, in hexadecimal."""
        return digest(self.as_dict())


_CHOICES: Mapping[str, Any] = {
    "dtype": OperandType,
    "output": OperandType,
    "a_major": Major,
    "b_major": Major,
    "activation": Activation,
}


def _alignment(elements: int, dtype: str) -> int:
    return math.gcd(16, elements * BYTES[dtype])
