"""The features of a tile on which the correction of its estimated time may depend."""

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import TypeVar

from autotune.kernels.tile_table import Floats
from autotune.records.configuration import Configuration, Scalar
from autotune.records.kernel_problem import GemmProblem

OCTAVES: Mapping[str, float] = {
    **{f"tile_{side}": 1.0 for side in "mnk"},
    **{f"block_{side}": 1.0 for side in "mnk"},
    **{f"cluster_{side}": 1.2 for side in "mn"},
    **{f"{name}_{side}": 1.0 for name in ("warp", "warps") for side in "mn"},
    **{name: 1.0 for name in ("stages", "warps", "split_k", "splits", "groups", "residents")},
}
"""Parameters that count by their logarithm, with their length scale in powers of two."""

CHOICES = ("schedule", "scheduler", "swapped")
"""Parameters whose values have a distance of ``APART``."""

APART = 1.0
PARTS, SIDES = 0.5, 4.0
"""The length scales of a part of an estimate, and of m, n, k in powers of two."""


ShareT = TypeVar("ShareT", float, Floats)

TILES = 65536
"""The tiles whose features are kept: a model's problems have the same ones."""


def features_of_problem(problem: GemmProblem) -> dict[str, float]:
    """Return the scaled features of a problem by name."""
    sides = (("m", problem.m), ("n", problem.n), ("k", problem.k))
    scaled = {side: math.log2(size) / SIDES for side, size in sides}
    return {**scaled, f"activation {problem.activation}": APART / 2}


@lru_cache(TILES)
def features_of_tile(candidate: Configuration) -> Mapping[str, float]:
    """Return the scaled features of a tile by name; a feature that another tile does not have counts as 0 there."""
    scaled = {f"kind {candidate.backend}": APART}
    for name, value in candidate.values:
        scaled.update(_of_parameter(name, value))
    return scaled


def features_of_parts(parts: Mapping[str, ShareT]) -> dict[str, ShareT]:
    """Return the scaled features of the parts of an estimate, or of a table of estimates."""
    return {f"part {name}": share / PARTS for name, share in parts.items()}


def _of_parameter(name: str, value: Scalar) -> dict[str, float]:
    if name in OCTAVES:
        return {name: math.log2(max(float(value), 0.5)) / OCTAVES[name]}
    return {f"{name} {value}": APART} if name in CHOICES else {}
