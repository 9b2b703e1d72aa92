"""Two drawn models that differ in one thing, and what that means for their keys: Twins."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from autotune.programs.drawn.models import Drawn, Step, draw
from autotune.programs.identity_pairs.asked import Asked


@dataclass(frozen=True, slots=True, kw_only=True)
class Twins:
    """Two models that differ in one thing, named ``what``.

    ``differ`` are the keys that must not be equal, ``alike`` those that must be. ``serves`` says whether a plan of the
    first answers the second and the other way round, ``None`` if that does not matter here. ``refused`` is a word of
    the refusal of the second, which has no keys then.
    """

    what: str
    first: Drawn
    second: Drawn
    asked: tuple[Asked, Asked] = field(default_factory=lambda: (Asked(), Asked()))
    differ: tuple[str, ...] = ()
    alike: tuple[str, ...] = ()
    serves: tuple[bool, bool] | None = None
    refused: str = ""


OTHER_GRAPH: Mapping[str, Any] = {"differ": ("structure", "plan", "study", "family"), "serves": (False, False)}
OTHER_WEIGHTS: Mapping[str, Any] = {
    "differ": ("weights", "artifact", "study"), "alike": ("structure", "form", "plan", "family", "trial"),
    "serves": (True, True),
}  # fmt: skip
OTHER_FORM: Mapping[str, Any] = {"differ": ("form", "plan", "study")}


def with_step(drawn: Drawn, at: int, step: Step) -> Drawn:
    """Put a step after so many others; names of values before it stay right, those after it move along."""

    def moved(name: str) -> str:
        return f"v{int(name[1:]) + 1}" if name[:1] == "v" and int(name[1:]) >= at else name

    later = [replace(one, takes=tuple(map(moved, one.takes))) for one in drawn.steps[at:]]
    return replace(drawn, steps=(*drawn.steps[:at], step, *later))


def two_of(rng: random.Random, values: Sequence[Any]) -> tuple[Any, Any]:
    """Choose two that differ."""
    first, second = rng.sample(list(values), 2)
    return first, second


def floating_place(rng: random.Random, drawn: Drawn) -> int:
    """A place for one more step: after the embedding of integers, if there is one."""
    return rng.randint(1 if drawn.inputs[0].dtype != "float32" else 0, len(drawn.steps))


def inserted(
    rng: random.Random, operator: str, one: Mapping[str, Any], other: Mapping[str, Any]
) -> tuple[Drawn, Drawn]:
    """One drawn model with one of two steps at a random place."""
    drawn, seed = draw(rng), rng.randrange(2**31)
    at = floating_place(rng, drawn)
    steps = (Step(operator=operator, attributes=each, seed=seed) for each in (one, other))
    first, second = (with_step(drawn, at, step) for step in steps)
    return first, second
