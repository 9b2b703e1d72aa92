"""The tiles of CUTLASS 2.x for sm_75, sm_80, sm_86 and sm_89: sides, warp shapes and stages."""

from collections.abc import Mapping

from autotune.records.configuration import Scalar
from autotune.records.kernel_problem import BYTES, GemmProblem
from autotune.records.search_space import Constraint, Parameter

SHARED_MEMORY_BYTES: Mapping[str, int] = {
    "sm_75": 64 * 1024,
    "sm_80": 163 * 1024,
    "sm_86": 99 * 1024,
    "sm_89": 99 * 1024,
}
"""The most shared memory of a block, by architecture."""

LEAST_ALIGNMENT_BYTES = 4
"""Kernels exist for 8, 4 and 2 elements of half precision."""

ELEMENTS_A_THREAD = 8
"""Elements of half precision that a thread loads at once."""

Tile = Mapping[str, Scalar]


def parameters(architecture: str) -> tuple[Parameter, ...]:
    """Return the parameters of a build; sm_75 has no cp.async, so two stages and the shorter tile."""
    turing = architecture == "sm_75"
    return (
        Parameter(name="tile_m", choices=(128, 64, 256)),
        Parameter(name="tile_n", choices=(128, 64, 256)),
        Parameter(name="tile_k", choices=(32,) if turing else (32, 64)),
        Parameter(name="warp_m", choices=(64, 32)),
        Parameter(name="warp_n", choices=(64, 32)),
        Parameter(name="stages", choices=(2,) if turing else (3, 4, 5, 6, 7, 8, 9, 10)),
    )


def tile_is_offered(tile: Tile) -> bool:
    """Return true for tiles from 64×64 to 256×128 or 128×256."""
    return int(tile["tile_m"]) * int(tile["tile_n"]) <= 256 * 128


def warps_divide_tile(tile: Tile) -> bool:
    """Return true if the shape of a warp divides the tile."""
    return all(int(tile[f"tile_{side}"]) % int(tile[f"warp_{side}"]) == 0 for side in ("m", "n"))


def has_several_warps(tile: Tile) -> bool:
    """Return true if a block has more than one warp."""
    return int(tile["tile_m"]) * int(tile["tile_n"]) > int(tile["warp_m"]) * int(tile["warp_n"])


def every_warp_loads(tile: Tile) -> bool:
    """Return true if A's and B's tiles have rows for each warp, which loads whole rows, 16 bytes per thread."""
    warps = int(tile["tile_m"]) * int(tile["tile_n"]) // (int(tile["warp_m"]) * int(tile["warp_n"]))
    rows_a_warp = 32 * ELEMENTS_A_THREAD // int(tile["tile_k"])
    return warps * rows_a_warp <= min(int(tile["tile_m"]), int(tile["tile_n"]))


def stages_fit(problem: GemmProblem, tile: Tile, shared_memory_bytes: int) -> bool:
    """Return true if all stages of A and B fit in shared memory, which the epilogue reuses after them."""
    width = (int(tile["tile_m"]) + int(tile["tile_n"])) * int(tile["tile_k"]) * BYTES[problem.dtype]
    return int(tile["stages"]) * width <= shared_memory_bytes


def rows_are_aligned(problem: GemmProblem) -> bool:
    """Return true if every operand can be read and written at least two elements at a time."""
    return min(problem.alignment_a_bytes, problem.alignment_b_bytes, problem.alignment_d_bytes) >= LEAST_ALIGNMENT_BYTES


def constraints(problem: GemmProblem, shared_memory_bytes: int) -> tuple[Constraint, ...]:
    """Return all rules."""
    return (
        Constraint(reason="a tile has at most 256×128 results", holds=tile_is_offered),
        Constraint(reason="the shape of a warp must divide the tile", holds=warps_divide_tile),
        Constraint(reason="a block needs more than one warp", holds=has_several_warps),
        Constraint(reason="every warp must have rows of A and of B to load", holds=every_warp_loads),
        Constraint(
            reason=f"all stages must fit in {shared_memory_bytes} bytes of shared memory",
            holds=lambda tile: stages_fit(problem, tile, shared_memory_bytes),
        ),
        Constraint(reason="rows must be multiples of two elements", holds=lambda tile: rows_are_aligned(problem)),
    )
