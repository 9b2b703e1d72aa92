"""The features of a tile on which the correction of its estimated time may depend."""

import math
from collections.abc import Mapping

from autotune.kernels.cost import CostEstimate
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


def features(problem: GemmProblem, candidate: Configuration, estimate: CostEstimate | None) -> dict[str, float]:
    """Return scaled features by name; a feature that another tile does not have counts as 0 there."""
    scaled = {f"kind {candidate.backend}": APART}
    for name, value in candidate.values:
        scaled.update(_of_parameter(name, value))
    for side, size in (("m", problem.m), ("n", problem.n), ("k", problem.k)):
        scaled[side] = math.log2(size) / SIDES
    scaled[f"activation {problem.activation}"] = APART / 2
    for name, share in (estimate.parts if estimate else {}).items():
        scaled[f"part {name}"] = share / PARTS
    return scaled


def _of_parameter(name: str, value: Scalar) -> dict[str, float]:
    if name in OCTAVES:
        return {name: math.log2(max(float(value), 0.5)) / OCTAVES[name]}
    return {f"{name} {value}": APART} if name in CHOICES else {}
