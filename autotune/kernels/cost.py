"""The time of a tile on a problem, estimated from first principles; a search over tiles begins with it.

The time of a GEMM is a fixed part (launch, first bytes, last bytes) and the longest of four that overlap: the time of
one SM for its share of the tiles, of all tensor cores at their sustained rate, of memory, and of the L2 cache. An SM's
part counts whole tiles, so a last wave that is half empty costs a full one. One step along k takes the longest of the
tensor cores, the copies into shared memory, and the latency of a copy that its stages do not hide. The epilogue comes
on top, and pingpong hides a part. A problem has thousands of tiles, which are estimated together.

The constants are fitted to times on an H200 with cold caches, as in a model, those near the best counting most:
of 219 CUTLASS and 37 cluster kernels, half precision with bias, on six shapes of 32 to 25088 rows (see this module's
test), and of 1028 lean ones on 88 products and convolutions of the study models and of Llama-7B's size. A step of the
latter takes as long as shared memory needs to write and read it at its full rate. Not fitted are the shares of the L2
cache of the former, the cost of activations, and Triton's rate. Quantities that scale with the clock are in clocks, so
that they are valid for other GPUs as far as those have the same structure.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from autotune.kernels.rates import DeviceRates
from autotune.kernels.tile_table import Floats, Tiles, Truths, Wholes
from autotune.records.configuration import Configuration
from autotune.records.kernel_problem import BYTES, GemmProblem


@dataclass(frozen=True, slots=True, kw_only=True)
class Constants:
    """The fitted constants of a group of kinds of kernels.

    ``fixed_s`` and ``tile_s`` (barriers, the epilogue's first and last bytes) are spent once per launch and once per
    tile, ``copy_latency_s`` until a copy has arrived under load, ``fold_s`` waiting for another block's partial sums.
    ``cold_share`` is the share of the memory's sustained rate that is left while the caches are filled anew.
    ``piece_clocks`` is the copy of a row's piece, ``instruction_clocks`` the part of one tensor-core instruction (64
    rows, 16 along k) that does not depend on its columns, ``barrier_clocks`` the wait for a stage and its release, once
    per step along k, ``store_clocks`` the scaling, conversion and store of one result. ``cache_share`` is the rate of
    the L2 cache if all SMs read, as a share of their intake, if it holds both operands.
    """

    fixed_s: float = 2.63e-6
    tile_s: float = 0.81e-6
    copy_latency_s: float = 1.32e-6
    fold_s: float = 0.91e-6
    cold_share: float = 0.56
    piece_clocks: float = 1.25
    instruction_clocks: float = 9.1
    barrier_clocks: float = 31.0
    store_clocks: float = 23.0
    cache_share: float = 0.9


TILED = Constants()
LEAN = Constants(
    fixed_s=3.54e-6,
    tile_s=0.0,
    copy_latency_s=0.36e-6,
    fold_s=0.5e-6,
    cold_share=0.88,
    piece_clocks=2.0,
    instruction_clocks=2.7,
    barrier_clocks=134.0,
    store_clocks=32.0,
    cache_share=1.28,
)
"""The constants of kernels whose blocks compute one tile and end; a piece is one that a block fetches itself."""

FIXED_S = TILED.fixed_s

INTAKE_BYTES_PER_CLOCK = 64
"""The intake of one SM from the L2 cache."""

SHARED_BYTES_PER_CLOCK = 128
"""The bandwidth of the shared memory of an SM."""

SPILLED = 0.67
"""Share of the L2 cache's rate that is left if the operands do not fit in it."""

PIECE_BYTES = 128
"""The most bytes of the equal pieces in which a row of a tile is copied; each piece takes the same time."""

ODD_COLUMNS, ODD_STORES = 2.5, 1.5
"""Factors of the steps and the stores of a tile whose columns are no multiple of 32 (16 columns excepted): its results
are stored in stripes of 16."""

