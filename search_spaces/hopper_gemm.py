"""Lean kernels of a GEMM by the tensor cores' and copy engines' instructions of sm_90a.

A block computes one tile and ends, so short launches stay short. The blocks of a cluster (``cluster_m`` by
``cluster_n``) fetch shared operands together. The tensor cores need at least 64 rows; if A has few, B's rows are used
as rows (``swapped``) and A's as columns, in multiples of 8. Kernels for convolutions read their rows from images. A
build takes a second to compile.
"""

import math
from collections.abc import Iterator, Mapping

from autotune.errors import SpaceError
from autotune.records.configuration import Scalar
from autotune.records.device import Device
from autotune.records.kernel_problem import GemmProblem, Window
from autotune.records.search_space import Constraint, Parameter, SearchSpace
from autotune.search_spaces.split_gemm import SplitGemm, architecture

NAME = "hopper_gemm"
ARCHITECTURE = "sm_90a"

SHARED_MEMORY_BYTES, RESERVED_BYTES = 228 * 1024, 1024
"""The shared memory of an SM, and the part that the system reserves for each block."""

ALIGNMENT_BYTES = 1024
BARRIER_BYTES = 16
MOST_STAGES = 16
OPERAND_BYTES, SUM_BYTES = 2, 4
OPERAND_ALIGNMENT_BYTES = 16

REGISTERS, REGISTERS_BESIDE, MOST_REGISTERS = 65536, 40, 255
"""The registers of an SM, those of a thread besides its accumulators (nvcc 13.0 uses at most 31), and its limit."""

MOST_ACCUMULATORS = 128
ROWS_OF_INSTRUCTION, MOST_COLUMNS = 64, 256
BOX_COLUMNS = 64
"""The columns of each row that one copy fetches."""

COMMON_ROWS = frozenset({8, 16, 24, 32, 40, 56, 80, 96, 112, 160, 224})
"""Further rows that every problem may take: those of the kernels that are compiled in advance."""

PARTS = 8
"""The most parts into which rows are divided by tiles of exactly that size."""

MOST_BLOCKS = 8
"""The most blocks of a cluster: the limit of every GPU with clusters."""

Tile = Mapping[str, Scalar]


def space(device: Device, problem: GemmProblem) -> SearchSpace:
    """Return the legal tiles for a problem on a device; raises SpaceError if there are none."""
    alignment = min(problem.alignment_a_bytes, problem.alignment_b_bytes)
    majors = (problem.a_major, problem.b_major)
    boxes = problem.window is None or in_boxes(problem.window)
    served = (
        architecture(device) == ARCHITECTURE and problem.dtype in ("fp16", "bf16") and majors == ("k", "k")
        and alignment == OPERAND_ALIGNMENT_BYTES and boxes
    )  # fmt: skip
    if not served:
        raise SpaceError(
            f"kernels of {ARCHITECTURE} for {problem.canonical} on {device.name}",
            found="{}, {} in multiples of {} bytes, {}- and {}-major, channels {}".format(
                "no GPU" if device.capability is None else "sm_{}{}".format(*device.capability),
                problem.dtype, alignment, *majors, "that copies bring" if boxes else "that do not fill them",
            ),
            expected=f"{ARCHITECTURE}, fp16 or bf16 in multiples of {OPERAND_ALIGNMENT_BYTES} bytes, both k-major, and "
            f"channels, or rows of a kernel without padding beside it, that fill copies of {BOX_COLUMNS}",
        )  # fmt: skip
    return SearchSpace(backend=NAME, parameters=_parameters(problem), constraints=tuple(_rules(problem)))


GEMM = SplitGemm(name=NAME, space=space)


def in_boxes(window: Window) -> bool:
    """Return true if copies of 64 columns can fetch a convolution's pixels, by channels or by rows of its kernel."""
    whole_rows = window.padding[1] == 0 and window.dilation[1] == 1
    return window.channels * (window.kernel[1] if whole_rows else 1) % BOX_COLUMNS == 0


