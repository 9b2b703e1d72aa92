"""The time of a tile on a problem, estimated from first principles; a search over tiles begins with it.

The time of a GEMM is a fixed part (launch, first bytes, last bytes) and the longest of four that overlap: the time of
one SM for its share of the tiles, of all tensor cores at their sustained rate, of memory, and of the L2 cache. An SM's
part counts whole tiles, so a last wave that is half empty costs a full one. One step along k takes the longest of the
tensor cores, the copies into shared memory, and the latency of a copy that its stages do not hide. The epilogue comes
on top, and pingpong hides a part.

The constants are fitted to times on an H200 with cold caches, as in a model, those near the best counting most:
of 219 CUTLASS and 37 cluster kernels, half precision with bias, on six shapes of 32 to 25088 rows (see this module's
test), and of 1028 lean ones on 88 products and convolutions of the study models and of Llama-7B's size. A step of the
latter takes as long as shared memory needs to write and read it at its full rate. Not fitted are the shares of the L2
cache of the former, the cost of activations, and Triton's rate. Quantities that scale with the clock are in clocks, so
that they are valid for other GPUs as far as those have the same structure.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from autotune import registry
from autotune.backend import KernelKind
from autotune.kernels.rates import DeviceRates
from autotune.records.configuration import Configuration, Scalar
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
ACTIVATION_CLOCKS: Mapping[str, int] = {"none": 0, "relu": 1, "gelu": 9, "gelu_tanh": 8, "silu": 5}
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
class _Tile:
    """The numbers of a configuration that decide its time.

    ``scheduled`` kernels can split k, ``spread`` ones do; ``older_share`` is ``None`` with the newest instructions.
    ``lean`` ones compute one tile per block, with ``ctas_per_sm`` blocks on an SM; ``swapped`` ones use the columns of
    a tile as the rows of their instructions.
    """

    m: int
    n: int
    k: int
    cluster_m: int
    cluster_n: int
    pingpong: bool
    spread: bool
    scheduled: bool
    splits: int
    stages: int
    warps: int
    older_share: float | None
    lean: bool
    ctas_per_sm: int
    swapped: bool

    @property
    def constants(self) -> Constants:
        """The constants of its group of kinds."""
        return LEAN if self.lean else TILED

    @property
    def odd(self) -> bool:
        """True if the columns are not a multiple of 32, the width of the stores of CUTLASS's newest kernels."""
        return self.older_share is None and not self.lean and self.n > 16 and self.n % 32 != 0


