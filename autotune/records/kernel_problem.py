"""One kernel's work, with everything that decides which tiles it can take."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from autotune.records import schema
from autotune.records.canonical import canonical, digest
from autotune.records.plain import values_in

OperandType = Literal["fp16", "bf16", "fp32"]
Activation = Literal[
    "none", "relu", "gelu", "gelu_tanh", "silu", "relu6", "hardswish", "hardsigmoid", "sigmoid", "tanh",
]  # fmt: skip
Major = Literal["k", "mn"]

BYTES: Mapping[str, int] = {"fp16": 2, "bf16": 2, "fp32": 4}
"""Bytes of one element of each type."""

BIAS_BYTES = 4
"""A bias is a vector of fp32: it is added to the fp32 accumulators."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """The rows of A that a convolution reads from images in channels-last memory, one for each place of its kernel.

    Sizes in elements; ``padding`` is of zeros, on both sides.
    """

    height: int
    width: int
    channels: int
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)

    def __post_init__(self) -> None:
        sizes = (self.height, self.width, self.channels, *self.kernel, *self.stride, *self.dilation)
        pairs = (self.kernel, self.stride, self.padding, self.dilation)
        if any(type(size) is not int or size < 1 for size in sizes) or min(self.padding) < 0:
            raise ValueError(f"the sizes of a window are whole numbers of at least 1, its padding 0, found {self}")
        if any(type(pair) is not tuple or len(pair) != 2 for pair in pairs) or min(self.places) < 1:
            raise ValueError(f"a window has two dimensions and a place in its images, found {self}")

    @property
    def places(self) -> tuple[int, int]:
        """Rows and columns of the places of the kernel in one image."""
        return tuple(  # type: ignore[return-value]
            (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
            for size, kernel, stride, padding, dilation in zip(
                (self.height, self.width), self.kernel, self.stride, self.padding, self.dilation, strict=True
            )
        )

    def as_dict(self) -> dict[str, object]:
        """Plain data for JSON."""
        return schema.content(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> "Window":
        """Read what :meth:`as_dict` wrote, also after a trip through JSON."""
        values = values_in(schema.without_schema(cls, data, what="a window of a kernel problem"))
        values |= {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
        return cls(**values)


@dataclass(frozen=True, slots=True, kw_only=True)
class GemmProblem:
    """D = activation(A·B + bias + residual), with A of m×k, B of k×n, and D and the residual of m×n, row-major.

    ``dtype`` is of A and B, ``output`` of D and the residual; accumulators are fp32. ``a_major`` and ``b_major`` say
    which dimension is contiguous: ``k`` (a linear layer's activations and weights as torch stores them), or ``mn``
    (the other one). The bias has length n. ``gelu`` is the one with erf. An activation comes with a bias.

    With a ``window`` the rows of A are read from images: it is a convolution, whose k goes over the rows of its kernel,
    then the columns, then the channels.
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
    window: Window | None = None

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
        if self.window is not None:
            taps = self.window.channels * math.prod(self.window.kernel)
            if self.k != taps or self.m % math.prod(self.window.places) or (self.a_major, self.b_major) != ("k", "k"):
                raise ValueError(
                    f"a window of k = {taps} and {self.window.places} places an image, both operands k-major, found "
                    f"m = {self.m}, k = {self.k}, {self.a_major}- and {self.b_major}-major"
                )

    @property
    def a_shape(self) -> tuple[int, ...]:
        """The shape of A as it lies in memory: rows, or with a window images, rows, columns and channels."""
        if self.window is None:
            return (self.m, self.k) if self.a_major == "k" else (self.k, self.m)
        window = self.window
        return self.m // math.prod(window.places), window.height, window.width, window.channels

    @property
    def flops(self) -> int:
        """Floating-point operations of the product: a multiplication and an addition per m·n·k; the epilogue's not."""
        return 2 * self.m * self.n * self.k

    @property
    def bytes(self) -> int:
        """The least traffic to memory: every operand read once, D written once."""
        results = (2 if self.residual else 1) * self.m * self.n * BYTES[self.output]
        operands = (math.prod(self.a_shape) + self.n * self.k) * BYTES[self.dtype]
        return operands + results + (BIAS_BYTES * self.n if self.bias else 0)

    @property
    def alignment_a_bytes(self) -> int:
        """The largest power of two up to 16 that divides a row of A's contiguous dimension, in bytes."""
        return _alignment(self.a_shape[-1], self.dtype)

    @property
    def alignment_b_bytes(self) -> int:
        """The same of B."""
        return _alignment(self.k if self.b_major == "k" else self.n, self.dtype)

    @property
    def alignment_d_bytes(self) -> int:
        """The same of D and the residual, whose contiguous dimension is n."""
        return _alignment(self.n, self.output)

    def as_dict(self) -> dict[str, object]:
        """Plain data for JSON; of the digest too, so a field added later is declared by :func:`schema.since`."""
        return {**schema.content(self), "window": None if self.window is None else self.window.as_dict()}

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> "GemmProblem":
        """Read what :meth:`as_dict` wrote, also after a trip through JSON."""
        values = values_in(schema.without_schema(cls, data, what="a kernel problem"))
        window = values.get("window")
        return cls(**{**values, "window": None if window is None else Window.from_dict(window)})

    @property
    def canonical(self) -> str:
        """Canonical JSON: sorted keys, no white space."""
        return canonical(self.as_dict())

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON, in hexadecimal."""
        return digest(self.as_dict())


_CHOICES: Mapping[str, object] = {
    "dtype": OperandType,
    "output": OperandType,
    "a_major": Major,
    "b_major": Major,
    "activation": Activation,
}


def _alignment(elements: int, dtype: str) -> int:
    return math.gcd(16, elements * BYTES[dtype])
