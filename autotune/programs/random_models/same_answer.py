"""Compares two answers in form, types, order, dtypes, shapes and values, by rules that the product does not share."""

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

TOLERANCE = 2e-2
"""The largest distance of a floating output, relative to its size."""
WHOLE_NUMBERS = "whole numbers"
"""Words of every difference between tensors of whole numbers."""


def differences(expected: object, answer: object, path: str = "answer") -> Iterator[str]:
    """Yield the differences between the answer of a model and that of a plan."""
    import torch

    if type(expected) is not type(answer):
        yield f"{path} is a {type(answer).__name__}, not a {type(expected).__name__}"
    elif isinstance(expected, torch.Tensor) and isinstance(answer, torch.Tensor):
        yield from _tensors(expected, answer, path)
    elif isinstance(expected, dict) and isinstance(answer, dict):
        if list(map(repr, expected)) != list(map(repr, answer)):
            yield f"{path} has the keys {list(answer)}, not {list(expected)}"
        else:
            for key in expected:
                yield from differences(expected[key], answer[key], f"{path}[{key!r}]")
    elif isinstance(expected, tuple | list) and isinstance(answer, tuple | list):
        if len(expected) != len(answer):
            yield f"{path} has {len(answer)} parts, not {len(expected)}"
        else:
            for place, parts in enumerate(zip(expected, answer, strict=True)):
                yield from differences(*parts, f"{path}[{place}]")
    elif dataclasses.is_dataclass(expected):
        for part in dataclasses.fields(expected):
            parts = getattr(expected, part.name), getattr(answer, part.name)
            yield from differences(*parts, f"{path}.{part.name}")
    elif expected != answer:
        yield f"{path} is {answer!r}, not {expected!r}"


def _tensors(expected: "torch.Tensor", answer: "torch.Tensor", path: str) -> Iterator[str]:
    if (expected.dtype, expected.shape) != (answer.dtype, answer.shape):
        yield f"{path} is {answer.dtype} {list(answer.shape)}, not {expected.dtype} {list(expected.shape)}"
        return
    if not expected.is_floating_point():
        if unequal := int((expected != answer).sum()):
            yield f"{path} differs in {unequal} of {expected.numel()} {WHOLE_NUMBERS}"
        return
    reference, values = expected.double(), answer.double()
    finite = reference.isfinite()
    if not bool((finite == values.isfinite()).all()):
        yield f"{path} has values that are not finite in other places"
        return
    size = max(float(reference[finite].norm()), 1e-6)
    distance = float((reference - values)[finite].norm()) / size
    if not distance <= TOLERANCE:
        yield f"{path} differs by {distance:.2g} of its size"