def stages(tile: Tile) -> int:
    """Return the number of stages that fit if ``residents`` blocks share an SM."""
    share = SHARED_MEMORY_BYTES // int(tile["residents"]) - RESERVED_BYTES - ALIGNMENT_BYTES
    bias = int(tile["tile_n"]) * SUM_BYTES
    return min(MOST_STAGES, (share - bias) // (_stage_bytes(tile) + BARRIER_BYTES))


def threads(tile: Tile) -> int:
    """Return the threads of a block: groups of four warps that multiply, and a warp that copies."""
    return 128 * int(tile["groups"]) + 32


def shared_bytes(tile: Tile) -> int:
    """Return the shared memory of a block: its stages or the sums that replace them, their barriers, the bias."""
    rows, columns, count = int(tile["tile_m"]), int(tile["tile_n"]), stages(tile)
    padding = 4 if tile["swapped"] else 8 if columns % 16 == 0 else 0  # so that a warp's stores meet in no bank
    body = max(count * _stage_bytes(tile), rows * (columns + padding) * SUM_BYTES)
    return ALIGNMENT_BYTES + body + count * BARRIER_BYTES + columns * SUM_BYTES


def _stage_bytes(tile: Tile) -> int:
    return (int(tile["tile_m"]) + int(tile["tile_n"])) * int(tile["tile_k"]) * OPERAND_BYTES


def _parameters(problem: GemmProblem) -> tuple[Parameter, ...]:
    """Return the sides of tiles: those of the instructions, those that divide few rows evenly, and common ones."""
    whole = (64, 128, 192, 256)
    even = {math.ceil(problem.m / parts / 8) * 8 for parts in range(1, PARTS + 1)}
    rows = sorted(({size for size in even if size <= MOST_COLUMNS} | COMMON_ROWS) - set(whole))
    return (
        Parameter(name="swapped", choices=(False, True)),
        Parameter(name="tile_m", choices=(*whole, *rows)),
        Parameter(name="tile_n", choices=(*whole, 16, 32, 48, 96, 160)),
        Parameter(name="tile_k", choices=(64, 128)),
        Parameter(name="groups", choices=(1, 2)),
        Parameter(name="residents", choices=(1, 2, 3)),
        Parameter(name="cluster_m", choices=(1, 2, 4)),
        Parameter(name="cluster_n", choices=(1, 2, 4)),
    )


def _rules(problem: GemmProblem) -> Iterator[Constraint]:
    def sides(tile: Tile) -> tuple[int, int]:
        """Rows and columns of the instructions."""
        sides_of_tile = int(tile["tile_m"]), int(tile["tile_n"])
        return (sides_of_tile[1], sides_of_tile[0]) if tile["swapped"] else sides_of_tile

    def accumulators(tile: Tile) -> int:
        rows, columns = sides(tile)
        return rows // int(tile["groups"]) * columns // 128

    def rows_are_whole_instructions(tile: Tile) -> bool:
        return sides(tile)[0] % (ROWS_OF_INSTRUCTION * int(tile["groups"])) == 0

    def accumulators_stay_in_registers(tile: Tile) -> bool:
        threads = (128 * int(tile["groups"]) + 32) * int(tile["residents"])
        wanted = accumulators(tile) + REGISTERS_BESIDE
        return accumulators(tile) <= MOST_ACCUMULATORS and wanted <= min(MOST_REGISTERS, REGISTERS // threads)

    def tile_is_no_larger_than_needed(tile: Tile) -> bool:
        rows, columns = int(tile["tile_m"]), int(tile["tile_n"])
        least = (8, ROWS_OF_INSTRUCTION) if tile["swapped"] else (ROWS_OF_INSTRUCTION, 16)
        return all(
            side == smallest or side < 2 * size
            for side, size, smallest in zip((rows, columns), (problem.m, problem.n), least, strict=True)
        )

    def stages_fit(tile: Tile) -> bool:
        rows, columns = int(tile["tile_m"]), int(tile["tile_n"])
        sums = rows * (columns + 8) * SUM_BYTES
        share = SHARED_MEMORY_BYTES // int(tile["residents"]) - RESERVED_BYTES - ALIGNMENT_BYTES - 1024
        return stages(tile) >= 2 and sums <= share

    def blocks_fetch_even_parts(tile: Tile) -> bool:
        parts = int(tile["tile_m"]) / int(tile["cluster_n"]), int(tile["tile_n"]) / int(tile["cluster_m"])
        return all(part % 8 == 0 for part in parts)

    def clusters_are_filled(tile: Tile) -> bool:
        blocks = -(-problem.m // int(tile["tile_m"])), -(-problem.n // int(tile["tile_n"]))
        clusters = int(tile["cluster_m"]), int(tile["cluster_n"])
        filled = all(size == 1 or count >= size for count, size in zip(blocks, clusters, strict=True))
        return filled and clusters[0] * clusters[1] <= MOST_BLOCKS

    yield Constraint(reason="each group of four warps takes 64 rows at a time", holds=rows_are_whole_instructions)
    yield Constraint(
        reason=f"more than {MOST_ACCUMULATORS} accumulators a thread, or too many threads, leave no registers",
        holds=accumulators_stay_in_registers,
    )
    yield Constraint(
        reason="no tile over the smallest has twice the size of its dimension", holds=tile_is_no_larger_than_needed
    )
    yield Constraint(reason="two stages, and the sums, must fit beside the other blocks of an SM", holds=stages_fit)
    yield Constraint(reason="each block of a cluster fetches whole groups of 8 rows", holds=blocks_fetch_even_parts)
    yield Constraint(
        reason=f"a cluster has at most {MOST_BLOCKS} blocks, and none without a tile", holds=clusters_are_filled
    )
    if problem.window is not None:
        yield Constraint(
            reason="steps along k are whole in a convolution", holds=lambda tile: problem.k % int(tile["tile_k"]) == 0
        )
