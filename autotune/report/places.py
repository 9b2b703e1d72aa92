"""Many modules of a model in few words: ``encoder.layer.{0..11}.attention ×12``."""

import math
from collections.abc import Sequence

OWN = "the model's own code"
"""What stands for a place outside every module."""


def places_words(paths: Sequence[str], *, most: int = 5) -> str:
    """Group module paths that differ in numbers alone; after ``most`` groups only how many places are left."""
    found = grouped(paths)
    told = [words if count == 1 else f"{words} ×{count}" for words, count in found[:most]]
    left = sum(count for _, count in found[most:])
    return ", ".join([*told, *([f"and {left} more"] if left else [])])


def grouped(paths: Sequence[str]) -> list[tuple[str, int]]:
    """Give each group's pattern and how many of the paths are in it, in the order in which groups begin.

    ``{0..3}`` and ``{0,2}`` stand for exactly these numbers. Where not every combination of a group's numbers is there,
    ``*`` stands for those that vary.
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


def _numbers(found: list[int], whole: bool) -> str:
    if len(found) == 1:
        return str(found[0])
    if not whole:
        return "*"
    if len(found) == found[-1] - found[0] + 1:
        return f"{{{found[0]}..{found[-1]}}}"
    return f"{{{','.join(map(str, found))}}}"
