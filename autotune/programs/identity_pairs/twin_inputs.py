"""Twins that differ in what is given to them: the role of an input, its size or type, the values of weights."""

import random
from dataclasses import replace

from autotune.programs.drawn import answers as drawn_answers
from autotune.programs.drawn import joins as drawn_joins
from autotune.programs.drawn.models import BATCH, WEIGHTED, Input, Step, draw, shape_after
from autotune.programs.identity_pairs.twin import (
    OTHER_FORM,
    OTHER_GRAPH,
    OTHER_WEIGHTS,
    Twins,
    floating_place,
    inserted,
    with_step,
)


def input_role(rng: random.Random) -> Twins:
    """Two inputs in each other's place, an input that a weight was, one that nothing reads, other names of inputs."""
    what = rng.choice(("exchanged", "weight or input", "unused", "names", "order of the parameters"))
    drawn = draw(rng, inputs=2)
    x, y = drawn.inputs
    if what == "weight or input":
        # Last, so that it stands in one place in both graphs: after the other weights, before the other inputs.
        at = len(drawn.steps)
        size = shape_after(drawn.inputs, drawn.steps)[-1]
        own = Step(operator="weighted", attributes={"size": size}, seed=rng.randrange(2**31))
        begin = replace(drawn.steps[0], takes=("x", *drawn.steps[0].takes[1:]))
        drawn = replace(drawn, steps=(begin, *drawn.steps[1:]))
        second = with_step(drawn, at, replace(own, takes=("", "weight")))
        return Twins(
            what=what, first=with_step(drawn, at, own), differ=("form", "plan", "artifact", "study"),
            second=replace(second, inputs=(Input(name="weight", shape=(size, size)), x, y)),
        )  # fmt: skip
    if what == "unused":
        kept = tuple(one for one in drawn.steps if one.operator != "join")
        join = Step(operator="join", attributes={"kind": rng.choice(drawn_joins.JOINS)}, takes=("", "y"))
        first = replace(drawn, steps=kept, answer=drawn_answers.Answer())
        return Twins(what=what, first=first, second=with_step(first, len(kept), join), **OTHER_GRAPH)
    if what == "exchanged":
        y = replace(y, shape=x.shape)
        join = Step(operator="join", attributes={"kind": rng.choice(("subtract", "append", "weigh"))}, takes=("x", "y"))
        first = replace(drawn, inputs=(x, y), steps=(join, *drawn.steps[1:]))
        second = replace(first, steps=(replace(join, takes=("y", "x")), *first.steps[1:]))
        return Twins(what=what, first=first, second=second, **OTHER_GRAPH)
    other = {"x": "a", "y": "b"} if what == "names" else {"x": "y", "y": "x"}
    steps = [replace(one, takes=tuple(other.get(name, name) for name in one.takes)) for one in drawn.steps]
    second = replace(
        drawn, inputs=tuple(replace(each, name=other[each.name]) for each in drawn.inputs), steps=tuple(steps)
    )
    return Twins(what=what, first=drawn, second=second, **OTHER_FORM, alike=("structure", "weights"))


def weights(rng: random.Random) -> Twins:
    """Other values of one layer's weights, two layers that exchange theirs, or two that share one or have their own."""
    what = rng.choice(("values", "values", "shared or separate", "exchanged"))
    if what == "exchanged":
        return _exchanged_weights(rng)
    if what == "shared or separate":
        first, second = inserted(rng, "tied", {"shared": True}, {"shared": False})
        return Twins(what=what, first=first, second=second, differ=("study", "artifact", "weights"))
    drawn = draw(rng)
    owning = [at for at, step in enumerate(drawn.steps) if step.operator in WEIGHTED]
    if not owning:
        at = floating_place(rng, drawn)
        step = Step(operator="linear", attributes={"out_features": 4, "bias": True}, seed=rng.randrange(2**31))
        drawn, owning = with_step(drawn, at, step), [at]
    at = rng.choice(owning)
    changed = replace(drawn.steps[at], seed=drawn.steps[at].seed + 1)
    second = replace(drawn, steps=(*drawn.steps[:at], changed, *drawn.steps[at + 1 :]))
    return Twins(what=what, first=drawn, second=second, **OTHER_WEIGHTS)


def _exchanged_weights(rng: random.Random) -> Twins:
    drawn, seeds = draw(rng), rng.sample(range(2**31), 2)
    at = floating_place(rng, drawn)
    size = shape_after(drawn.inputs, drawn.steps[:at])[-1]
    both = []
    for order in (seeds, seeds[::-1]):
        made = drawn
        for seed in order:
            made = with_step(made, at, Step(operator="weighted", attributes={"size": size}, seed=seed))
        both.append(made)
    return Twins(what="exchanged", first=both[0], second=both[1], **OTHER_WEIGHTS)


def inputs(rng: random.Random) -> Twins:
    """Another size or another dtype of an input."""
    drawn = draw(rng)
    at = rng.randrange(len(drawn.inputs))
    chosen = drawn.inputs[at]
    if chosen.dtype == "float32" and len(drawn.inputs) > 1 and at and rng.random() < 0.5:
        changed, what = replace(chosen, dtype=rng.choice(("float64", "float16", "int32"))), "dtype"
    elif chosen.dtype != "float32":
        changed, what = replace(chosen, dtype="int32" if chosen.dtype != "int32" else "int64"), "dtype"
    elif at:
        changed, what = replace(chosen, shape=(BATCH, *(size + 1 for size in chosen.shape[1:]))), "shape"
    else:
        changed, what = replace(chosen, shape=(BATCH + 1, *chosen.shape[1:])), "batch"
    every = list(drawn.inputs)
    every[at] = changed
    return Twins(what=what, first=drawn, second=replace(drawn, inputs=tuple(every)), **OTHER_GRAPH)
