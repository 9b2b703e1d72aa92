"""Small random models as plain data, so that two can differ in one entry, and the modules that they describe."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from inspect import Parameter, Signature

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
class ModelSpec:
    """A model as plain data: inputs, steps one after the other, and the form of its answer."""

    inputs: tuple[Input, ...]
    steps: tuple[Step, ...]
    answer: drawn_answers.Answer = field(default_factory=drawn_answers.Answer)

    def example(self, seed: int) -> dict[str, torch.Tensor]:
        """Draw one set of inputs by name."""
        generator = torch.Generator().manual_seed(seed)
        return {drawn_input.name: drawn_input.draw(generator) for drawn_input in self.inputs}

    def as_dict(self) -> dict[str, object]:
        """Return plain data for JSON."""
        return asdict(self)


class DrawnModule(nn.Module):
    """The module of a :class:`ModelSpec`; :func:`build` makes it and gives its forward the names of the inputs."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        self.layers = nn.ModuleList()
        values: dict[str, torch.Tensor] = spec.example(0)
        before = spec.inputs[0].name
        for number, step in enumerate(spec.steps):
            operands = [values[name or before] for name in step.takes]
            torch.manual_seed(step.seed)
            layer = _layer(step, [tuple(operand.shape) for operand in operands])
            self.layers.append(layer)
            before = f"v{number}"
            with torch.no_grad():
                values[before] = layer.eval()(*operands)
        self.eval()

    def run(self, inputs: Mapping[str, torch.Tensor]) -> object:
        """Compute the answer to named inputs."""
        values = dict(inputs)
        before = self.spec.inputs[0].name
        for number, (step, layer) in enumerate(zip(self.spec.steps, self.layers, strict=True)):
            operands = [values[name or before] for name in step.takes]
            before = f"v{number}"
            values[before] = layer(*operands)
        last_first = [values[f"v{number}"] for number in range(len(self.spec.steps))][::-1]
        return self.spec.answer.of(last_first, inputs)


def _layer(step: Step, shapes: list[Shape]) -> nn.Module:
    if step.operator in OPERATORS:
        return OPERATORS[step.operator].make(shapes[0], **step.attributes)
    return {**drawn_joins.LAYERS, **odd_layers.LAYERS}[step.operator](shapes, **step.attributes)


def build(spec: ModelSpec, *, positional_only: int = 0, keyword_only: int = 0) -> DrawnModule:
    """Make the module, in eval mode; its forward takes the first and the last inputs only by position or by keyword.

    Leaves the random state as it was. Raises RuntimeError or ValueError if the steps do not fit one another.
    """
    names = [drawn_input.name for drawn_input in spec.inputs]
    kinds = [
        Parameter.POSITIONAL_ONLY if place < positional_only
        else Parameter.KEYWORD_ONLY if place >= len(names) - keyword_only
        else Parameter.POSITIONAL_OR_KEYWORD
        for place in range(len(names))
    ]  # fmt: skip

    def forward(self: DrawnModule, *args: torch.Tensor, **kwargs: torch.Tensor) -> object:
        return self.run({**dict(zip(names, args, strict=False)), **kwargs})

    own = [Parameter("self", Parameter.POSITIONAL_ONLY if positional_only else Parameter.POSITIONAL_OR_KEYWORD)]
    forward.__signature__ = Signature(own + list(map(Parameter, names, kinds)))  # type: ignore[attr-defined]
    kind: type[DrawnModule] = type("DrawnModule", (DrawnModule,), {"forward": forward})
    with torch.random.fork_rng(devices=[]):
        return kind(spec)


def with_step(spec: ModelSpec, place: int, step: Step) -> ModelSpec:
    """Insert a step at a place; names of values before it stay right, and names of later values are raised by one."""
    later = (replace(old, takes=_raised(old.takes, place)) for old in spec.steps[place:])
    return replace(spec, steps=(*spec.steps[:place], step, *later))


def _raised(names: Sequence[str], place: int) -> tuple[str, ...]:
    """Add one to the number of each value ``vN`` from a place on; other names stay."""
    return tuple(f"v{int(name[1:]) + 1}" if name[:1] == "v" and int(name[1:]) >= place else name for name in names)


def draw_step(rng: random.Random, shape: Shape, operator: str = "") -> Step:
    """Draw a step that takes an operand of a shape; any operator, unless one is named."""
    fitting = {name: candidate.choices(shape) for name, candidate in OPERATORS.items()}
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
    for further in inputs[1:]:
        steps.append(
            Step(operator="join", attributes={"kind": rng.choice(drawn_joins.JOINS)}, takes=("", further.name))
        )
    return steps


def shape_after(inputs: Sequence[Input], steps: Sequence[Step]) -> Shape:
    """Return the shape of the value after the steps; raises as :func:`build` does."""
    if not steps:
        return inputs[0].shape
    module = build(ModelSpec(inputs=tuple(inputs), steps=tuple(steps)))
    with torch.no_grad():
        value = module.run(module.spec.example(0))
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"an answer of one tensor was expected, found a {type(value).__name__}")
    return tuple(value.shape)


def draw_steps(rng: random.Random, inputs: Sequence[Input], count: int) -> tuple[Step, ...]:
    """Draw the first steps and ``count`` more; a quarter of these are followed by a join with an earlier value."""
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


def draw(rng: random.Random, *, inputs: int = 0) -> ModelSpec:
    """Draw a model of two to six steps beside those that join its inputs."""
    drawn_inputs = draw_inputs(rng, inputs)
    steps = draw_steps(rng, drawn_inputs, rng.randint(2, 6))
    return ModelSpec(inputs=drawn_inputs, steps=steps, answer=drawn_answers.draw(rng, len(steps)))
