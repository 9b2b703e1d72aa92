"""Places in a model, grouped so that many take few words: ``encoder.layer.{0..11}.attention ×12``."""

import math
from collections.abc import Sequence

OWN = "the model's own code"
"""The words for a place outside all modules."""


def places_words(paths: Sequence[str], *, most: int = 5) -> str:
    """Return module paths, grouped if they differ only in numbers; after ``most`` groups, the number of the rest."""
    groups = grouped(paths)
    texts = [pattern if count == 1 else f"{pattern} ×{count}" for pattern, count in groups[:most]]
    left = sum(count for _, count in groups[most:])
    return ", ".join([*texts, *([f"and {left} more"] if left else [])])


def grouped(paths: Sequence[str]) -> list[tuple[str, int]]:
    """Return the pattern of each group and the number of its paths, in the order of the first path of each group.

    ``{0..3}`` and ``{0,2}`` mean exactly these numbers. If a group lacks a combination of its numbers, ``*`` stands for
    each number that varies.
    """
    groups: dict[tuple[str | None, ...], list[tuple[int, ...]]] = {}
    for path in paths:
        parts = path.split(".")
        shape = tuple(None if part.isdecimal() else part for part in parts)
        groups.setdefault(shape, []).append(tuple(int(part) for part in parts if part.isdecimal()))
    return [(_pattern(shape, members) or OWN, len(members)) for shape, members in groups.items()]


def _pattern(shape: tuple[str | None, ...], members: list[tuple[int, ...]]) -> str:
    columns = [sorted(set(column)) for column in zip(*members, strict=True)]
    whole = len(set(members)) == math.prod(map(len, columns))
    numbers = iter(columns)
    return ".".join(_numbers(next(numbers), whole) if part is None else part for part in shape)


def _numbers(numbers: list[int], whole: bool) -> str:
    if len(numbers) == 1:
        return str(numbers[0])
    if not whole:
        return "*"
    if len(numbers) == numbers[-1] - numbers[0] + 1:
        return f"{{{numbers[0]}..{numbers[-1]}}}"
    return f"{{{','.join(map(str, numbers))}}}"
