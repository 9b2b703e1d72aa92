"""Forms of the answer of drawn models: a tensor, tuples, lists, dicts, named tuples and dataclasses, nested or not."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch


class Pair(NamedTuple):
    """A named tuple of two parts."""

    logits: object
    hidden: object


class OtherPair(NamedTuple):
    """The same parts under another class."""

    logits: object
    hidden: object


@dataclass
class DataclassOutput:
    """A dataclass of two parts."""

    logits: object
    hidden: object


@dataclass
class OtherDataclassOutput:
    """The same parts under another class."""

    logits: object
    hidden: object


CLASSES: Mapping[str, Callable[[object, object], object]] = {
    "Pair": Pair,
    "OtherPair": OtherPair,
    "DataclassOutput": DataclassOutput,
    "OtherDataclassOutput": OtherDataclassOutput,
}
FORMS = ("tensor", "tuple", "list", "dict", *CLASSES)
KEYS: Sequence[str | int] = ("logits", "hidden", "score", "state", 0, 1)


Inputs = Mapping[str, torch.Tensor]


def _first(inputs: Inputs) -> torch.Tensor:
    return next(iter(inputs.values()))


def _place_of_largest(x: torch.Tensor, inputs: Inputs) -> torch.Tensor:
    # With a slope, so that equal values are no tie.
    return (x + 0.01 * torch.arange(x.shape[-1], dtype=x.dtype)).argmax(-1)


MORE: Mapping[str, Callable[[torch.Tensor, Inputs], torch.Tensor]] = {
    "number": lambda x, inputs: x.mean(),
    "largest": _place_of_largest,
    "above": lambda x, inputs: x > 0.1,
    "count": lambda x, inputs: (x > 0.1).sum(),
    "transposed": lambda x, inputs: x.transpose(0, -1),
    "expanded": lambda x, inputs: x.flatten(1).mean(1, keepdim=True).expand(-1, 5),
    "strided": lambda x, inputs: x.flatten()[::2],
    "input": lambda x, inputs: _first(inputs),
    "view of the input": lambda x, inputs: _first(inputs)[:1],
    "twice": lambda x, inputs: x,
    "constant": lambda x, inputs: torch.arange(3),
    "empty": lambda x, inputs: x.flatten()[:0],
    "double": lambda x, inputs: x.double() * 0.5,
    "half": lambda x, inputs: x.half(),
}
"""Further tensors of an answer by name: of no dimension, of whole numbers, views, inputs and constants."""
BY_VALUES: Mapping[str, Callable[[torch.Tensor, Inputs], torch.Tensor]] = {"chosen": lambda x, inputs: x[x > 0.1]}
"""Further tensors whose shape depends on values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The form: ``parts`` counts the last values that it holds (the last first), ``keys`` are those of a dict.

    ``extra`` is a part beside the tensors: nothing, ``None`` or a number; ``nested`` puts the whole into a tuple, and
    ``more`` names further tensors (see :data:`MORE`) that stand in a dict beside it.
    """

    form: str = "tensor"
    parts: int = 1
    keys: tuple[str | int, ...] = ("logits", "hidden")
    extra: tuple[float | str | None, ...] = ()
    nested: bool = False
    more: tuple[str, ...] = ()

    def of(self, values: Sequence[torch.Tensor], inputs: Inputs) -> object:
        """Return an answer of the values, the last of them first, and of the inputs."""
        answer = self._of(values)
        if not self.more:
            return answer
        return answer, {name: {**MORE, **BY_VALUES}[name](values[0], inputs) for name in self.more}

    def _of(self, values: Sequence[torch.Tensor]) -> object:
        if self.form == "tensor":
            return values[0]
        parts: list[object] = [*values[: self.parts], *self.extra]
        whole: object
        if self.form in CLASSES:
            whole = CLASSES[self.form](parts[0], parts[1] if len(parts) > 1 else None)
        elif self.form == "dict":
            nothing: dict[str | int, object] = {"nothing": None} if len(parts) > len(self.keys) else {}
            whole = {**dict(zip(self.keys, parts, strict=False)), **nothing}
        else:
            whole = tuple(parts) if self.form == "tuple" else parts
        return (whole, values[0] * 1.0) if self.nested else whole


def draw(rng: random.Random, steps: int) -> Answer:
    """Draw a form for a model of that number of steps."""
    form = rng.choice(("tensor", *FORMS))
    keys = tuple(rng.sample(KEYS, 2))
    extra: tuple[float | str | None, ...] = (None,) if form != "tensor" and rng.random() < 0.2 else ()
    parts = min(steps, 1 if extra else rng.choice((1, 2)))
    return Answer(form=form, parts=parts, keys=keys, extra=extra, nested=form != "tensor" and rng.random() < 0.2)
