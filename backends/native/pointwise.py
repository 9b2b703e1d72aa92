"""The operator that a tree of elementwise operators becomes: ``torch.ops.autotune_native.pointwise(inputs, program)``.

A program is canonical JSON: ``{"dtype": "float16", "steps": [["mul", {"in": 0}, {"in": 1}], ["relu", {"step": 0}]]}``.
An operand is an input, an earlier step or a number; the last step is the answer, rounded once to ``dtype``. Every step
computes in float32, or in float64 where an input has it; inputs and steps broadcast. As in
:mod:`autotune.backends.native.operators`, torch's own calls give the meaning that a fast kernel equals within rounding.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from autotune.backends.native.operators import NAMESPACE
from autotune.errors import WorkError
from autotune.records.canonical import canonical

DTYPES: Mapping[str, torch.dtype] = MappingProxyType(
    {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}
)
"""The dtypes of inputs, answers and casts, by the names that programs call them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """An operand that is a tensor: an input, or what an earlier step gave."""

    kind: Literal["in", "step"]
    index: int


Operand: TypeAlias = Reference | float | str | None
"""A number is a constant, a string the dtype of a cast, ``None`` a bound that a clamp does not have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One operator of :data:`OPERATORS` and what it is applied to."""

    name: str
    operands: tuple[Operand, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """What is computed for each element; ``dtype`` is the answer's, by name.

    Raises WorkError where a step is unknown, lacks an operand or reads what is not there yet.
    """

    dtype: str
    steps: tuple[Step, ...]

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES or not self.steps:
            raise _refused(f"{len(self.steps)} steps to {self.dtype}", f"steps to one of {', '.join(DTYPES)}")
        for index, step in enumerate(self.steps):
            form = OPERATORS[step.name].form if step.name in OPERATORS else None
            if form is None:
                raise _refused(f"the step {step.name}", f"one of {', '.join(OPERATORS)}")
            if len(form) != len(step.operands) or not all(map(_fits, form, step.operands)):
                raise _refused(f"{step.name} of {step.operands}", f"operands of the form {form}")
            read = [operand for operand in step.operands if isinstance(operand, Reference)]
            if any(one.index < 0 or (one.kind == "step" and one.index >= index) for one in read):
                raise _refused(f"{step.name} of {step.operands} as step {index}", "inputs and earlier steps")

    @property
    def inputs(self) -> int:
        """How many inputs the program reads, counted up to the last one that it names."""
        operands = (operand for step in self.steps for operand in step.operands)
        return 1 + max((o.index for o in operands if isinstance(o, Reference) and o.kind == "in"), default=-1)

    def text(self) -> str:
        """The canonical JSON that the operator takes."""
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
        "pow": _Operator(compute=torch.pow, form="xn"),
        "clamp": _Operator(compute=torch.clamp, form="xbb"),
        "cast": _Operator(compute=lambda x, dtype: x.to(DTYPES[dtype]).to(x.dtype), form="xd"),
    }
)
"""The operators of a step, by name; torch's meaning of each is the program's, special values included."""


def parse(text: str) -> Program:
    """Read a program; raises WorkError where it is none."""
    try:
        read = json.loads(text)
        steps = tuple(Step(name=name, operands=tuple(map(_operand, operands))) for name, *operands in read["steps"])
        return Program(dtype=read["dtype"], steps=steps)
    except (ValueError, TypeError, KeyError) as error:
        expected = 'JSON {"dtype": ..., "steps": [[name, operand, ...], ...]}'
        raise _refused(f"{text[:200]} ({error})", expected) from error


def compute_dtype(inputs: Sequence[Tensor]) -> torch.dtype:
    """The dtype in which every step computes."""
    return torch.float64 if any(one.dtype is torch.float64 for one in inputs) else torch.float32


@torch.library.custom_op(f"{NAMESPACE}::pointwise", mutates_args=())
def pointwise(inputs: Sequence[Tensor], program: str) -> Tensor:
    """Give the answer of ``program``, contiguous, of the shape to which ``inputs`` broadcast together."""
    read = parse(program)
    _check(inputs, read)
    wide = compute_dtype(inputs)
    widened = [one.to(wide) for one in inputs]
    given: list[Tensor] = []

    def operand(letter: str, one: Operand) -> Operand | Tensor:
        if isinstance(one, Reference):
            return widened[one.index] if one.kind == "in" else given[one.index]
        if letter != "x" or not isinstance(one, bool | int | float):
            return one
        # Filled on the device: a number that is copied there cannot be captured in a CUDA graph.
        return torch.full((), float(one), dtype=wide, device=inputs[0].device)

    for step in read.steps:
        chosen = OPERATORS[step.name]
        given.append(chosen.compute(*map(operand, chosen.form, step.operands)))
    answer = torch.empty(_shape(inputs), dtype=DTYPES[read.dtype], device=inputs[0].device)
    return answer.copy_(given[-1])


@pointwise.register_fake
def _(inputs: Sequence[Tensor], program: str) -> Tensor:
    read = parse(program)
    _check(inputs, read)
    return inputs[0].new_empty(_shape(inputs), dtype=DTYPES[read.dtype])


def _shape(inputs: Sequence[Tensor]) -> torch.Size:
    shape: torch.Size = torch.broadcast_shapes(*(one.shape for one in inputs))  # type: ignore[no-untyped-call]
    return shape


def _check(inputs: Sequence[Tensor], program: Program) -> None:
    if not inputs or len(inputs) < program.inputs or any(one.dtype not in DTYPES.values() for one in inputs):
        found = ", ".join(f"{str(one.dtype).removeprefix('torch.')}{list(one.shape)}" for one in inputs)
        raise _refused(f"inputs {found or 'none'}", f"{max(program.inputs, 1)} of {', '.join(DTYPES)}")


def _operand(read: Any) -> Operand:
    if isinstance(read, dict):
        ((kind, index),) = read.items()
        if kind not in ("in", "step") or type(index) is not int:
            raise ValueError(f"{read} is no operand")
        return Reference(kind=kind, index=index)
    if read is None or isinstance(read, str) or (type(read) in (int, float) and math.isfinite(read)):
        return read  # type: ignore[no-any-return]
    raise ValueError(f"{read!r} is no operand")


def _plain(operand: Operand) -> object:
    return {operand.kind: operand.index} if isinstance(operand, Reference) else operand


def _fits(letter: str, operand: Operand) -> bool:
    number = isinstance(operand, int | float) and not isinstance(operand, bool)
    if letter == "x":
        return number or isinstance(operand, Reference)
    if letter == "d":
        return isinstance(operand, str) and operand in DTYPES
    return number or (letter == "b" and operand is None)


def _refused(found: str, expected: str) -> WorkError:
    return WorkError("the pointwise program cannot be computed", found=found, expected=expected)
