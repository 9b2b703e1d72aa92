"""The tiles of CUTLASS 3.x for sm_90a: sides, clusters, schedules, and the stages that fit beside the epilogue.

Half-precision operands, both K-major, fp32 accumulators, D row-major.
"""

import math
from collections.abc import Mapping

from autotune.records.configuration import Scalar
from autotune.records.kernel_problem import BIAS_BYTES, BYTES, GemmProblem
from autotune.records.search_space import Constraint, Parameter

SHARED_MEMORY_BYTES = 232448
"""The most shared memory of a block on sm_90."""

TMA_ALIGNMENT_BYTES = 16
"""Only the libraries compute a problem whose rows are no multiple of this: CUTLASS's other copies have no epilogue."""

MOST_ACCUMULATORS = 192
"""Accumulators of a thread that are known to stay in registers; 256 spill about 4.8 kB."""

PARAMETERS: tuple[Parameter, ...] = (
    Parameter(name="tile_m", choices=(128, 64, 192, 256)),
    Parameter(name="tile_n", choices=(128, 16, 32, 48, 64, 80, 96, 112, 160, 192, 256)),
    Parameter(name="tile_k", choices=(64, 32, 48, 96, 128)),
    Parameter(name="cluster_m", choices=(1, 2, 4, 8)),
    Parameter(name="cluster_n", choices=(1, 2, 4, 8)),
    Parameter(name="schedule", choices=("cooperative", "pingpong")),
    Parameter(name="scheduler", choices=("persistent", "stream_k")),
)
"""The parameters of a build; ``stream_k`` includes split-K."""

Tile = Mapping[str, Scalar]


def whole(tile: Tile, name: str) -> int:
    """Return the value of a parameter that is a whole number."""
    return int(tile[name])


def stages(problem: GemmProblem, tile: Tile, shared_memory_bytes: int = SHARED_MEMORY_BYTES) -> int:
    """Return the number of tiles of A and B that fit beside the epilogue; each has 16 bytes of barriers.

    Verified with compiled kernels that have a bias, half-precision results and TMA; others are computed the same way.
    """
    width = (whole(tile, "tile_m") + whole(tile, "tile_n")) * whole(tile, "tile_k") * BYTES[problem.dtype]
    left = shared_memory_bytes // 128 * 128 - _round_up(epilogue_bytes(problem, tile), 128)
    return max(left, 0) // (_round_up(width, 128) + 16)


def epilogue_bytes(problem: GemmProblem, tile: Tile) -> int:
    """Return the shared memory of the epilogue: tiles of D, which reuse those of a residual."""
    rows = 64 if tile["schedule"] == "pingpong" else 128
    columns = math.gcd(32, whole(tile, "tile_n"))
    count = max(whole(tile, "tile_m") // rows, 1) * (whole(tile, "tile_n") // columns)
    out = min(count, 2)
    source = max(min(count, 4), out + 1) if problem.residual else min(count, 4)
    row_bytes = columns * BYTES[problem.output]
    alignment = 8 * row_bytes  # the swizzle of a tile repeats every eight rows
    collective = (source if problem.residual else out) * rows * row_bytes
    bias = BIAS_BYTES * whole(tile, "tile_n") if problem.bias else 0
    return _round_up(_round_up(collective + bias, alignment) + 16 * source, alignment)


def copies_are_aligned(problem: GemmProblem) -> bool:
    """Return true if rows of A, B, C and D are multiples of 16 bytes, as TMA needs."""
    rows = problem.alignment_a_bytes, problem.alignment_b_bytes, problem.alignment_d_bytes
    return min(rows) >= TMA_ALIGNMENT_BYTES


def warp_groups_divide_rows(tile: Tile) -> bool:
    """Return true if the rows suit the warp groups of 64: two groups share a tile, except under pingpong."""
    return whole(tile, "tile_m") % (64 if tile["schedule"] == "pingpong" else 128) == 0


def columns_are_whole(tile: Tile) -> bool:
    """Return true if columns are a multiple of 16, the width of the epilogue's stores."""
    return whole(tile, "tile_n") % 16 == 0


def accumulators_stay_in_registers(tile: Tile) -> bool:
    """Return true for at most 192 accumulators per thread: 256 spill."""
    groups = 1 if tile["schedule"] == "pingpong" else 2
    return whole(tile, "tile_m") * whole(tile, "tile_n") <= MOST_ACCUMULATORS * 128 * groups


def cluster_is_portable(tile: Tile) -> bool:
    """Return true if a cluster is a power of two along each dimension and has at most 8 blocks."""
    sides = whole(tile, "cluster_m"), whole(tile, "cluster_n")
    return all(side in (1, 2, 4, 8) for side in sides) and math.prod(sides) <= 8


def scheduler_suits_schedule(tile: Tile) -> bool:
    """Return false for pingpong, which assigns whole tiles, with stream-K, which assigns parts of tiles."""
    return not (tile["schedule"] == "pingpong" and tile["scheduler"] == "stream_k")


def constraints(problem: GemmProblem, shared_memory_bytes: int) -> tuple[Constraint, ...]:
    """Return all rules, those that depend on the problem last."""
    return (
        Constraint(
            reason="cooperative needs tile_m in multiples of 128, pingpong of 64", holds=warp_groups_divide_rows
        ),
        Constraint(reason="tile_n must be a multiple of 16", holds=columns_are_whole),
        Constraint(
            reason=f"more than {MOST_ACCUMULATORS} accumulators a thread spill", holds=accumulators_stay_in_registers
        ),
        Constraint(
            reason="a cluster has 1, 2, 4 or 8 blocks along a dimension and at most 8 in all", holds=cluster_is_portable
        ),
        Constraint(reason="pingpong cannot go with stream-K", holds=scheduler_suits_schedule),
        Constraint(
            reason="rows of A, B and D must be multiples of 16 bytes", holds=lambda _: copies_are_aligned(problem)
        ),
        Constraint(
            reason=f"two stages and the epilogue must fit in {shared_memory_bytes} bytes of shared memory",
            holds=lambda tile: stages(problem, tile, shared_memory_bytes) >= 2,
        ),
    )


def _round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit
