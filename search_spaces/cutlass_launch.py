"""The launch parameters of a CUTLASS kernel, which need no new build."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from autotune.records.configuration import Configuration
from autotune.records.kernel_problem import GemmProblem

Raster = Literal["heuristic", "along_m", "along_n"]
Decomposition = Literal["data_parallel", "heuristic", "stream_k", "split_k"]
Reduction = Literal["deterministic", "nondeterministic"]

SPLITS = (2, 4, 8, 16)
LEAST_BLOCKS = {1: 1, 2: 2, 4: 3, 8: 6}
"""The least blocks along the shorter side of the grid for each swizzle; with fewer CUTLASS uses a smaller one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CutlassLaunch:
    """The order of the tiles, and the split of the k dimension.

    Only the scheduler ``stream_k`` has other decompositions than ``data_parallel``. ``reduction`` is the order in which
    its partial sums are added.
    """

    swizzle: int = 1
    raster: Raster = "heuristic"
    decomposition: Decomposition = "data_parallel"
    splits: int = 1
    reduction: Reduction = "deterministic"

    def __post_init__(self) -> None:
        if self.swizzle not in LEAST_BLOCKS:
            raise ValueError(f"swizzle must be one of {', '.join(map(str, LEAST_BLOCKS))}, found {self.swizzle}")
        if self.splits < 1 or (self.splits > 1) != (self.decomposition == "split_k"):
            raise ValueError(f"split_k has at least 2 splits and {self.decomposition} has {self.splits}")


def clusters(problem: GemmProblem, tile: Configuration) -> tuple[int, int]:
    """Return the number of clusters that cover D along m and along n."""
    return (
        -(-problem.m // (int(tile["tile_m"]) * int(tile.get("cluster_m", 1)))),
        -(-problem.n // (int(tile["tile_n"]) * int(tile.get("cluster_n", 1)))),
    )


def blocks(problem: GemmProblem, tile: Configuration) -> tuple[int, int]:
    """Return the number of blocks along m and along n, in whole clusters."""
    along_m, along_n = clusters(problem, tile)
    return along_m * int(tile.get("cluster_m", 1)), along_n * int(tile.get("cluster_n", 1))


def effective_swizzle(problem: GemmProblem, tile: Configuration, swizzle: int) -> int:
    """Return the swizzle that CUTLASS uses if this one is requested."""
    shorter = min(blocks(problem, tile))
    return max(size for size, least in LEAST_BLOCKS.items() if size <= swizzle and shorter >= least)


def launches(problem: GemmProblem, tile: Configuration) -> Iterator[CutlassLaunch]:
    """List the launches of one build that differ for this problem; the first is the plainest.

    Kernels of CUTLASS 2.x have no launch parameters.
    """
    if "scheduler" not in dict(tile.values):
        yield CutlassLaunch()
        return
    for decomposition, splits, reduction in _decompositions(problem, tile):
        for swizzle in LEAST_BLOCKS:
            if effective_swizzle(problem, tile, swizzle) == swizzle:
                for raster in _rasters(problem, tile, swizzle):
                    yield CutlassLaunch(
                        swizzle=swizzle,
                        raster=raster,
                        decomposition=decomposition,
                        splits=splits,
                        reduction=reduction,
                    )


def _decompositions(problem: GemmProblem, tile: Configuration) -> Iterator[tuple[Decomposition, int, Reduction]]:
    """List the decompositions with their splits, at most the number of tiles along k.

    The heuristic with splits is split-K, and stream-K's data-parallel is the persistent scheduler: both are left out.
    """
    if tile["scheduler"] == "persistent":
        yield "data_parallel", 1, "deterministic"
        return
    along_k = -(-problem.k // int(tile["tile_k"]))
    kinds: list[tuple[Decomposition, int]] = [("heuristic", 1), ("stream_k", 1)]
    kinds += [("split_k", splits) for splits in SPLITS if splits <= along_k]
    reductions: tuple[Reduction, ...] = ("deterministic", "nondeterministic")
    for decomposition, splits in kinds:
        for reduction in reductions:
            yield decomposition, splits, reduction


def _rasters(problem: GemmProblem, tile: Configuration, swizzle: int) -> tuple[Raster, ...]:
    """List the heuristic and the direction that it does not choose: its longer side varies slowest.

    A single row or column of clusters has one order only.
    """
    if swizzle == 1 and min(clusters(problem, tile)) == 1:
        return ("heuristic",)
    rows, columns = (
        -(-count // swizzle) * swizzle * int(tile[side])
        for count, side in zip(clusters(problem, tile), ("cluster_m", "cluster_n"), strict=True)
    )
    return ("heuristic", "along_n" if columns > rows else "along_m")
