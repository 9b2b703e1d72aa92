"""Compares the keys of the two models of a pair, and those of its first model built twice."""

import json
import random
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from autotune.errors import ModelError
from autotune.programs.drawn.models import ModelSpec, build
from autotune.programs.identity_pairs.keys import KEYS, Keys, keys_of
from autotune.programs.identity_pairs.kinds import draw_pair
from autotune.programs.identity_pairs.model_pair import ModelPair
from autotune.programs.identity_pairs.request import Request
from autotune.records.canonical import digest

if TYPE_CHECKING:
    from autotune.model.capture import Captured

ATTEMPTS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedPair:
    """A pair: its kind, its difference, everything ``wrong`` with its keys, and the refusals of pairs before it.

    ``models`` is JSON of both models if something is wrong.
    """

    kind: str
    difference: str
    wrong: tuple[str, ...] = ()
    redrawn: tuple[str, ...] = ()
    models: str = ""

    def as_dict(self) -> dict[str, object]:
        """Return plain data for JSON."""
        return {
            "kind": self.kind,
            "what": self.difference,
            "wrong": self.wrong,
            "redrawn": self.redrawn,
            "twins": self.models,
        }


def compare(kind: str, seed: str) -> ComparedPair:
    """Draw a pair of a kind and compare its keys; a pair that capture refuses for another reason is drawn anew."""
    import torch

    rng = random.Random(seed)
    redrawn: list[str] = []
    for _ in range(ATTEMPTS):
        pair = draw_pair(kind, rng)
        torch._dynamo.reset()
        try:
            wrong = _wrong(pair)
        except ModelError as error:
            redrawn.append(f"{pair.difference}: {str(error).splitlines()[0]}")
            continue
        models = json.dumps([pair.first.as_dict(), pair.second.as_dict()], default=str) if wrong else ""
        return ComparedPair(
            kind=kind, difference=pair.difference, wrong=tuple(wrong), redrawn=tuple(redrawn), models=models
        )
    wrong = [f"{ATTEMPTS} pairs in turn were refused"]
    return ComparedPair(kind=kind, difference="none", wrong=tuple(wrong), redrawn=tuple(redrawn))


def _wrong(pair: ModelPair) -> list[str]:
    expected = pair.expected
    first = _captured(pair.first)
    own = _keys(first, pair.first, pair.requests[0])
    again = _keys(_captured(pair.first, backwards=True), pair.first, pair.requests[0])
    wrong = [f"equal models built twice differ in {key}" for key in KEYS if key in own.differing(again)]
    if expected.refused:
        return wrong + _not_refused(pair)
    second = first if pair.second is pair.first else _captured(pair.second)
    other = _keys(second, pair.second, pair.requests[1])
    differing = own.differing(other)
    wrong += [f"they share {key}" for key in expected.differ if key not in differing]
    wrong += [f"they differ in {key}" for key in expected.alike if key in differing]
    if expected.serves is not None:
        serves = (own.plan.serves(other.plan), other.plan.serves(own.plan))
        if serves != expected.serves:
            wrong.append(f"a plan of one serves the other: {serves}, expected {expected.serves}")
    return wrong


def _not_refused(pair: ModelPair) -> list[str]:
    buffer = pair.expected.refused
    try:
        _captured(pair.second)
    except ModelError as error:
        return [] if buffer in str(error) else [f"the refusal does not name {buffer}: {error}"]
    return [f"the one that writes into {buffer} is not refused"]


def _captured(spec: ModelSpec, *, backwards: bool = False) -> "Captured":
    """Build a model anew and capture it; ``backwards`` passes its inputs in reversed order."""
    from autotune.model.capture import capture

    examples = [spec.example(1), spec.example(2)]
    if backwards:
        examples = [dict(reversed(example.items())) for example in examples]
    return capture("drawn", spec.inputs[0].shape[0], build(spec), *examples)


def _keys(captured: "Captured", spec: ModelSpec, request: Request) -> Keys:
    return keys_of(captured, request, digest([asdict(drawn_input) for drawn_input in spec.inputs]))
