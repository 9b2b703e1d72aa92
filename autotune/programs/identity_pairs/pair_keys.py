"""The keys of one pair of twins held against each other, and those of its first model built twice."""

import json
import random
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from autotune.errors import ModelError
from autotune.programs.drawn.models import Drawn, build
from autotune.programs.identity_pairs.asked import KEYS, Asked, Keys, keys_of
from autotune.programs.identity_pairs.twin import Twins
from autotune.programs.identity_pairs.twins import draw_twins
from autotune.records.canonical import digest

if TYPE_CHECKING:
    from autotune.model.capture import Captured

ATTEMPTS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One pair: its kind, what differs in it, what is ``wrong`` with its keys, and the refusals of pairs before it."""

    kind: str
    what: str
    wrong: tuple[str, ...] = ()
    redrawn: tuple[str, ...] = ()
    twins: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def compare(kind: str, seed: str) -> Compared:
    """Draw twins of a kind and compare their keys; twins that capture refuses for another reason are drawn anew."""
    import torch

    rng = random.Random(seed)
    redrawn: list[str] = []
    for _ in range(ATTEMPTS):
        twins = draw_twins(kind, rng)
        torch._dynamo.reset()
        try:
            wrong = _wrong(twins)
        except ModelError as error:
            redrawn.append(f"{twins.what}: {str(error).splitlines()[0]}")
            continue
        described = json.dumps([twins.first.as_dict(), twins.second.as_dict()], default=str) if wrong else ""
        return Compared(kind=kind, what=twins.what, wrong=tuple(wrong), redrawn=tuple(redrawn), twins=described)
    return Compared(kind=kind, what="none", wrong=(f"{ATTEMPTS} pairs in turn were refused",), redrawn=tuple(redrawn))


def _wrong(twins: Twins) -> list[str]:
    first = _captured(twins.first)
    own = _keys(first, twins.first, twins.asked[0])
    again = _keys(_captured(twins.first, backwards=True), twins.first, twins.asked[0])
    wrong = [f"equal models built twice differ in {key}" for key in KEYS if key in own.differing(again)]
    if twins.refused:
        return wrong + _not_refused(twins)
    second = first if twins.second is twins.first else _captured(twins.second)
    other = _keys(second, twins.second, twins.asked[1])
    differing = own.differing(other)
    wrong += [f"they share {key}" for key in twins.differ if key not in differing]
    wrong += [f"they differ in {key}" for key in twins.alike if key in differing]
    if twins.serves is not None:
        found = (own.plan.serves(other.plan), other.plan.serves(own.plan))
        if found != twins.serves:
            wrong.append(f"a plan of one serves the other: {found}, expected {twins.serves}")
    return wrong


def _not_refused(twins: Twins) -> list[str]:
    try:
        _captured(twins.second)
    except ModelError as error:
        return [] if twins.refused in str(error) else [f"the refusal does not name {twins.refused}: {error}"]
    return [f"the one that writes into {twins.refused} is not refused"]


def _captured(drawn: Drawn, *, backwards: bool = False) -> "Captured":
    """Build a model anew and capture it; ``backwards`` hands its inputs over in reversed order."""
    from autotune.model.capture import capture

    example, other = drawn.example(1), drawn.example(2)
    if backwards:
        example, other = (dict(reversed(list(one.items()))) for one in (example, other))
    return capture("drawn", drawn.inputs[0].shape[0], build(drawn), example, other)


def _keys(captured: "Captured", drawn: Drawn, asked: Asked) -> Keys:
    return keys_of(captured, asked, digest([asdict(each) for each in drawn.inputs]))