class KernelCost:
    """Estimates candidates of one problem on one device."""

    def __init__(self, rates: DeviceRates, problem: GemmProblem) -> None:
        self._rates, self._problem = rates, problem
        self._width = BYTES[problem.dtype]
        self._us: dict[_Tile, float] = {}

    def estimate(self, candidate: Configuration) -> CostEstimate | None:
        """Return the estimate of a candidate, of a build at its plainest launch; ``None`` for one that has no tile."""
        tile = self._tile(candidate.backend, dict(candidate.values))
        return None if tile is None else self._estimate(tile)

    def us(self, kind: str, values: Mapping[str, Scalar]) -> float | None:
        """Return the time of :meth:`estimate` for a configuration of a kind, without its parts."""
        tile = self._tile(kind, values)
        if tile is None:
            return None
        if tile not in self._us:
            self._us[tile] = self._estimate(tile).us
        return self._us[tile]

    def _estimate(self, tile: _Tile) -> CostEstimate:
        rates, problem = self._rates, self._problem
        along_m = -(-problem.m // (tile.m * tile.cluster_m)) * tile.cluster_m
        along_n = -(-problem.n // (tile.n * tile.cluster_n)) * tile.cluster_n
        blocks, steps = along_m * along_n, -(-problem.k // tile.k)
        units = blocks * tile.splits
        together = min(self._ctas_per_sm(tile), -(-units // rates.sm_count))
        step_s, tensor_s = self._step_s(tile, together)
        epilogue_s = self._epilogue_s(tile) * together
        busiest_s = self._busiest_sm_s(tile, blocks, steps, step_s, epilogue_s, together)
        cache_s = self._cache_s(tile, blocks)
        memory_s = problem.bytes / (tile.constants.cold_share * rates.memory_bytes_per_s)
        sustained_s = 2 * blocks * tile.m * tile.n * problem.k / ((tile.older_share or 1.0) * rates.flops_per_s)
        busy_s = sum(part**SHARPNESS for part in (busiest_s, sustained_s, cache_s, memory_s)) ** (1 / SHARPNESS)
        total_s = tile.constants.fixed_s + busy_s + SPREAD_S * tile.scheduled
        return CostEstimate(
            us=1e6 * total_s,
            parts={
                "filled": units / (-(-units // rates.sm_count) * rates.sm_count),
                "useful": problem.m * problem.n / (blocks * tile.m * tile.n),
                "tensor": tensor_s / step_s,
                "cache": cache_s / total_s,
                "memory": memory_s / total_s,
                "epilogue": epilogue_s / (epilogue_s + steps * step_s),
            },
        )

    def _tile(self, kind: str, values: Mapping[str, Scalar]) -> _Tile | None:
        """Read a tile from the parameters of any kind of kernel."""
        given = values.get
        n, k = int(given("tile_n", given("block_n", 0))), int(given("tile_k", given("block_k", 0)))
        if not (n and k):
            return None
        m = int(given("tile_m", given("block_m", 0))) or max(16, min(64, 1 << (self._problem.m - 1).bit_length()))
        step_bytes = (m + n) * k * self._width
        ctas_per_sm = int(given("residents", 1))
        decomposition = given("decomposition", "heuristic")
        splits = max(1, int(given("splits", given("split_k", 1))))
        scheduled = given("scheduler") == "stream_k"
        traits = registry.kernel_kinds().get(kind, KernelKind(name=kind))
        return _Tile(
            m=m,
            n=n,
            k=k,
            cluster_m=int(given("cluster_m", 1)),
            cluster_n=int(given("cluster_n", 1)),
            pingpong=given("schedule") == "pingpong",
            spread=scheduled and splits == 1 and decomposition not in ("data_parallel", "split_k"),
            scheduled=scheduled,
            splits=splits,
            stages=max(1, int(given("stages", 0)) or int(0.85 * self._rates.shared_bytes / ctas_per_sm) // step_bytes),
            warps=int(given("warps", 0)) or int(given("warps_m", 2)) * int(given("warps_n", 2)),
            older_share=traits.tensor_rate_share,
            lean=traits.one_tile_per_block,
            ctas_per_sm=ctas_per_sm,
            swapped=bool(given("swapped", False)),
        )

    def _ctas_per_sm(self, tile: _Tile) -> int:
        """Return the blocks per SM: the number that they are made for, or that fits."""
        if tile.older_share is None:
            return tile.ctas_per_sm
        held = tile.stages * (tile.m + tile.n) * tile.k * self._width
        registers = tile.m * tile.n * SUM_BYTES
        return max(1, min(self._rates.shared_bytes // held, REGISTER_BYTES // registers, MOST_CTAS_PER_SM))

    def _step_s(self, tile: _Tile, together: int) -> tuple[float, float]:
        """Return the seconds of one step along k of an SM's blocks, and those of the tensor cores alone."""
        rates, problem = self._rates, self._problem
        tensor = together * 2 * tile.m * tile.n * tile.k / rates.flops_per_clock
        latency = tile.constants.copy_latency_s * rates.clock_hz
        row_bytes = tile.k * self._width
        if tile.older_share is None:
            instructions = math.ceil((tile.n if tile.swapped else tile.m) / 64) * math.ceil(tile.k / 16)
            tensor += together * instructions * tile.constants.instruction_clocks
            tensor *= ODD_COLUMNS if tile.odd else 1.0
            pieces = together * row_bytes / math.gcd(row_bytes, PIECE_BYTES)
            copied = pieces * (tile.m + tile.n) * TILED.piece_clocks
            if tile.lean:
                fetched = pieces * (tile.m / tile.cluster_n + tile.n / tile.cluster_m)
                copied = max(fetched * LEAN.piece_clocks, self._shared_clocks(tile, together))
        else:
            tensor *= max(1.0, SCHEDULERS / (tile.warps * together)) / tile.older_share
            rows = min(tile.m, problem.m) + min(tile.n, problem.n)
            copied = together * rows * row_bytes / INTAKE_BYTES_PER_CLOCK
        # The stage in use cannot be filled.
        arrival = latency + copied if tile.lean else latency
        clocks = max(tensor, copied, arrival / max(tile.stages - 1, 1)) + tile.constants.barrier_clocks
        return clocks / rates.clock_hz, tensor / rates.clock_hz

    def _shared_clocks(self, tile: _Tile, together: int) -> float:
        """Return the clocks in which shared memory writes one step's operands and reads them for the tensor cores."""
        rows, columns = (tile.n, tile.m) if tile.swapped else (tile.m, tile.n)
        instructions = math.ceil(rows / 64) * math.ceil(tile.k / 16)
        moved = instructions * (64 + columns) * 16 + (tile.m + tile.n) * tile.k
        return together * moved * self._width / SHARED_BYTES_PER_CLOCK

    def _epilogue_s(self, tile: _Tile) -> float:
        """Return the seconds of the epilogue of one tile."""
        stripes = tile.older_share is None and not tile.lean and tile.n % 32 != 0
        store = tile.constants.store_clocks * (ODD_STORES if stripes else 1.0)
        clocks = store + ACTIVATION_CLOCKS[self._problem.activation] + 4 * self._problem.residual
        return tile.constants.tile_s + tile.m * tile.n * clocks / (LANES * self._rates.clock_hz)

    def _busiest_sm_s(
        self, tile: _Tile, blocks: int, steps: int, step_s: float, epilogue_s: float, together: int
    ) -> float:
        """Return the seconds of the SM with the most work."""
        rates = self._rates
        cluster = tile.cluster_m * tile.cluster_n
        fill = LARGE_CLUSTERS_FILL if cluster >= LARGE_CLUSTER else 1.0
        fill = CLUSTER_FILL.get(cluster * tile.splits, 1.0) if tile.lean else fill
        usable = max(int(fill * rates.sm_count) // cluster * cluster, 1) * together
        fold_s = tile.constants.fold_s + 2 * 4 * tile.m * tile.n / (INTAKE_BYTES_PER_CLOCK * rates.clock_hz)
        whole_s = self._waves_s(tile, -(-blocks // usable), steps, step_s, epilogue_s)
        if tile.splits > 1:
            waves = -(-blocks * tile.splits // usable)
            folds_s = fold_s * (tile.splits - 1)
            return self._waves_s(tile, waves, -(-steps // tile.splits), step_s, epilogue_s) + folds_s
        if tile.spread and blocks % usable:
            spread_s = -(-blocks * steps // usable) * step_s + -(-blocks // usable) * epilogue_s
            return spread_s + fold_s * max(2, -(-usable // blocks))
        return whole_s

    def _cache_s(self, tile: _Tile, blocks: int) -> float:
        """Return the seconds in which the L2 cache serves operands (multicast: once per cluster) and partial sums."""
        rates, problem = self._rates, self._problem
        rows, columns = min(tile.m, problem.m) / tile.cluster_n, min(tile.n, problem.n) / tile.cluster_m
        moved = blocks * problem.k * self._width * (rows + columns) + 8 * tile.m * tile.n * blocks * (tile.splits - 1)
        held = (problem.m + problem.n) * problem.k * self._width <= rates.cache_bytes
        share = tile.constants.cache_share * (1.0 if held else SPILLED)
        return moved / (share * INTAKE_BYTES_PER_CLOCK * rates.clock_hz * rates.sm_count)

    def _waves_s(self, tile: _Tile, waves: int, steps: int, step_s: float, epilogue_s: float) -> float:
        if tile.pingpong:
            hidden_s = (1 - EXPOSED) * min(steps * step_s, epilogue_s)
            return waves * (steps * step_s + epilogue_s) - (waves - 1) * hidden_s
        return waves * (steps * step_s + epilogue_s)
