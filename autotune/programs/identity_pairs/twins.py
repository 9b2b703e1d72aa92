"""Pairs of drawn models that differ in one thing, and what that one thing means for their keys."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from autotune.programs.drawn import answers as drawn_answers
from autotune.programs.drawn import joins as drawn_joins
from autotune.programs.drawn.models import Step, build, draw, draw_step, shape_after
from autotune.programs.drawn.operators import OPERATORS
from autotune.programs.identity_pairs.asked_twins import asked_twins
from autotune.programs.identity_pairs.twin import (
    OTHER_FORM,
    OTHER_GRAPH,
    OTHER_WEIGHTS,
    Twins,
    floating_place,
    inserted,
    two_of,
    with_step,
)
from autotune.programs.identity_pairs.twin_inputs import input_role, inputs, weights


def constant(rng: random.Random) -> Twins:
    """A number in an operator, or a tensor that the forward makes of numbers."""
    one, other = round(rng.uniform(0.5, 2), 3), round(rng.uniform(2.001, 3), 3 + rng.randrange(6))
    if rng.random() < 0.3:
        tail = [round(rng.uniform(0, 1), 3) for _ in range(3)]
        first, second = inserted(rng, "literal", {"values": [one, *tail]}, {"values": [other, *tail]})
        return Twins(what="tensor in the forward", first=first, second=second, **OTHER_WEIGHTS)
    if rng.random() < 0.3:
        other = one * (1 + 1e-12)
    how = rng.choice(drawn_joins.NUMBERS)
    first, second = inserted(rng, "number", {"how": how, "value": one}, {"how": how, "value": other})
    return Twins(what=f"number: {how}", first=first, second=second, **OTHER_GRAPH)


def inner_graph(rng: random.Random) -> Twins:
    """Something within a block, a branch or the body of a loop, or the kind of the block."""
    how = rng.choices(drawn_joins.INNER, weights=(4, 4, 1, 1, 1))[0]
    common = {"how": how, "number": 0.5, "operator": "sin"}
    ways: dict[str, Sequence[Any]] = {"number": (0.25, 0.5, 0.75), "operator": ("sin", "tanh", "sigmoid")}
    if how in ("autocast", "no_grad"):
        ways["literal"] = ([0.25], [0.5], [0.75])
    if how == "autocast":
        ways["narrow"] = ("bfloat16", "float16")
    key = rng.choice(list(ways))
    one, other = two_of(rng, ways[key])
    first, second = inserted(rng, "inner", {**common, key: one}, {**common, key: other})
    expected = OTHER_WEIGHTS if key == "literal" else OTHER_GRAPH
    return Twins(what=f"{key} in {how}", first=first, second=second, **expected)


def output_key(rng: random.Random) -> Twins:
    """The name, the type or the order of a key, the class of the whole, or a part that is no tensor."""
    drawn = draw(rng)
    if len(drawn.steps) < 2:
        drawn = replace(drawn, steps=(*drawn.steps, Step(operator="number", attributes={"how": "times", "value": 0.5})))
    nested = rng.random() < 0.2
    what = rng.choice(("name", "type of key", "order", "class", "part", "position"))
    base = drawn_answers.Answer(form="dict", parts=2, nested=nested)
    first, second = base, base
    if what == "name":
        keys = [each for each in drawn_answers.KEYS if isinstance(each, str)]
        a, b, c = rng.sample(keys, 3)
        first, second = replace(base, keys=(a, b)), replace(base, keys=(a, c) if rng.random() < 0.5 else (c, b))
    elif what == "type of key":
        first, second = replace(base, keys=(0, "a")), replace(base, keys=("0", "a"))
    elif what == "order":
        both = tuple(rng.sample(drawn_answers.KEYS, 2))
        first, second = replace(base, keys=both), replace(base, keys=both[::-1])
    elif what == "class":
        one, other = two_of(rng, [form for form in drawn_answers.FORMS if form != "tensor"])
        first, second = replace(base, form=one), replace(base, form=other)
    elif what == "part":
        one, other = two_of(rng, (None, 1, 1.0, "1", 2))
        form = rng.choice([form for form in drawn_answers.FORMS if form != "tensor"])
        first, second = (replace(base, form=form, parts=1, extra=(each,)) for each in (one, other))
    else:  # a part that is there, and is None in the other
        form = rng.choice(("tuple", "list", "Pair", "Output"))
        first, second = replace(base, form=form, parts=1), replace(base, form=form, parts=1, extra=(None,) * 2)
        if form in drawn_answers.CLASSES:
            second = replace(second, extra=(0,))
    return Twins(
        what=what, first=replace(drawn, answer=first), second=replace(drawn, answer=second), **OTHER_FORM,
        alike=("structure", "weights", "family", "artifact"),
    )  # fmt: skip


def buffer_write(rng: random.Random) -> Twins:
    """One writes into a buffer, and is refused by the buffer's name."""
    how = rng.choice(drawn_joins.WRITES)
    first, second = inserted(rng, "writer", {"how": how, "writes": False}, {"how": how, "writes": True})
    return Twins(what=how, first=first, second=second, refused="level")


def attribute(rng: random.Random) -> Twins:
    """One attribute of an operator."""
    drawn = draw(rng)
    at = floating_place(rng, drawn)
    shape = shape_after(drawn.inputs, drawn.steps[:at])
    step = draw_step(rng, shape)
    choices = OPERATORS[step.operator].choices(shape) or {}
    free = {key: values for key, values in choices.items() if len(values) > 1}
    if not free:
        raise ValueError(f"{step.operator} has no attribute with two choices here")
    key = rng.choice(list(free))
    one, other = two_of(rng, free[key])
    first, second = (
        with_step(drawn, at, replace(step, attributes={**step.attributes, key: value})) for value in (one, other)
    )
    return Twins(what=f"{step.operator}.{key}", first=first, second=second, **OTHER_GRAPH)


def request(rng: random.Random) -> Twins:
    """Whatever is asked beside the model: device, serving format, rules, kernels, toolchain, space, seed, files."""
    drawn = draw(rng)
    asked, expected = asked_twins(rng, gate=False)
    return Twins(first=drawn, second=drawn, asked=asked, **expected)


def gate(rng: random.Random) -> Twins:
    """A limit, the bound of a metric or its code: a stricter plan serves a looser caller, never the reverse."""
    drawn = draw(rng)
    asked, expected = asked_twins(rng, gate=True)
    return Twins(first=drawn, second=drawn, asked=asked, **expected)


KINDS: Mapping[str, Callable[[random.Random], Twins]] = {
    "constant": constant, "inner graph": inner_graph, "output key": output_key, "buffer write": buffer_write,
    "attribute": attribute, "input role": input_role, "weights": weights, "inputs": inputs, "gate": gate,
    "request": request,
}  # fmt: skip


def draw_twins(kind: str, rng: random.Random, attempts: int = 50) -> Twins:
    """Draw twins of a kind that can both be built."""
    for _ in range(attempts):
        try:
            twins = KINDS[kind](rng)
            build(twins.first)
            build(twins.second)
        except (RuntimeError, ValueError, IndexError):
            continue  # the one difference does not fit the steps behind it
        return twins
    raise RuntimeError(f"no twins of kind {kind} were found in {attempts} attempts")