CLUSTER_FILL: Mapping[int, float] = {3: 0.95, 4: 0.9, 6: 0.9, 8: 0.84}
"""Share of the SMs that clusters of this many blocks can use: groups of SMs have different sizes."""

MOST_CTAS_PER_SM, REGISTER_BYTES, SUM_BYTES = 8, 262144, 8
"""The most blocks of such kernels on an SM, the bytes of its registers, and those of one result."""

SCHEDULERS = 4
"""Warps of an SM that compute at once."""

SPREAD_S = 0.63e-6
"""The cost of a scheduler that can split k, in any launch."""

LANES = 128
ACTIVATION_CLOCKS: Mapping[str, int] = {
    "none": 0, "relu": 1, "gelu": 9, "gelu_tanh": 8, "silu": 5, "relu6": 3, "hardswish": 4, "hardsigmoid": 3,
    "sigmoid": 7, "tanh": 7,
}  # fmt: skip
"""Instructions per result of an activation."""

EXPOSED = 0.25
"""Share of an epilogue that pingpong does not hide behind the other group's steps: both need the same issue slots."""

LARGE_CLUSTER, LARGE_CLUSTERS_FILL = 8, 0.91
"""Blocks of a cluster from which on groups of SMs have unused SMs, and the share of SMs that is used."""

