"""The tiles of many candidates as columns of numbers, as the cost model reads them: Tiles."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import numpy.typing as npt

from autotune import registry
from autotune.backend import KernelKind
from autotune.records.configuration import Configuration
from autotune.records.kernel_problem import BYTES, GemmProblem

Floats = npt.NDArray[np.float64]
Wholes = npt.NDArray[np.int64]
Truths = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiles:
    """The numbers of candidates that decide their times, one entry each.

    ``scheduled`` kernels can split k, ``spread`` ones do; ``newest`` ones use the newest instructions, the others reach
    ``rate_share`` of the tensor cores' rate. ``lean`` ones compute one tile per block, with ``ctas_per_sm`` blocks on
    an SM; ``swapped`` ones use the columns of a tile as the rows of their instructions. Without ``has_sides`` a
    candidate has no tile, and its other numbers mean nothing.
    """

    m: Wholes
    n: Wholes
    k: Wholes
    cluster_m: Wholes
    cluster_n: Wholes
    splits: Wholes
    stages: Wholes
    warps: Wholes
    ctas_per_sm: Wholes
    rate_share: Floats
    has_sides: Truths
    pingpong: Truths
    spread: Truths
    scheduled: Truths
    newest: Truths
    lean: Truths
    swapped: Truths

    @classmethod
    def of(cls, candidates: Sequence[Configuration], problem: GemmProblem, *, shared_bytes: int) -> "Tiles":
        """Read the parameters of candidates of any kinds; ``shared_bytes`` are those of an SM."""
        kinds = registry.kernel_kinds()
        rows = [_row(candidate, problem, shared_bytes, kinds.get(candidate.backend)) for candidate in candidates]
        names = [field.name for field in fields(cls)]
        columns = dict(zip(names, np.array(rows, dtype=np.float64).reshape(len(rows), len(names)).T, strict=True))

        def whole(name: str) -> Wholes:
            return columns[name].astype(np.int64)

        def truth(name: str) -> Truths:
            return columns[name].astype(np.bool_)

        return cls(
            m=whole("m"), n=whole("n"), k=whole("k"), cluster_m=whole("cluster_m"), cluster_n=whole("cluster_n"),
            splits=whole("splits"), stages=whole("stages"), warps=whole("warps"), ctas_per_sm=whole("ctas_per_sm"),
            rate_share=columns["rate_share"], has_sides=truth("has_sides"), pingpong=truth("pingpong"),
            spread=truth("spread"), scheduled=truth("scheduled"), newest=truth("newest"), lean=truth("lean"),
            swapped=truth("swapped"),
        )  # fmt: skip

    def split(self, splits: int, *, spread: bool) -> "Tiles":
        """Return the tiles launched with another number of splits; only a scheduler spreads work."""
        return replace(self, splits=np.full_like(self.splits, splits), spread=self.scheduled & spread)

    def rows(self, numbers: Wholes) -> "Tiles":
        """Return some of the tiles."""
        return type(self)(**{field.name: getattr(self, field.name)[numbers] for field in fields(self)})

    def __len__(self) -> int:
        return len(self.m)


def _row(
    candidate: Configuration, problem: GemmProblem, shared_bytes: int, kind: KernelKind | None
) -> tuple[float, ...]:
    """Return the numbers of one candidate, in the order of the fields."""
    given = dict(candidate.values).get
    n, k = int(given("tile_n", given("block_n", 0))), int(given("tile_k", given("block_k", 0)))
    m = int(given("tile_m", given("block_m", 0))) or max(16, min(64, 1 << (problem.m - 1).bit_length()))
    has_sides = bool(n and k)
    n, k = n or 1, k or 1
    step_bytes = (m + n) * k * BYTES[problem.dtype]
    ctas_per_sm = int(given("residents", 1))
    splits = max(1, int(given("splits", given("split_k", 1))))
    scheduled = given("scheduler") == "stream_k"
    older_share = kind.tensor_rate_share if kind else None
    return (
        m, n, k, int(given("cluster_m", 1)), int(given("cluster_n", 1)), splits,
        max(1, int(given("stages", 0)) or int(0.85 * shared_bytes / ctas_per_sm) // step_bytes),
        int(given("warps", 0)) or int(given("warps_m", 2)) * int(given("warps_n", 2)), ctas_per_sm,
        1.0 if older_share is None else older_share, has_sides, given("schedule") == "pingpong",
        scheduled and spreads(splits, str(given("decomposition", "heuristic"))), scheduled, older_share is None,
        bool(kind and kind.one_tile_per_block), bool(given("swapped", False)),
    )  # fmt: skip


def spreads(splits: int, decomposition: str) -> bool:
    """Return true if a scheduler spreads the work of a launch evenly, not in whole tiles or whole splits."""
    return splits == 1 and decomposition not in ("data_parallel", "split_k")
