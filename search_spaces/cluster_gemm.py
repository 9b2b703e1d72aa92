"""The kernels of a GEMM with few rows whose k dimension is split among the blocks of a cluster.

Kernels for convolutions read their rows from images. A build takes a second or two to compile.
"""

from collections.abc import Iterator, Mapping

from autotune.errors import SpaceError
from autotune.records.configuration import Scalar
from autotune.records.device import Device
from autotune.records.kernel_problem import GemmProblem
from autotune.records.search_space import Constraint, Parameter, SearchSpace
from autotune.search_spaces.split_gemm import ARCHITECTURES, SplitGemm, architecture

NAME = "cluster_gemm"

SHARED_MEMORY_BYTES = {"sm_80": 163 * 1024, "sm_86": 99 * 1024, "sm_89": 99 * 1024, "sm_90a": 227 * 1024}
"""The most shared memory of a block (CUDA C++ Programming Guide, technical specifications)."""

MOST_ROWS = 8192
"""With more rows kernels that use the tensor cores' newer instructions, unlike these, are faster."""

MOST_ACCUMULATORS = 128
"""The most accumulators of a thread. nvcc 13.0 for sm_90a uses 124 registers for 64, and spills none up to 128."""

OPERAND_ALIGNMENT_BYTES = 16
OPERAND_BYTES = 2
SUMS_PADDING = 4
SMALL = 32
"""The least side of a tile that two warps, the fewest of a block, share: 16 by 32 results."""

STAGES = (4, 3, 6, 8)

PARAMETERS = (
    Parameter(name="tile_m", choices=(64, 16, 32, 128)),
    Parameter(name="tile_n", choices=(64, 16, 32, 128)),
    Parameter(name="tile_k", choices=(64, 32, 128)),
    Parameter(name="warps_m", choices=(2, 1, 4)),
    Parameter(name="warps_n", choices=(2, 1, 4)),
    Parameter(name="stages", choices=STAGES),
)
Tile = Mapping[str, Scalar]


def space(device: Device, problem: GemmProblem) -> SearchSpace:
    """Return the legal tiles for a problem on a device; raises SpaceError if there are none."""
    target = architecture(device)
    alignment = min(problem.alignment_a_bytes, problem.alignment_b_bytes)
    majors = (problem.a_major, problem.b_major)
    served = (
        target is not None and problem.dtype in ("fp16", "bf16") and majors == ("k", "k")
        and problem.m <= MOST_ROWS and alignment == OPERAND_ALIGNMENT_BYTES
    )  # fmt: skip
    if target is None or not served:
        raise SpaceError(
            f"cluster kernels for {problem.canonical} on {device.name}",
            found="{}, {} rows of {} in multiples of {} bytes, {}- and {}-major".format(
                "no GPU" if device.capability is None else "sm_{}{}".format(*device.capability),
                problem.m, problem.dtype, alignment, *majors,
            ),
            expected=f"one of {', '.join(ARCHITECTURES.values())}, at most {MOST_ROWS} rows of fp16 or bf16 in "
            f"multiples of {OPERAND_ALIGNMENT_BYTES} bytes, both k-major",
        )  # fmt: skip
    return SearchSpace(
        backend=NAME, parameters=PARAMETERS, constraints=tuple(_rules(problem, SHARED_MEMORY_BYTES[target]))
    )


GEMM = SplitGemm(name=NAME, space=space)


def shared_bytes(tile: Tile) -> int:
    """Return the shared memory of a block: the stages, or the sums that replace them."""
    rows, columns = int(tile["tile_m"]), int(tile["tile_n"])
    stage = (rows + columns) * int(tile["tile_k"]) * OPERAND_BYTES
    return max(int(tile["stages"]) * stage, rows * (columns + SUMS_PADDING) * 4)


def _rules(problem: GemmProblem, memory_bytes: int) -> Iterator[Constraint]:
    def of_a_warp(tile: Tile) -> tuple[int, int]:
        return int(tile["tile_m"]) // int(tile["warps_m"]), int(tile["tile_n"]) // int(tile["warps_n"])

    def warps_have_whole_instructions(tile: Tile) -> bool:
        return all(side % 16 == 0 and side > 0 for side in of_a_warp(tile))

    def accumulators_stay_in_registers(tile: Tile) -> bool:
        rows, columns = of_a_warp(tile)
        return rows * columns <= MOST_ACCUMULATORS * 32

    def warps_are_few(tile: Tile) -> bool:
        return 2 <= int(tile["warps_m"]) * int(tile["warps_n"]) <= 8

    def tile_is_no_larger_than_needed(tile: Tile) -> bool:
        sides = ((int(tile["tile_m"]), problem.m), (int(tile["tile_n"]), problem.n))
        return all(side <= SMALL or side < 2 * size for side, size in sides)

    def stages_are_used(tile: Tile) -> bool:
        steps = -(-problem.k // int(tile["tile_k"]))
        return int(tile["stages"]) <= max(steps, min(STAGES))

    yield Constraint(reason="a warp's part is in multiples of 16 by 16", holds=warps_have_whole_instructions)
    yield Constraint(
        reason=f"more than {MOST_ACCUMULATORS} accumulators a thread leave no registers",
        holds=accumulators_stay_in_registers,
    )
    yield Constraint(reason="a block has 2 to 8 warps", holds=warps_are_few)
    yield Constraint(
        reason=f"no tile over {SMALL} has twice the size of its dimension", holds=tile_is_no_larger_than_needed
    )
    yield Constraint(reason="no more stages than steps over k", holds=stages_are_used)
    yield Constraint(
        reason=f"the stages must fit in {memory_bytes} bytes of shared memory",
        holds=lambda tile: shared_bytes(tile) <= memory_bytes,
    )