SHARPNESS = 3.1
"""Exponent of the norm that combines overlapping times: the longest, and a part of the others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CostEstimate:
    """A time, and the parts of it that a correction may depend on."""

    us: float
    parts: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class CostTable:
    """The times of tiles, and their parts by name; NaN for a tile without sides."""

    us: Floats
    parts: Mapping[str, Floats]


class KernelCost:
    """Estimates candidates of one problem on one device."""

    def __init__(self, rates: DeviceRates, problem: GemmProblem) -> None:
        self._rates, self._problem = rates, problem
        self._width = BYTES[problem.dtype]

    def estimate(self, candidate: Configuration) -> CostEstimate | None:
        """Return the estimate of a candidate, of a build at its plainest launch; ``None`` for one that has no tile."""
        table = self.table(self.tiles([candidate]))
        if np.isnan(table.us[0]):
            return None
        return CostEstimate(us=float(table.us[0]), parts={name: float(part[0]) for name, part in table.parts.items()})

    def tiles(self, candidates: Sequence[Configuration]) -> Tiles:
        """Read the tiles of candidates."""
        return Tiles.of(candidates, self._problem, shared_bytes=self._rates.shared_bytes)

    def table(self, tiles: Tiles) -> CostTable:
        """Estimate tiles together."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return self._table(tiles)

    def _table(self, tiles: Tiles) -> CostTable:
        rates, problem = self._rates, self._problem
        along_m = _ceil(problem.m, tiles.m * tiles.cluster_m) * tiles.cluster_m
        along_n = _ceil(problem.n, tiles.n * tiles.cluster_n) * tiles.cluster_n
        blocks, steps = along_m * along_n, _ceil(problem.k, tiles.k)
        units = blocks * tiles.splits
        together = np.minimum(self._ctas_per_sm(tiles), _ceil(units, rates.sm_count))
        step_s, tensor_s = self._step_s(tiles, together)
        epilogue_s = self._epilogue_s(tiles) * together
        busiest_s = self._busiest_sm_s(tiles, blocks, steps, step_s, epilogue_s, together)
        cache_s = self._cache_s(tiles, blocks)
        memory_s = problem.bytes / (_constant(tiles, "cold_share") * rates.memory_bytes_per_s)
        sustained_s = 2 * blocks * tiles.m * tiles.n * problem.k / (tiles.rate_share * rates.flops_per_s)
        busy_s = (busiest_s**SHARPNESS + sustained_s**SHARPNESS + cache_s**SHARPNESS + memory_s**SHARPNESS) ** (
            1 / SHARPNESS
        )
        total_s = _constant(tiles, "fixed_s") + busy_s + SPREAD_S * tiles.scheduled
        return CostTable(
            us=np.where(tiles.has_sides, 1e6 * total_s, np.nan),
            parts={
                "filled": units / (_ceil(units, rates.sm_count) * rates.sm_count),
                "useful": problem.m * problem.n / (blocks * tiles.m * tiles.n),
                "tensor": tensor_s / step_s,
                "cache": cache_s / total_s,
                "memory": memory_s / total_s,
                "epilogue": epilogue_s / (epilogue_s + steps * step_s),
            },
        )

    def _ctas_per_sm(self, tiles: Tiles) -> Wholes:
        """Return the blocks per SM: the number that they are made for, or that fits."""
        held = tiles.stages * (tiles.m + tiles.n) * tiles.k * self._width
        registers = tiles.m * tiles.n * SUM_BYTES
        fitting = np.minimum(self._rates.shared_bytes // held, REGISTER_BYTES // registers)
        return np.where(tiles.newest, tiles.ctas_per_sm, np.clip(fitting, 1, MOST_CTAS_PER_SM))

    def _step_s(self, tiles: Tiles, together: Wholes) -> tuple[Floats, Floats]:
        """Return the seconds of one step along k of an SM's blocks, and those of the tensor cores alone."""
        rates, problem = self._rates, self._problem
        tensor = together * 2 * tiles.m * tiles.n * tiles.k / rates.flops_per_clock
        row_bytes = tiles.k * self._width
        instructions = _ceil(np.where(tiles.swapped, tiles.n, tiles.m), 64) * _ceil(tiles.k, 16)
        newest_tensor = tensor + together * instructions * _constant(tiles, "instruction_clocks")
        newest_tensor = newest_tensor * np.where(_is_odd(tiles), ODD_COLUMNS, 1.0)
        older_tensor = tensor * np.maximum(1.0, SCHEDULERS / (tiles.warps * together)) / tiles.rate_share
        tensor = np.where(tiles.newest, newest_tensor, older_tensor)
        pieces = together * row_bytes / np.gcd(row_bytes, PIECE_BYTES)
        fetched = pieces * (tiles.m / tiles.cluster_n + tiles.n / tiles.cluster_m)
        lean_copied = np.maximum(fetched * LEAN.piece_clocks, self._shared_clocks(tiles, together))
        newest_copied = np.where(tiles.lean, lean_copied, pieces * (tiles.m + tiles.n) * TILED.piece_clocks)
        rows = np.minimum(tiles.m, problem.m) + np.minimum(tiles.n, problem.n)
        older_copied = together * rows * row_bytes / INTAKE_BYTES_PER_CLOCK
        copied = np.where(tiles.newest, newest_copied, older_copied)
        latency = _constant(tiles, "copy_latency_s") * rates.clock_hz
        # The stage in use cannot be filled.
        arrival = np.where(tiles.lean, latency + copied, latency)
        longest = np.maximum(np.maximum(tensor, copied), arrival / np.maximum(tiles.stages - 1, 1))
        clocks = longest + _constant(tiles, "barrier_clocks")
        return clocks / rates.clock_hz, tensor / rates.clock_hz

    def _shared_clocks(self, tiles: Tiles, together: Wholes) -> Floats:
        """Return the clocks in which shared memory writes one step's operands and reads them for the tensor cores."""
        rows, columns = np.where(tiles.swapped, tiles.n, tiles.m), np.where(tiles.swapped, tiles.m, tiles.n)
        instructions = _ceil(rows, 64) * _ceil(tiles.k, 16)
        moved = instructions * (64 + columns) * 16 + (tiles.m + tiles.n) * tiles.k
        clocks: Floats = together * moved * self._width / SHARED_BYTES_PER_CLOCK
        return clocks

    def _epilogue_s(self, tiles: Tiles) -> Floats:
        """Return the seconds of the epilogue of one tile."""
        stripes = tiles.newest & ~tiles.lean & (tiles.n % 32 != 0)
        store = _constant(tiles, "store_clocks") * np.where(stripes, ODD_STORES, 1.0)
        clocks = store + ACTIVATION_CLOCKS[self._problem.activation] + 4 * self._problem.residual
        return _constant(tiles, "tile_s") + tiles.m * tiles.n * clocks / (LANES * self._rates.clock_hz)

    def _busiest_sm_s(
        self, tiles: Tiles, blocks: Wholes, steps: Wholes, step_s: Floats, epilogue_s: Floats, together: Wholes
    ) -> Floats:
        """Return the seconds of the SM with the most work."""
        rates = self._rates
        cluster = tiles.cluster_m * tiles.cluster_n
        tiled_fill = np.where(cluster >= LARGE_CLUSTER, LARGE_CLUSTERS_FILL, 1.0)
        lean_fill = np.ones(len(cluster))
        for size, share in CLUSTER_FILL.items():
            lean_fill[cluster * tiles.splits == size] = share
        sm_count = (np.where(tiles.lean, lean_fill, tiled_fill) * rates.sm_count).astype(np.int64)
        usable = np.maximum(sm_count // cluster * cluster, 1) * together
        moved_s = 2 * 4 * tiles.m * tiles.n / (INTAKE_BYTES_PER_CLOCK * rates.clock_hz)
        fold_s = _constant(tiles, "fold_s") + moved_s
        waves = _ceil(blocks * tiles.splits, usable)
        folds_s = fold_s * (tiles.splits - 1)
        whole_s = _waves_s(tiles, waves, _ceil(steps, tiles.splits), step_s, epilogue_s) + folds_s
        spread_s = _ceil(blocks * steps, usable) * step_s + _ceil(blocks, usable) * epilogue_s
        spread_s = spread_s + fold_s * np.maximum(2, _ceil(usable, blocks))
        return np.where((tiles.splits == 1) & tiles.spread & (blocks % usable != 0), spread_s, whole_s)

    def _cache_s(self, tiles: Tiles, blocks: Wholes) -> Floats:
        """Return the seconds in which the L2 cache serves operands (multicast: once per cluster) and partial sums."""
        rates, problem = self._rates, self._problem
        rows = np.minimum(tiles.m, problem.m) / tiles.cluster_n
        columns = np.minimum(tiles.n, problem.n) / tiles.cluster_m
        partial_bytes = 8 * tiles.m * tiles.n * blocks * (tiles.splits - 1)
        moved = blocks * problem.k * self._width * (rows + columns) + partial_bytes
        held = (problem.m + problem.n) * problem.k * self._width <= rates.cache_bytes
        share = _constant(tiles, "cache_share") * (1.0 if held else SPILLED)
        seconds: Floats = moved / (share * INTAKE_BYTES_PER_CLOCK * rates.clock_hz * rates.sm_count)
        return seconds


def _ceil(size: int | Wholes, part: int | Wholes) -> Wholes:
    return np.asarray(-(-size // part))


def _constant(tiles: Tiles, name: str) -> Floats:
    """Return a constant of each tile's group of kinds."""
    constant: Floats = np.where(tiles.lean, getattr(LEAN, name), getattr(TILED, name))
    return constant


def _is_odd(tiles: Tiles) -> Truths:
    """Return true for columns that are not a multiple of 32, the width of the stores of CUTLASS's newest kernels."""
    odd: Truths = tiles.newest & ~tiles.lean & (tiles.n > 16) & (tiles.n % 32 != 0)
    return odd


def _waves_s(tiles: Tiles, waves: Wholes, steps: Wholes, step_s: Floats, epilogue_s: Floats) -> Floats:
    hidden_s = np.where(tiles.pingpong, (1 - EXPOSED) * np.minimum(steps * step_s, epilogue_s), 0.0)
    busy_s: Floats = waves * (steps * step_s + epilogue_s) - (waves - 1) * hidden_s
    return busy_s
