"""Two drawn models that differ in one thing, and the effect on their keys: ModelPair, Expected."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from autotune.programs.drawn.models import ModelSpec, Step, draw, with_step
from autotune.programs.identity_pairs.request import Request

Choice = TypeVar("Choice")


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """The keys that must ``differ``, and those that must be ``alike``.

    ``serves`` says whether a plan of the first serves the second, and the other way round; ``None`` if that does not
    matter here. ``refused`` is a word of the refusal of the second, which has no keys then.
    """

    differ: tuple[str, ...] = ()
    alike: tuple[str, ...] = ()
    serves: tuple[bool, bool] | None = None
    refused: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPair:
    """Two models with a request for each; ``difference`` names the one thing in which they differ."""

    difference: str
    first: ModelSpec
    second: ModelSpec
    requests: tuple[Request, Request] = field(default_factory=lambda: (Request(), Request()))
    expected: Expected


OTHER_GRAPH = Expected(differ=("structure", "plan", "study", "family"), serves=(False, False))
OTHER_WEIGHTS = Expected(
    differ=("weights", "artifact", "study"), alike=("structure", "form", "plan", "family", "trial"), serves=(True, True)
)
OTHER_FORM = Expected(differ=("form", "plan", "study"))


def two_of(rng: random.Random, values: Sequence[Choice]) -> tuple[Choice, Choice]:
    """Choose two that differ."""
    first, second = rng.sample(list(values), 2)
    return first, second


def floating_place(rng: random.Random, spec: ModelSpec) -> int:
    """Return a place for one more step: after the embedding of integers, if there is one."""
    return rng.randint(1 if spec.inputs[0].dtype != "float32" else 0, len(spec.steps))


def inserted(
    rng: random.Random, operator: str, first: Mapping[str, object], second: Mapping[str, object]
) -> tuple[ModelSpec, ModelSpec]:
    """Return one drawn model with either of two steps at a random place."""
    spec, seed = draw(rng), rng.randrange(2**31)
    place = floating_place(rng, spec)
    steps = (Step(operator=operator, attributes=attributes, seed=seed) for attributes in (first, second))
    with_first, with_second = (with_step(spec, place, step) for step in steps)
    return with_first, with_second
