"""All kinds of pairs of models that differ in one thing: KINDS, and a pair drawn of a kind."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from autotune.programs.drawn import answers as drawn_answers
from autotune.programs.drawn import joins as drawn_joins
from autotune.programs.drawn.models import ModelSpec, Step, build, draw, draw_step, shape_after, with_step
from autotune.programs.drawn.operators import OPERATORS
from autotune.programs.identity_pairs.input_pairs import input_role, inputs, weights
from autotune.programs.identity_pairs.model_pair import (
    OTHER_FORM,
    OTHER_GRAPH,
    OTHER_WEIGHTS,
    Expected,
    ModelPair,
    floating_place,
    inserted,
    two_of,
)
from autotune.programs.identity_pairs.request_pairs import draw_requests


def constant(rng: random.Random) -> ModelPair:
    """A number in an operator, or a tensor that the forward makes of numbers."""
    low, high = round(rng.uniform(0.5, 2), 3), round(rng.uniform(2.001, 3), 3 + rng.randrange(6))
    if rng.random() < 0.3:
        tail = [round(rng.uniform(0, 1), 3) for _ in range(3)]
        first, second = inserted(rng, "literal", {"values": [low, *tail]}, {"values": [high, *tail]})
        return ModelPair(difference="tensor in the forward", first=first, second=second, expected=OTHER_WEIGHTS)
    if rng.random() < 0.3:
        high = low * (1 + 1e-12)
    how = rng.choice(drawn_joins.NUMBERS)
    first, second = inserted(rng, "number", {"how": how, "value": low}, {"how": how, "value": high})
    return ModelPair(difference=f"number: {how}", first=first, second=second, expected=OTHER_GRAPH)


def inner_graph(rng: random.Random) -> ModelPair:
    """Something within a block, a branch or the body of a loop, or the kind of the block."""
    how = rng.choices(drawn_joins.INNER, weights=(4, 4, 1, 1, 1))[0]
    common = {"how": how, "number": 0.5, "operator": "sin"}
    choices: dict[str, Sequence[object]] = {"number": (0.25, 0.5, 0.75), "operator": ("sin", "tanh", "sigmoid")}
    if how in ("autocast", "no_grad"):
        choices["literal"] = ([0.25], [0.5], [0.75])
    if how == "autocast":
        choices["narrow"] = ("bfloat16", "float16")
    key = rng.choice(list(choices))
    values = two_of(rng, choices[key])
    first, second = inserted(rng, "inner", {**common, key: values[0]}, {**common, key: values[1]})
    expected = OTHER_WEIGHTS if key == "literal" else OTHER_GRAPH
    return ModelPair(difference=f"{key} in {how}", first=first, second=second, expected=expected)


def output_key(rng: random.Random) -> ModelPair:
    """The name, the type or the order of a key, the class of the whole, or a part that is no tensor."""
    spec = draw(rng)
    if len(spec.steps) < 2:
        spec = replace(spec, steps=(*spec.steps, Step(operator="number", attributes={"how": "times", "value": 0.5})))
    nested = rng.random() < 0.2
    difference = rng.choice(("name", "type of key", "order", "class", "part", "position"))
    base = drawn_answers.Answer(form="dict", parts=2, nested=nested)
    first, second = _other_keys(rng, difference, base) or _other_parts(rng, difference, base)
    return ModelPair(
        difference=difference,
        first=replace(spec, answer=first),
        second=replace(spec, answer=second),
        expected=replace(OTHER_FORM, alike=("structure", "weights", "family", "artifact")),
    )


def _other_keys(
    rng: random.Random, difference: str, base: drawn_answers.Answer
) -> tuple[drawn_answers.Answer, drawn_answers.Answer] | None:
    if difference == "name":
        names = [key for key in drawn_answers.KEYS if isinstance(key, str)]
        a, b, c = rng.sample(names, 3)
        return replace(base, keys=(a, b)), replace(base, keys=(a, c) if rng.random() < 0.5 else (c, b))
    if difference == "type of key":
        return replace(base, keys=(0, "a")), replace(base, keys=("0", "a"))
    if difference == "order":
        keys = tuple(rng.sample(drawn_answers.KEYS, 2))
        return replace(base, keys=keys), replace(base, keys=keys[::-1])
    return None


def _other_parts(
    rng: random.Random, difference: str, base: drawn_answers.Answer
) -> tuple[drawn_answers.Answer, drawn_answers.Answer]:
    forms = [form for form in drawn_answers.FORMS if form != "tensor"]
    if difference == "class":
        first_form, second_form = two_of(rng, forms)
        return replace(base, form=first_form), replace(base, form=second_form)
    if difference == "part":
        extras: Sequence[float | str | None] = (None, 1, 1.0, "1", 2)
        first_extra, second_extra = two_of(rng, extras)
        base = replace(base, form=rng.choice(forms), parts=1)
        return replace(base, extra=(first_extra,)), replace(base, extra=(second_extra,))
    # A part that is there, and is None in the other.
    form = rng.choice(("tuple", "list", "Pair", "DataclassOutput"))
    first, second = replace(base, form=form, parts=1), replace(base, form=form, parts=1, extra=(None,) * 2)
    return first, replace(second, extra=(0,)) if form in drawn_answers.CLASSES else second


def buffer_write(rng: random.Random) -> ModelPair:
    """Only the second writes into a buffer; its refusal names the buffer."""
    how = rng.choice(drawn_joins.WRITES)
    first, second = inserted(rng, "writer", {"how": how, "writes": False}, {"how": how, "writes": True})
    return ModelPair(difference=how, first=first, second=second, expected=Expected(refused="level"))


def attribute(rng: random.Random) -> ModelPair:
    """One attribute of an operator."""
    spec = draw(rng)
    place = floating_place(rng, spec)
    shape = shape_after(spec.inputs, spec.steps[:place])
    step = draw_step(rng, shape)
    choices = OPERATORS[step.operator].choices(shape) or {}
    free = {key: values for key, values in choices.items() if len(values) > 1}
    if not free:
        raise ValueError(f"{step.operator} has no attribute with two choices here")
    key = rng.choice(list(free))
    first_value, second_value = two_of(rng, free[key])

    def with_value(value: object) -> ModelSpec:
        return with_step(spec, place, replace(step, attributes={**step.attributes, key: value}))

    return ModelPair(
        difference=f"{step.operator}.{key}",
        first=with_value(first_value),
        second=with_value(second_value),
        expected=OTHER_GRAPH,
    )


def request(rng: random.Random) -> ModelPair:
    """The request: device, serving format, rules, kernels, toolchain, space, seed or files."""
    return _other_request(rng, gate=False)


def gate(rng: random.Random) -> ModelPair:
    """A limit, the bound of a metric or its code: a stricter plan serves a looser caller, never the reverse."""
    return _other_request(rng, gate=True)


def _other_request(rng: random.Random, *, gate: bool) -> ModelPair:
    spec = draw(rng)
    pair = draw_requests(rng, gate=gate)
    return ModelPair(
        difference=pair.difference, first=spec, second=spec, requests=(pair.first, pair.second), expected=pair.expected
    )


KINDS: Mapping[str, Callable[[random.Random], ModelPair]] = {
    "constant": constant,
    "inner graph": inner_graph,
    "output key": output_key,
    "buffer write": buffer_write,
    "attribute": attribute,
    "input role": input_role,
    "weights": weights,
    "inputs": inputs,
    "gate": gate,
    "request": request,
}


def draw_pair(kind: str, rng: random.Random, attempts: int = 50) -> ModelPair:
    """Draw a pair of a kind of which both models can be built."""
    for _ in range(attempts):
        try:
            pair = KINDS[kind](rng)
            build(pair.first)
            build(pair.second)
        except (RuntimeError, ValueError, IndexError):
            continue  # the one difference does not fit the steps behind it
        return pair
    raise RuntimeError(f"no pair of kind {kind} could be built in {attempts} attempts")
