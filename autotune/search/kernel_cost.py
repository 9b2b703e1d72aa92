"""How long a tile takes on a problem, from first principles: where a search over tiles begins.

The time of a GEMM is a fixed part (launch, first bytes, last bytes) and the longest of four that overlap: what one
multiprocessor does for its share of the tiles, what all tensor cores sustain together, what memory moves, and what the
L2 cache hands out. A multiprocessor's part counts whole tiles, so a last wave that is half empty costs a full one. One
step along k takes the longest of the tensor cores, their shortest instruction, the bytes that the multiprocessor can
take in, and the latency of a copy that its stages do not hide. The epilogue comes on top, and pingpong hides a part.

The constants are fitted to times of six CUTLASS tiles on seven shapes on an H200 (see this module's test); they are in
clocks, so that they carry over to other parts as far as those are built alike.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from autotune.configuration import Configuration, Scalar
from autotune.kernel_problem import BYTES, GemmProblem
from autotune.search.kernel_rates import DeviceRates

FIXED_S = 3.0e-6
COPY_LATENCY_S = 0.8e-6
TILE_OVERHEAD_S = 0.3e-6
"""Barriers and the epilogue's first and last bytes, once a tile."""

INTAKE_BYTES_PER_CLOCK = 64
"""What one multiprocessor takes in from the L2 cache."""

CACHE_SHARE, SPILLED_CACHE_SHARE = 0.9, 0.45
"""What the L2 cache hands out when all multiprocessors ask, as a share of what they could take in: where it holds both
operands, and where they go through it."""

INSTRUCTION_CLOCKS = 40
"""The shortest time of one tensor-core step of 16 along k, in which a narrow tile waits."""

BARRIER_CLOCKS = 20
"""Waiting for a stage and handing it back, once a step along k."""

OLDER_INSTRUCTIONS = {"cluster_gemm": 0.62, "triton_gemm": 0.62}
"""Share of the tensor cores' rate that kinds of kernels reach which do not use the newest instructions."""

LANES = 128
EPILOGUE_CLOCKS: Mapping[str, int] = {"none": 6, "relu": 7, "gelu": 40, "gelu_tanh": 22, "silu": 18}
"""Instructions of one result in the epilogue, by activation; the one with erf is dear."""

EXPOSED = 0.65
"""Share of an epilogue that pingpong does not hide behind the other group's steps: both want the same issue slots."""

SHARPNESS = 6.0
"""Exponent of the norm that joins what overlaps: the longest, and a little for the others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A time, and the parts of it that a correction may depend on."""

    us: float
    parts: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tile:
    """The numbers of a configuration that decide its time."""

    m: int
    n: int
    k: int
    cluster_m: int
    cluster_n: int
    pingpong: bool
    spread: bool
    splits: int
    stages: int
    rate: float


