"""Random programs as users write them: drawn models, some with an oddity that a plan must handle correctly."""

import random
from dataclasses import dataclass, replace

from autotune.programs.drawn import answers as drawn_answers
from autotune.programs.drawn import joins as drawn_joins
from autotune.programs.drawn import odd_layers
from autotune.programs.drawn.models import DrawnModule, ModelSpec, Step, build, draw, with_step

ODD = 0.15
"""The share of each kind of oddity below among all models; a model may have several."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A drawn model with its oddities by name, and how many inputs its forward takes by position or keyword alone.

    ``may_be_refused`` says that it has state, random numbers, or steps or shapes that depend on values.
    """

    spec: ModelSpec
    odd: tuple[str, ...] = ()
    positional_only: int = 0
    keyword_only: int = 0
    may_be_refused: bool = False

    def module(self) -> DrawnModule:
        """Make the module."""
        return build(self.spec, positional_only=self.positional_only, keyword_only=self.keyword_only)


def draw_program(rng: random.Random, attempts: int = 50) -> Program:
    """Draw a program that can be built."""
    for _ in range(attempts):
        try:
            program = _drawn(rng)
            program.module()
        except (RuntimeError, ValueError, IndexError):
            continue  # an oddity does not fit the values at its place
        return program
    raise RuntimeError(f"no program could be built in {attempts} attempts")


def _drawn(rng: random.Random) -> Program:
    program = Program(spec=draw(rng))
    if rng.random() < ODD:
        program = _with_layer(
            rng, program, rng.choice((*odd_layers.STATE, *odd_layers.RANDOM, *odd_layers.VALUES)), refused=True
        )
    if rng.random() < ODD:
        program = _with_layer(rng, program, rng.choice((*odd_layers.HARMLESS, "tied", "literal")), refused=False)
    if rng.random() < ODD:
        program = _with_layer(rng, program, "inner", refused=False)
    if rng.random() < ODD and program.spec.inputs[0].dtype == "float32":
        program = _with_write(program, rng.choice(odd_layers.WRITING))
    if rng.random() < 2 * ODD:
        more = tuple(rng.sample(list(drawn_answers.MORE), rng.choice((1, 2))))
        program = _with_outputs(program, more, refused=False)
    if rng.random() < ODD / 3:
        program = _with_outputs(program, tuple(drawn_answers.BY_VALUES), refused=True)
    count = len(program.spec.inputs)
    if rng.random() < ODD:
        program = replace(program, positional_only=rng.randint(1, count), odd=(*program.odd, "positional-only"))
    elif rng.random() < ODD:
        program = replace(program, keyword_only=rng.randint(1, count), odd=(*program.odd, "keyword-only"))
    return program


def _with_layer(rng: random.Random, program: Program, name: str, *, refused: bool) -> Program:
    attributes_of: dict[str, dict[str, object]] = {
        "writer": {"how": rng.choice(drawn_joins.WRITES), "writes": True},
        "tied": {"shared": True},
        "literal": {"values": [0.5, 0.25]},
        "inner": {
            "how": rng.choice(("autocast", "no_grad", "no_grad", "autocast", "cond")),
            "number": 0.5,
            "operator": "sin",
        },
    }
    attributes = attributes_of.get(name, {})
    step = Step(operator=name, attributes=attributes, seed=rng.randrange(2**31))
    oddity = f"inner graph: {attributes['how']}" if name == "inner" else name
    # Last, so that no rectifier behind it hides its effect.
    spec = replace(program.spec, steps=(*program.spec.steps, step))
    return replace(program, spec=spec, odd=(*program.odd, oddity), may_be_refused=program.may_be_refused or refused)


def _with_write(program: Program, name: str) -> Program:
    """Let the first of all steps write into the first input, which the others then read as it is."""
    spec = with_step(program.spec, 0, Step(operator=name, attributes={}, takes=("x",)))
    return replace(program, spec=spec, odd=(*program.odd, name))


def _with_outputs(program: Program, names: tuple[str, ...], *, refused: bool) -> Program:
    answer = replace(program.spec.answer, more=(*program.spec.answer.more, *names))
    odd = (*program.odd, *(f"output: {name}" for name in names))
    spec = replace(program.spec, answer=answer)
    return replace(program, spec=spec, odd=odd, may_be_refused=program.may_be_refused or refused)
