"""Small random models as plain data, so that two can differ in one entry, and the modules that they describe."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from inspect import Parameter, Signature
from typing import Any

import torch
from torch import nn

from autotune.programs.drawn import answers as drawn_answers
from autotune.programs.drawn import joins as drawn_joins
from autotune.programs.drawn import odd_layers
from autotune.programs.drawn.operators import OPERATORS, Attributes, Shape

BATCH = 2
SHAPES: Sequence[Shape] = ((BATCH, 6), (BATCH, 8), (BATCH, 4, 6), (BATCH, 6, 8), (BATCH, 4, 6, 6), (BATCH, 2, 8, 8))
VOCABULARY = 12
WEIGHTED = ("linear", "convolution", "embedding", "weighted")
"""Operators that always have weights drawn from the seed of their step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """One input: its name, shape and dtype; integers lie below the size of a vocabulary."""

    name: str
    shape: Shape
    dtype: str = "float32"

    def draw(self, generator: torch.Generator) -> torch.Tensor:
        """Draw values."""
        if self.dtype == "bool":
            return torch.rand(self.shape, generator=generator) > 0.5
        if "int" in self.dtype:
            return torch.randint(0, VOCABULARY, self.shape, generator=generator).to(getattr(torch, self.dtype))
        return torch.randn(self.shape, generator=generator).to(getattr(torch, self.dtype))


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One operator on named values: inputs by their names, the result of step n as ``vn``; ``""`` is the value before.

    ``seed`` is that of its weights.
    """

    operator: str
    attributes: Attributes
    takes: tuple[str, ...] = ("",)
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """A model as plain data: inputs, steps one after the other, and the form of its answer."""

    inputs: tuple[Input, ...]
    steps: tuple[Step, ...]
    answer: drawn_answers.Answer = field(default_factory=drawn_answers.Answer)

    def example(self, seed: int) -> dict[str, torch.Tensor]:
        """Draw one set of inputs by name."""
        generator = torch.Generator().manual_seed(seed)
        return {each.name: each.draw(generator) for each in self.inputs}

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


class DrawnModule(nn.Module):
    """What a :class:`Drawn` describes; made by :func:`build`, which gives its forward the names of the inputs."""

    def __init__(self, drawn: Drawn) -> None:
        super().__init__()
        self.drawn = drawn
        self.layers = nn.ModuleList()
        values: dict[str, torch.Tensor] = drawn.example(0)
        before = drawn.inputs[0].name
        for number, step in enumerate(drawn.steps):
            operands = [values[name or before] for name in step.takes]
            torch.manual_seed(step.seed)
            layer = _made(step, [tuple(each.shape) for each in operands])
            self.layers.append(layer)
            before = f"v{number}"
            with torch.no_grad():
                values[before] = layer.eval()(*operands)
        self.eval()

    def run(self, values: Mapping[str, torch.Tensor]) -> Any:
        """Compute the answer to named inputs."""
        known = dict(values)
        before = self.drawn.inputs[0].name
        for number, (step, layer) in enumerate(zip(self.drawn.steps, self.layers, strict=True)):
            operands = [known[name or before] for name in step.takes]
            before = f"v{number}"
            known[before] = layer(*operands)
        last = [known[f"v{number}"] for number in range(len(self.drawn.steps))][::-1]
        return self.drawn.answer.of(last, values)


def _made(step: Step, shapes: list[Shape]) -> nn.Module:
    if step.operator in OPERATORS:
        return OPERATORS[step.operator].make(step.attributes, shapes[0])
    return {**drawn_joins.LAYERS, **odd_layers.LAYERS}[step.operator](step.attributes, shapes)


def build(drawn: Drawn, *, positional_only: int = 0, keyword_only: int = 0) -> DrawnModule:
    """Make the module, in eval mode; its forward takes the first and the last inputs only by position or by keyword.

    Leaves the random state as it was. Raises RuntimeError or ValueError if the steps do not fit one another.
    """
    names = [each.name for each in drawn.inputs]
    kinds = [
        Parameter.POSITIONAL_ONLY if at < positional_only
        else Parameter.KEYWORD_ONLY if at >= len(names) - keyword_only
        else Parameter.POSITIONAL_OR_KEYWORD
        for at in range(len(names))
    ]  # fmt: skip

    def forward(self: DrawnModule, *args: torch.Tensor, **kwargs: torch.Tensor) -> Any:
        return self.run({**dict(zip(names, args, strict=False)), **kwargs})

    own = [Parameter("self", Parameter.POSITIONAL_ONLY if positional_only else Parameter.POSITIONAL_OR_KEYWORD)]
    forward.__signature__ = Signature(own + list(map(Parameter, names, kinds)))  # type: ignore[attr-defined]
    kind = type("DrawnModule", (DrawnModule,), {"forward": forward})
    with torch.random.fork_rng(devices=[]):
        return kind(drawn)  # type: ignore[no-any-return]


def draw_step(rng: random.Random, shape: Shape, operator: str = "") -> Step:
    """Draw a step that takes an operand of a shape; any operator, unless one is named."""
    fitting = {name: one.choices(shape) for name, one in OPERATORS.items()}
    name = operator or rng.choice([name for name, choices in fitting.items() if choices is not None])
    choices = fitting[name]
    if choices is None:
        raise ValueError(f"{name} takes no operand of shape {shape}")
    attributes = {key: rng.choice(list(values)) for key, values in choices.items()}
    return Step(operator=name, attributes=attributes, seed=rng.randrange(2**31))


def draw_inputs(rng: random.Random, count: int = 0) -> tuple[Input, ...]:
    """Draw one to three inputs; the first is floating, or integers for an embedding."""
    shape = rng.choice(SHAPES)
    inputs = [Input(name="x", shape=shape)]
    if not count and rng.random() < 0.2:
        inputs = [Input(name="x", shape=(BATCH, rng.choice((4, 6))), dtype="int64")]
    for name in ("y", "mask")[: (count or rng.choice((1, 1, 2, 3))) - 1]:
        other = shape if rng.random() < 0.6 else rng.choice(SHAPES)
        dtype = rng.choice(("float32", "float32", "int64", "bool")) if not count else "float32"
        inputs.append(Input(name=name, shape=other, dtype=dtype))
    return tuple(inputs)


def first_steps(rng: random.Random, inputs: Sequence[Input]) -> list[Step]:
    """Draw the steps by which all inputs come together."""
    steps = []
    if inputs[0].dtype != "float32":
        steps.append(Step(operator="embedding", attributes={"size": rng.choice((4, 8))}, seed=rng.randrange(2**31)))
    for each in inputs[1:]:
        steps.append(Step(operator="join", attributes={"kind": rng.choice(drawn_joins.JOINS)}, takes=("", each.name)))
    return steps


def shape_after(inputs: Sequence[Input], steps: Sequence[Step]) -> Shape:
    """Return the shape of the value after the steps; raises as :func:`build` does."""
    if not steps:
        return inputs[0].shape
    made = build(Drawn(inputs=tuple(inputs), steps=tuple(steps)))
    with torch.no_grad():
        return tuple(made.run(made.drawn.example(0)).shape)


def draw_steps(rng: random.Random, inputs: Sequence[Input], count: int) -> tuple[Step, ...]:
    """Draw the first steps and as many more as asked for; a quarter of them add or append an earlier value."""
    steps = first_steps(rng, inputs)
    while count > 0:
        before = len(steps)
        step = draw_step(rng, shape_after(inputs, steps))
        try:
            shape_after(inputs, [*steps, step])
        except (RuntimeError, ValueError):
            continue  # such as a kernel that is larger than its operand
        steps.append(step)
        count -= 1
        if before and rng.random() < 0.25:
            steps.append(
                Step(operator="join", attributes={"kind": rng.choice(drawn_joins.JOINS)}, takes=("", f"v{before - 1}"))
            )
    return tuple(steps)


def draw(rng: random.Random, *, inputs: int = 0) -> Drawn:
    """Draw a model of two to six steps beside those that join its inputs."""
    taken = draw_inputs(rng, inputs)
    steps = draw_steps(rng, taken, rng.randint(2, 6))
    return Drawn(inputs=taken, steps=steps, answer=drawn_answers.draw(rng, len(steps)))
