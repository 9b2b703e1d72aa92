"""The operator that a tree of elementwise operators becomes: ``torch.ops.autotune_native.pointwise(inputs, program)``.

A program is canonical JSON: ``{"dtype": "float16", "steps": [["mul", {"in": 0}, {"in": 1}], ["relu", {"step": 0}]]}``.
An operand is an input, an earlier step or a number; the last step is the answer, rounded once to ``dtype``. Every step
computes in float32, or in float64 if an input has it; inputs and steps broadcast. As in
:mod:`autotune.backends.native.operators`, torch's own calls define the result, which a kernel equals within rounding.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from autotune.backends.native.operators import NAMESPACE
from autotune.errors import WorkError
from autotune.records.canonical import canonical

DTYPES: Mapping[str, torch.dtype] = MappingProxyType(
    {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}
)
"""The dtypes of inputs, answers and casts, by their names in programs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """An operand that is a tensor: an input, or the result of an earlier step."""

    kind: Literal["in", "step"]
    index: int


Operand: TypeAlias = Reference | float | str | None
"""A number is a constant, a string the dtype of a cast, ``None`` a bound that a clamp does not have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PointwiseStep:
    """One operator of :data:`OPERATORS` and its operands."""

    name: str
    operands: tuple[Operand, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PointwiseProgram:
    """A computation on each element; ``dtype`` is the name of the answer's dtype.

    Raises WorkError if a step is unknown, lacks an operand or reads a later step.
    """

    dtype: str
    steps: tuple[PointwiseStep, ...]

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES or not self.steps:
            raise _invalid(f"{len(self.steps)} steps to {self.dtype}", f"steps to one of {', '.join(DTYPES)}")
        for index, step in enumerate(self.steps):
            form = OPERATORS[step.name].form if step.name in OPERATORS else None
            if form is None:
                raise _invalid(f"the step {step.name}", f"one of {', '.join(OPERATORS)}")
            if len(form) != len(step.operands) or not all(map(_fits, form, step.operands)):
                raise _invalid(f"{step.name} of {step.operands}", f"operands of the form {form}")
            read = [operand for operand in step.operands if isinstance(operand, Reference)]
            if any(operand.index < 0 or (operand.kind == "step" and operand.index >= index) for operand in read):
                raise _invalid(f"{step.name} of {step.operands} as step {index}", "inputs and earlier steps")

    @property
    def inputs(self) -> int:
        """The number of inputs that the program needs: up to the last one that it reads."""
        operands = (operand for step in self.steps for operand in step.operands)
        return 1 + max((o.index for o in operands if isinstance(o, Reference) and o.kind == "in"), default=-1)

    def text(self) -> str:
        """Return the canonical JSON that the operator takes."""
        steps = [[step.name, *map(_plain, step.operands)] for step in self.steps]
        return canonical({"dtype": self.dtype, "steps": steps})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Operator:
    compute: Callable[..., Tensor]
    form: str
    """One letter an operand: ``x`` a tensor or a number, ``n`` a number, ``b`` a number or no bound, ``d`` a dtype."""


OPERATORS: Mapping[str, _Operator] = MappingProxyType(
    {
        "add": _Operator(compute=torch.add, form="xx"),
        "sub": _Operator(compute=torch.sub, form="xx"),
        "mul": _Operator(compute=torch.mul, form="xx"),
        "div": _Operator(compute=torch.div, form="xx"),
        "neg": _Operator(compute=torch.neg, form="x"),
        "exp": _Operator(compute=torch.exp, form="x"),
        "log": _Operator(compute=torch.log, form="x"),
        "sqrt": _Operator(compute=torch.sqrt, form="x"),
        "rsqrt": _Operator(compute=torch.rsqrt, form="x"),
        "reciprocal": _Operator(compute=torch.reciprocal, form="x"),
        "abs": _Operator(compute=torch.abs, form="x"),
        "tanh": _Operator(compute=torch.tanh, form="x"),
        "sigmoid": _Operator(compute=torch.sigmoid, form="x"),
        "erf": _Operator(compute=torch.erf, form="x"),
        "relu": _Operator(compute=torch.relu, form="x"),
        "gelu": _Operator(compute=functional.gelu, form="x"),
        "gelu_tanh": _Operator(compute=lambda x: functional.gelu(x, approximate="tanh"), form="x"),
        "silu": _Operator(compute=functional.silu, form="x"),
        "hardswish": _Operator(compute=functional.hardswish, form="x"),
        "hardsigmoid": _Operator(compute=functional.hardsigmoid, form="x"),
        "maximum": _Operator(compute=torch.maximum, form="xx"),
        "minimum": _Operator(compute=torch.minimum, form="xx"),
        "leaky_relu": _Operator(compute=functional.leaky_relu, form="xn"),
        "pow": _Operator(compute=torch.pow, form="xn"),
        "clamp": _Operator(compute=torch.clamp, form="xbb"),
        "cast": _Operator(compute=lambda x, dtype: x.to(DTYPES[dtype]).to(x.dtype), form="xd"),
    }
)
"""The operators of a step, by name; each is defined by torch's, special values included."""


