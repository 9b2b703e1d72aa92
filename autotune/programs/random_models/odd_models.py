"""Random programs as users write them: a drawn model, and in some of them something that a plan must not get wrong."""

import random
from dataclasses import dataclass, replace
from typing import Any

from autotune.programs.drawn import answers as drawn_answers
from autotune.programs.drawn import joins as drawn_joins
from autotune.programs.drawn import odd_layers
from autotune.programs.drawn.models import Drawn, DrawnModule, Step, build, draw

ODD = 0.15
"""The share of each kind of oddity below among all models; a model may have several."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A drawn model with its oddities by name, and how many inputs its forward takes by position or keyword alone.

    ``may_be_refused`` says that it has state, random numbers, or steps or shapes that depend on values.
    """

    drawn: Drawn
    odd: tuple[str, ...] = ()
    positional_only: int = 0
    keyword_only: int = 0
    may_be_refused: bool = False

    def module(self) -> DrawnModule:
        """Make the module."""
        return build(self.drawn, positional_only=self.positional_only, keyword_only=self.keyword_only)


def draw_program(rng: random.Random, attempts: int = 50) -> Program:
    """Draw a program that can be built."""
    for _ in range(attempts):
        try:
            program = _drawn(rng)
            program.module()
        except (RuntimeError, ValueError, IndexError):
            continue  # an oddity does not fit the values at its place
        return program
    raise RuntimeError(f"no program was found in {attempts} attempts")


def _drawn(rng: random.Random) -> Program:
    program = Program(drawn=draw(rng))
    if rng.random() < ODD:
        program = _with_layer(
            rng, program, rng.choice((*odd_layers.STATE, *odd_layers.RANDOM, *odd_layers.VALUES)), refused=True
        )
    if rng.random() < ODD:
        program = _with_layer(rng, program, rng.choice((*odd_layers.HARMLESS, "tied", "literal")), refused=False)
    if rng.random() < ODD:
        program = _with_layer(rng, program, "inner", refused=False)
    if rng.random() < ODD and program.drawn.inputs[0].dtype == "float32":
        program = _with_write(program, rng.choice(odd_layers.WRITING))
    if rng.random() < 2 * ODD:
        more = tuple(rng.sample(list(drawn_answers.MORE), rng.choice((1, 2))))
        program = _with_outputs(program, more, refused=False)
    if rng.random() < ODD / 3:
        program = _with_outputs(program, tuple(drawn_answers.BY_VALUES), refused=True)
    count = len(program.drawn.inputs)
    if rng.random() < ODD:
        program = replace(program, positional_only=rng.randint(1, count), odd=(*program.odd, "positional-only"))
    elif rng.random() < ODD:
        program = replace(program, keyword_only=rng.randint(1, count), odd=(*program.odd, "keyword-only"))
    return program


def _with_layer(rng: random.Random, program: Program, name: str, *, refused: bool) -> Program:
    known: dict[str, dict[str, Any]] = {
        "writer": {"how": rng.choice(drawn_joins.WRITES), "writes": True},
        "tied": {"shared": True},
        "literal": {"values": [0.5, 0.25]},
        "inner": {
            "how": rng.choice(("autocast", "no_grad", "no_grad", "autocast", "cond")),
            "number": 0.5,
            "operator": "sin",
        },
    }
    attributes = known.get(name, {})
    step = Step(operator=name, attributes=attributes, seed=rng.randrange(2**31))
    said = f"inner graph: {attributes['how']}" if name == "inner" else name
    # Last, so that no rectifier behind it hides what it does.
    drawn = replace(program.drawn, steps=(*program.drawn.steps, step))
    return replace(program, drawn=drawn, odd=(*program.odd, said), may_be_refused=program.may_be_refused or refused)


def _with_write(program: Program, name: str) -> Program:
    """Let the first of all steps write into the first input, which the others then read as it is."""

    def moved(taken: str) -> str:
        return f"v{int(taken[1:]) + 1}" if taken[:1] == "v" else taken

    later = [replace(one, takes=tuple(map(moved, one.takes))) for one in program.drawn.steps]
    steps = (Step(operator=name, attributes={}, takes=("x",)), *later)
    return replace(program, drawn=replace(program.drawn, steps=steps), odd=(*program.odd, name))


def _with_outputs(program: Program, names: tuple[str, ...], *, refused: bool) -> Program:
    answer = replace(program.drawn.answer, more=(*program.drawn.answer.more, *names))
    odd = (*program.odd, *(f"output: {name}" for name in names))
    drawn = replace(program.drawn, answer=answer)
    return replace(program, drawn=drawn, odd=odd, may_be_refused=program.may_be_refused or refused)