class KernelCost:
    """Estimates candidates of one problem on one device."""

    def __init__(self, rates: DeviceRates, problem: GemmProblem) -> None:
        self._rates, self._problem = rates, problem

    def estimate(self, candidate: Configuration) -> Estimate | None:
        """Tell how long a candidate takes, a build as it is launched plainly; ``None`` for one that has no tile."""
        tile = self._tile(candidate.backend, dict(candidate.values))
        if tile is None:
            return None
        rates, problem = self._rates, self._problem
        along_m = -(-problem.m // (tile.m * tile.cluster_m)) * tile.cluster_m
        along_n = -(-problem.n // (tile.n * tile.cluster_n)) * tile.cluster_n
        steps = -(-problem.k // tile.k)
        step_s, tensor_s = self._step_s(tile)
        epilogue_s = self._epilogue_s(tile)
        blocks = along_m * along_n
        shared_out = self._shared_out_s(tile, blocks, steps, step_s, epilogue_s)
        cache_s = self._cache_s(tile, blocks)
        memory_s = problem.bytes / rates.memory_bytes_per_s
        sustained_s = 2 * blocks * tile.m * tile.n * problem.k / (tile.rate * rates.flops_per_s)
        busy_s = sum(part**SHARPNESS for part in (shared_out, sustained_s, cache_s, memory_s)) ** (1 / SHARPNESS)
        total_s = FIXED_S + busy_s
        units = blocks * tile.splits
        return Estimate(
            us=1e6 * total_s,
            parts={
                "filled": units / (-(-units // rates.multiprocessors) * rates.multiprocessors),
                "useful": problem.m * problem.n / (blocks * tile.m * tile.n),
                "tensor": tensor_s / step_s,
                "cache": cache_s / total_s,
                "memory": memory_s / total_s,
                "epilogue": epilogue_s / (epilogue_s + steps * step_s),
            },
        )

    def _tile(self, kind: str, values: Mapping[str, Scalar]) -> _Tile | None:
        """Read a tile under the names of either kind of kernel."""

        def whole(*names: str, default: int) -> int:
            return next((int(values[name]) for name in names if name in values), default)

        n, k = whole("tile_n", "block_n", default=0), whole("tile_k", "block_k", default=0)
        m = whole("tile_m", "block_m", default=max(16, min(64, 1 << (self._problem.m - 1).bit_length())))
        if not (n and k):
            return None
        step_bytes = (m + n) * k * BYTES[self._problem.dtype]
        decomposition = values.get("decomposition", "heuristic")
        splits = max(1, whole("splits", "split_k", default=1))
        return _Tile(
            m=m,
            n=n,
            k=k,
            cluster_m=whole("cluster_m", default=1),
            cluster_n=whole("cluster_n", default=1),
            pingpong=values.get("schedule") == "pingpong",
            spread=values.get("scheduler") == "stream_k" and splits == 1 and decomposition != "data_parallel",
            splits=splits,
            stages=max(1, whole("stages", default=int(0.85 * self._rates.shared_bytes) // step_bytes)),
            rate=OLDER_INSTRUCTIONS.get(kind, 1.0),
        )

    def _step_s(self, tile: _Tile) -> tuple[float, float]:
        """Seconds of one step along k, and what the tensor cores take of them."""
        rates = self._rates
        tensor_s = 2 * tile.m * tile.n * tile.k / (tile.rate * rates.flops_per_clock * rates.clock_hz)
        groups = 1 if tile.pingpong else 2
        chained = math.ceil(tile.m / 64 / groups) * math.ceil(tile.k / 16)
        instruction_s = chained * INSTRUCTION_CLOCKS / rates.clock_hz
        fetched = (min(tile.m, self._problem.m) + min(tile.n, self._problem.n)) * tile.k * BYTES[self._problem.dtype]
        intake_s = fetched / (INTAKE_BYTES_PER_CLOCK * rates.clock_hz)
        longest_s = max(tensor_s, instruction_s, intake_s, COPY_LATENCY_S / tile.stages)
        return longest_s + BARRIER_CLOCKS / rates.clock_hz, tensor_s

    def _epilogue_s(self, tile: _Tile) -> float:
        """Seconds of the epilogue of one tile."""
        clocks = EPILOGUE_CLOCKS[self._problem.activation] + 4 * self._problem.residual
        return TILE_OVERHEAD_S + tile.m * tile.n * clocks / (LANES * self._rates.clock_hz)

    def _shared_out_s(self, tile: _Tile, blocks: int, steps: int, step_s: float, epilogue_s: float) -> float:
        """Seconds of the multiprocessor that has most to do."""
        rates = self._rates
        cluster = tile.cluster_m * tile.cluster_n
        usable = max(rates.multiprocessors // cluster * cluster, 1)
        fold_s = TILE_OVERHEAD_S + 2 * 4 * tile.m * tile.n / (INTAKE_BYTES_PER_CLOCK * rates.clock_hz)
        whole_s = self._waves_s(tile, -(-blocks // usable), steps, step_s, epilogue_s)
        if tile.splits > 1:
            waves = -(-blocks * tile.splits // usable)
            folds_s = fold_s * (tile.splits - 1)
            return self._waves_s(tile, waves, -(-steps // tile.splits), step_s, epilogue_s) + folds_s
        if tile.spread and blocks % usable:
            spread_s = -(-blocks * steps // usable) * step_s + -(-blocks // usable) * epilogue_s + 2 * fold_s
            return min(whole_s, spread_s)
        return whole_s

    def _cache_s(self, tile: _Tile, blocks: int) -> float:
        """Seconds in which the L2 cache hands out the operands, a multicast one once a cluster, and partial sums."""
        rates, problem = self._rates, self._problem
        width = BYTES[problem.dtype]
        rows, columns = min(tile.m, problem.m) / tile.cluster_n, min(tile.n, problem.n) / tile.cluster_m
        moved = blocks * problem.k * width * (rows + columns) + 2 * 4 * tile.m * tile.n * blocks * (tile.splits - 1)
        held = (problem.m + problem.n) * problem.k * width <= rates.cache_bytes
        share = CACHE_SHARE if held else SPILLED_CACHE_SHARE
        return moved / (share * INTAKE_BYTES_PER_CLOCK * rates.clock_hz * rates.multiprocessors)

    def _waves_s(self, tile: _Tile, waves: int, steps: int, step_s: float, epilogue_s: float) -> float:
        if tile.pingpong:
            hidden_s = (1 - EXPOSED) * min(steps * step_s, epilogue_s)
            return waves * (steps * step_s + epilogue_s) - (waves - 1) * hidden_s
        return waves * (steps * step_s + epilogue_s)