def parse(text: str) -> PointwiseProgram:
    """Read a program; raises WorkError if it is not valid."""
    try:
        data = json.loads(text)
        steps = tuple(
            PointwiseStep(name=name, operands=tuple(map(_operand, operands))) for name, *operands in data["steps"]
        )
        return PointwiseProgram(dtype=data["dtype"], steps=steps)
    except (ValueError, TypeError, KeyError) as error:
        expected = 'JSON {"dtype": ..., "steps": [[name, operand, ...], ...]}'
        raise _invalid(f"{text[:200]} ({error})", expected) from error


def compute_dtype(inputs: Sequence[Tensor]) -> torch.dtype:
    """Return the dtype in which every step computes."""
    return torch.float64 if any(tensor.dtype is torch.float64 for tensor in inputs) else torch.float32


@torch.library.custom_op(f"{NAMESPACE}::pointwise", mutates_args=())
def pointwise(inputs: Sequence[Tensor], program: str) -> Tensor:
    """Return the answer of ``program``, contiguous, of the shape to which ``inputs`` broadcast together."""
    parsed = parse(program)
    _check(inputs, parsed)
    wide = compute_dtype(inputs)
    widened = [tensor.to(wide) for tensor in inputs]
    results: list[Tensor] = []

    def evaluated(letter: str, operand: Operand) -> Operand | Tensor:
        if isinstance(operand, Reference):
            return widened[operand.index] if operand.kind == "in" else results[operand.index]
        if letter != "x" or not isinstance(operand, bool | int | float):
            return operand
        # Filled on the device: the copy of a number to the device cannot be captured in a CUDA graph.
        return torch.full((), float(operand), dtype=wide, device=inputs[0].device)

    for step in parsed.steps:
        operator = OPERATORS[step.name]
        results.append(operator.compute(*map(evaluated, operator.form, step.operands)))
    shape, last = _shape(inputs), results[-1]
    is_new = not any(last is tensor for tensor in (*inputs, *widened))
    if is_new and last.dtype is DTYPES[parsed.dtype] and last.shape == shape and last.is_contiguous():
        return last
    return torch.empty(shape, dtype=DTYPES[parsed.dtype], device=inputs[0].device).copy_(last)


@pointwise.register_fake
def _(inputs: Sequence[Tensor], program: str) -> Tensor:
    read = parse(program)
    _check(inputs, read)
    return inputs[0].new_empty(_shape(inputs), dtype=DTYPES[read.dtype])


def _shape(inputs: Sequence[Tensor]) -> torch.Size:
    shape: torch.Size = torch.broadcast_shapes(*(tensor.shape for tensor in inputs))  # type: ignore[no-untyped-call]
    return shape


def _check(inputs: Sequence[Tensor], program: PointwiseProgram) -> None:
    if not inputs or len(inputs) < program.inputs or any(tensor.dtype not in DTYPES.values() for tensor in inputs):
        shapes = ", ".join(f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}" for tensor in inputs)
        raise _invalid(f"inputs {shapes or 'none'}", f"{max(program.inputs, 1)} of {', '.join(DTYPES)}")


def _operand(data: object) -> Operand:
    if isinstance(data, dict):
        ((kind, index),) = data.items()
        if kind not in ("in", "step") or type(index) is not int:
            raise ValueError(f"{data} is no operand")
        return Reference(kind=kind, index=index)
    if data is None or isinstance(data, str):
        return data
    if isinstance(data, int | float) and not isinstance(data, bool) and math.isfinite(data):
        return data
    raise ValueError(f"{data!r} is no operand")


def _plain(operand: Operand) -> object:
    return {operand.kind: operand.index} if isinstance(operand, Reference) else operand


def _fits(letter: str, operand: Operand) -> bool:
    number = isinstance(operand, int | float) and not isinstance(operand, bool)
    if letter == "x":
        return number or isinstance(operand, Reference)
    if letter == "d":
        return isinstance(operand, str) and operand in DTYPES
    return number or (letter == "b" and operand is None)


def _invalid(program: str, expected: str) -> WorkError:
    return WorkError("the pointwise program cannot be computed", found=program, expected=expected)
