"""Where a tile stands among the others: what a correction of its estimated time may depend on."""

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
"""Parameters that count by their logarithm, with the factor (in powers of two) over which tiles stay alike."""

CHOICES = ("schedule", "scheduler", "swapped")
"""Parameters of which another value is a distance of ``APART``."""

APART = 1.0
PARTS, SIDES = 0.5, 4.0
"""Over how much of a part of an estimate, and over which factor of m, n, k (in powers of two), times are alike."""


def features(problem: GemmProblem, candidate: Configuration, estimate: CostEstimate | None) -> dict[str, float]:
    """Scaled features by name; one that is absent elsewhere counts as 0 there."""
    found = {f"kind {candidate.backend}": APART}
    for name, value in candidate.values:
        found.update(_of_parameter(name, value))
    for side, size in (("m", problem.m), ("n", problem.n), ("k", problem.k)):
        found[side] = math.log2(size) / SIDES
    found[f"activation {problem.activation}"] = APART / 2
    for name, share in (estimate.parts if estimate else {}).items():
        found[f"part {name}"] = share / PARTS
    return found


def _of_parameter(name: str, value: Scalar) -> dict[str, float]:
    if name in OCTAVES:
        return {name: math.log2(max(float(value), 0.5)) / OCTAVES[name]}
    return {f"{name} {value}": APART} if name in CHOICES else {}
