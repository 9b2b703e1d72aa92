"""Whether two answers are the same in form, types, order, dtypes, shapes and values, by rules of their own."""

import dataclasses
from collections.abc import Iterator
from typing import Any

TOLERANCE = 2e-2
"""The largest distance of a floating output, relative to its size."""


def differences(expected: Any, found: Any, path: str = "answer") -> Iterator[str]:
    """Yield what differs between the answer of a model and that of a plan."""
    import torch

    if type(expected) is not type(found):
        yield f"{path} is a {type(found).__name__}, not a {type(expected).__name__}"
    elif isinstance(expected, torch.Tensor):
        yield from _tensors(expected, found, path)
    elif isinstance(expected, dict):
        if list(map(repr, expected)) != list(map(repr, found)):
            yield f"{path} has the keys {list(found)}, not {list(expected)}"
        else:
            for key in expected:
                yield from differences(expected[key], found[key], f"{path}[{key!r}]")
    elif isinstance(expected, tuple | list):
        if len(expected) != len(found):
            yield f"{path} has {len(found)} parts, not {len(expected)}"
        else:
            for at, (one, other) in enumerate(zip(expected, found, strict=True)):
                yield from differences(one, other, f"{path}[{at}]")
    elif dataclasses.is_dataclass(expected):
        for each in dataclasses.fields(expected):
            yield from differences(getattr(expected, each.name), getattr(found, each.name), f"{path}.{each.name}")
    elif expected != found:
        yield f"{path} is {found!r}, not {expected!r}"


def _tensors(expected: Any, found: Any, path: str) -> Iterator[str]:
    if (expected.dtype, expected.shape) != (found.dtype, found.shape):
        yield f"{path} is {found.dtype} {list(found.shape)}, not {expected.dtype} {list(expected.shape)}"
        return
    if not expected.is_floating_point():
        if unequal := int((expected != found).sum()):
            yield f"{path} differs in {unequal} of {expected.numel()} whole numbers"
        return
    one, other = expected.double(), found.double()
    finite = one.isfinite()
    if not bool((one.isfinite() == other.isfinite()).all()):
        yield f"{path} has values that are not finite in other places"
        return
    size = max(float(one[finite].norm()), 1e-6)
    apart = float((one - other)[finite].norm()) / size
    if not apart <= TOLERANCE:
        yield f"{path} differs by {apart:.2g} of its size"
