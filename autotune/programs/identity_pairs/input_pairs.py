"""Pairs that differ in inputs or weights: the role of an input, its size or type, the values of weights."""

import random
from dataclasses import replace

from autotune.programs.drawn import answers as drawn_answers
from autotune.programs.drawn import joins as drawn_joins
from autotune.programs.drawn.models import BATCH, WEIGHTED, Input, ModelSpec, Step, draw, shape_after, with_step
from autotune.programs.identity_pairs.model_pair import (
    OTHER_FORM,
    OTHER_GRAPH,
    OTHER_WEIGHTS,
    Expected,
    ModelPair,
    floating_place,
    inserted,
)


def input_role(rng: random.Random) -> ModelPair:
    """Two inputs exchanged, an input in the place of a weight, an input that nothing reads, or other names."""
    role = rng.choice(("exchanged", "weight or input", "unused", "names", "order of the parameters"))
    spec = draw(rng, inputs=2)
    if role == "weight or input":
        return _weight_or_input(rng, role, spec)
    x, y = spec.inputs
    if role == "unused":
        kept = tuple(step for step in spec.steps if step.operator != "join")
        join = Step(operator="join", attributes={"kind": rng.choice(drawn_joins.JOINS)}, takes=("", "y"))
        first = replace(spec, steps=kept, answer=drawn_answers.Answer())
        second = with_step(first, len(kept), join)
        return ModelPair(difference=role, first=first, second=second, expected=OTHER_GRAPH)
    if role == "exchanged":
        y = replace(y, shape=x.shape)
        join = Step(operator="join", attributes={"kind": rng.choice(("subtract", "append", "weigh"))}, takes=("x", "y"))
        first = replace(spec, inputs=(x, y), steps=(join, *spec.steps[1:]))
        second = replace(first, steps=(replace(join, takes=("y", "x")), *first.steps[1:]))
        return ModelPair(difference=role, first=first, second=second, expected=OTHER_GRAPH)
    new_names = {"x": "a", "y": "b"} if role == "names" else {"x": "y", "y": "x"}
    expected = replace(OTHER_FORM, alike=("structure", "weights"))
    return ModelPair(difference=role, first=spec, second=_renamed(spec, new_names), expected=expected)


def _weight_or_input(rng: random.Random, role: str, spec: ModelSpec) -> ModelPair:
    # The product comes last, so that it stands in one place in both graphs: after the other weights, before the other
    # inputs.
    place = len(spec.steps)
    size = shape_after(spec.inputs, spec.steps)[-1]
    product = Step(operator="weighted", attributes={"size": size}, seed=rng.randrange(2**31))
    begin = replace(spec.steps[0], takes=("x", *spec.steps[0].takes[1:]))
    spec = replace(spec, steps=(begin, *spec.steps[1:]))
    second = with_step(spec, place, replace(product, takes=("", "weight")))
    return ModelPair(
        difference=role,
        first=with_step(spec, place, product),
        second=replace(second, inputs=(Input(name="weight", shape=(size, size)), *spec.inputs)),
        expected=Expected(differ=("form", "plan", "artifact", "study")),
    )


def _renamed(spec: ModelSpec, new_names: dict[str, str]) -> ModelSpec:
    steps = (replace(step, takes=tuple(new_names.get(name, name) for name in step.takes)) for step in spec.steps)
    inputs = (replace(drawn_input, name=new_names[drawn_input.name]) for drawn_input in spec.inputs)
    return replace(spec, inputs=tuple(inputs), steps=tuple(steps))


def weights(rng: random.Random) -> ModelPair:
    """Other values of one layer's weights, two layers that exchange theirs, or two that share one or have their own."""
    change = rng.choice(("values", "values", "shared or separate", "exchanged"))
    if change == "exchanged":
        return _exchanged_weights(rng)
    if change == "shared or separate":
        first, second = inserted(rng, "tied", {"shared": True}, {"shared": False})
        expected = Expected(differ=("study", "artifact", "weights"))
        return ModelPair(difference=change, first=first, second=second, expected=expected)
    spec = draw(rng)
    places = [place for place, step in enumerate(spec.steps) if step.operator in WEIGHTED]
    if not places:
        place = floating_place(rng, spec)
        step = Step(operator="linear", attributes={"out_features": 4, "bias": True}, seed=rng.randrange(2**31))
        spec, places = with_step(spec, place, step), [place]
    place = rng.choice(places)
    changed = replace(spec.steps[place], seed=spec.steps[place].seed + 1)
    second = replace(spec, steps=(*spec.steps[:place], changed, *spec.steps[place + 1 :]))
    return ModelPair(difference=change, first=spec, second=second, expected=OTHER_WEIGHTS)


def _exchanged_weights(rng: random.Random) -> ModelPair:
    spec, seeds = draw(rng), rng.sample(range(2**31), 2)
    place = floating_place(rng, spec)
    size = shape_after(spec.inputs, spec.steps[:place])[-1]

    def with_products(first_seed: int, second_seed: int) -> ModelSpec:
        products = (
            Step(operator="weighted", attributes={"size": size}, seed=seed) for seed in (first_seed, second_seed)
        )
        return with_step(with_step(spec, place, next(products)), place, next(products))

    first, second = with_products(*seeds), with_products(*seeds[::-1])
    return ModelPair(difference="exchanged", first=first, second=second, expected=OTHER_WEIGHTS)


def inputs(rng: random.Random) -> ModelPair:
    """Another size or another dtype of an input."""
    spec = draw(rng)
    place = rng.randrange(len(spec.inputs))
    chosen = spec.inputs[place]
    if chosen.dtype == "float32" and len(spec.inputs) > 1 and place and rng.random() < 0.5:
        changed, difference = replace(chosen, dtype=rng.choice(("float64", "float16", "int32"))), "dtype"
    elif chosen.dtype != "float32":
        changed, difference = replace(chosen, dtype="int32" if chosen.dtype != "int32" else "int64"), "dtype"
    elif place:
        changed, difference = replace(chosen, shape=(BATCH, *(size + 1 for size in chosen.shape[1:]))), "shape"
    else:
        changed, difference = replace(chosen, shape=(BATCH + 1, *chosen.shape[1:])), "batch"
    second = replace(spec, inputs=(*spec.inputs[:place], changed, *spec.inputs[place + 1 :]))
    return ModelPair(difference=difference, first=spec, second=second, expected=OTHER_GRAPH)
