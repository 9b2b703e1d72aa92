"""The common part of our own GEMM kernels: a build computes every shape, every epilogue, any number of splits of k."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

from autotune.records.canonical import digest
from autotune.records.configuration import Configuration
from autotune.records.device import Device
from autotune.records.kernel_problem import GemmProblem
from autotune.records.search_space import SearchSpace

ARCHITECTURES = {(8, 0): "sm_80", (8, 6): "sm_86", (8, 9): "sm_89", (9, 0): "sm_90a"}
"""The architectures that kernels are compiled for, by compute capability."""

CLUSTERS_FROM = (9, 0)
SPLITS = (1, 2, 3, 4, 6, 8)
"""Blocks of a cluster along k; 8 is the limit of every GPU with clusters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitBuild:
    """Everything that decides a kernel's binary."""

    kind: str
    architecture: str
    dtype: str
    output: str
    window: bool
    tile: Configuration

    @property
    def key(self) -> str:
        """SHA-256 of the canonical JSON, in hexadecimal."""
        return digest({**asdict(self), "tile": self.tile.as_dict()})


def architecture(device: Device) -> str | None:
    """Return the architecture that kernels for a device are compiled for, ``None`` if it is too old or too new."""
    return ARCHITECTURES.get(device.capability) if device.capability else None


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitGemm:
    """One kind of these kernels; ``space`` returns its tiles, or raises SpaceError if there are none."""

    name: str
    space: Callable[[Device, GemmProblem], SearchSpace]

    def build_of(self, device: Device, problem: GemmProblem, tile: Configuration) -> SplitBuild:
        """Return the build of a tile; raises SpaceError if the device or the problem is not supported."""
        self.space(device, problem)
        return SplitBuild(
            kind=self.name, architecture=str(architecture(device)), dtype=problem.dtype, output=problem.output,
            window=problem.window is not None, tile=tile,
        )  # fmt: skip

    def splits(self, device: Device, problem: GemmProblem, tile: Configuration) -> Iterator[int]:
        """List the splits of k for which every block of a cluster has a part; a single one first."""
        steps = -(-problem.k // int(tile["tile_k"]))
        clustered = device.capability is not None and device.capability >= CLUSTERS_FROM
        for count in SPLITS:
            together = count * int(tile.get("cluster_m", 1)) * int(tile.get("cluster_n", 1))
            if count == 1 or (clustered and together <= SPLITS[-1] and (count - 1) * -(-steps // count) < steps):
                yield count

    def launches(self, device: Device, problem: GemmProblem, tile: Configuration) -> Iterator[Configuration]:
        """List a tile with each of its splits."""
        for count in self.splits(device, problem, tile):
            yield Configuration.of(self.name, {**dict(tile.values), "splits": count})

    def first_candidates(
        self, device: Device, problem: GemmProblem, *, sm_count: int, count: int
    ) -> tuple[Configuration, ...]:
        """Return the first tiles: those that use many SMs with little waste, each tile_m×tile_n once.

        Of equal tiles the one with earlier choices comes first, so the order is always the same.
        """
        if sm_count < 1 or count < 1:
            raise ValueError(f"sm_count and count must be at least 1, found {sm_count} and {count}")
        best: dict[tuple[int, int], tuple[tuple[float, ...], Configuration]] = {}
        for tile in self.space(device, problem):
            rows, columns = int(tile["tile_m"]), int(tile["tile_n"])
            blocks = -(-problem.m // rows) * -(-problem.n // columns)
            useful = problem.m * problem.n / (blocks * rows * columns)
            most = max(self.splits(device, problem, tile))
            waves = -(-blocks // sm_count)
            busy = min(1.0, blocks * most / sm_count) if waves == 1 else blocks / (waves * sm_count)
            rank = (-round(8 * busy * useful), float(waves), -float(rows * columns))
            if (rows, columns) not in best or rank < best[rows, columns][0]:
                best[rows, columns] = (rank, tile)
        ranked = sorted(best.values(), key=lambda pair: pair[0])
        return tuple(tile for _, tile in ranked[:count])
