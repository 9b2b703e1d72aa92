"""Our own GEMMs in CUDA as kinds of kernels: how their builds are listed, compiled, found and loaded."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from autotune.backends.native.cuda_kernels.cubin_cache import CompiledKernel, CubinCache, CubinRefusal
from autotune.backends.native.cuda_kernels.cubin_compiler import compiler
from autotune.backends.native.cuda_kernels.kernel_source import KernelSource, headers_of
from autotune.backends.native.cuda_kernels.loaded_gemm import LoadedClusterGemm, LoadedGemm, LoadedHopperGemm
from autotune.errors import SpaceError, WorkError
from autotune.kernel import CompileResult, LoadedKernel
from autotune.records.configuration import Configuration
from autotune.records.device import Device
from autotune.records.kernel_problem import GemmProblem
from autotune.search_spaces import cluster_gemm, hopper_gemm
from autotune.search_spaces.split_gemm import SplitBuild, SplitGemm, architecture

ELEMENTS = {"fp16": "autotune::Half", "bf16": "autotune::Bfloat16", "fp32": "float"}


@dataclass(frozen=True, slots=True, kw_only=True)
class CudaKind:
    """Tiles of one space, compiled into cubins without any headers but ours.

    ``header`` is the header of its templates, ``loaded`` the class that launches its kernels.
    """

    tiles: SplitGemm
    header: str
    source_of: Callable[[SplitBuild], KernelSource]
    loaded: type[LoadedGemm]

    @property
    def sources(self) -> Mapping[str, str]:
        """The texts that its kernels are compiled from, by name."""
        return headers_of(self.header)

    def builds(self, device: Device, problem: GemmProblem) -> Sequence[Configuration]:
        """List the tiles; none if the architecture, the types, the rows or their alignment are not supported."""
        try:
            return tuple(self.tiles.space(device, problem))
        except SpaceError:
            return ()

    def first(self, device: Device, problem: GemmProblem, count: int, *, sm_count: int) -> Sequence[Configuration]:
        """Choose by :meth:`autotune.search_spaces.split_gemm.SplitGemm.first_candidates`."""
        return self.tiles.first_candidates(device, problem, sm_count=sm_count, count=count)

    def launches(self, device: Device, problem: GemmProblem, build: Configuration) -> Sequence[Configuration]:
        """List the candidates of one tile, which differ in their splits; a single split first."""
        return tuple(self.tiles.launches(device, problem, build))

    def build_of(self, candidate: Configuration) -> Configuration:
        """Return a candidate without its splits."""
        values = {name: value for name, value in candidate.values if name != "splits"}
        return Configuration.of(self.tiles.name, values)

    def compile(
        self, device: Device, problem: GemmProblem, builds: Sequence[Configuration], folder: Path
    ) -> list[CompileResult]:
        """Compile tiles; raises WorkError if there is no compiler."""
        sources = [self.source_of(self.tiles.build_of(device, problem, tile)) for tile in builds]
        return compile_sources(sources, folder)

    def compiled(
        self, device: Device, problem: GemmProblem, builds: Sequence[Configuration], folder: Path
    ) -> Sequence[Configuration]:
        """Return the tiles whose kernels are in the cache, from the present sources."""
        wanted = (architecture(device), problem.dtype, problem.output, problem.window is not None)
        there = {
            build.tile
            for name, build in CubinCache(folder).builds().items()
            if (build.architecture, build.dtype, build.output, build.window) == wanted
            and name.endswith(f".{self.source_of(build).key}")
        }
        return [tile for tile in builds if tile in there]

    def load(
        self,
        device: Device,
        problem: GemmProblem,
        candidate: Configuration,
        folder: Path,
        *,
        programmatic_launch: bool = False,
    ) -> LoadedKernel:
        """Load a kernel; raises WorkError if it is not compiled, or not for this GPU or driver."""
        build = self.tiles.build_of(device, problem, self.build_of(candidate))
        return self.loaded(
            self._find(build, folder), problem, candidate, device, programmatic_launch=programmatic_launch
        )  # fmt: skip

    def pack(
        self, device: Device, problem: GemmProblem, candidate: Configuration, folder: Path, target: Path
    ) -> Mapping[str, str]:
        """Copy a candidate's kernel."""
        kernel = self._find(self.tiles.build_of(device, problem, self.build_of(candidate)), folder)
        kernel.copy_to(target)
        return {f"{kernel.name}.{suffix}": kernel.source_key for suffix in ("cubin", "json")}

    def _find(self, build: SplitBuild, folder: Path) -> CompiledKernel:
        """Return a build's kernel, of the present source or packed by another release."""
        cache = CubinCache(folder)
        kernel = cache.get(self.source_of(build)) or next(cache.of_build(build), None)
        if kernel is None:
            raise WorkError(
                f"loading the kernel {build.tile} for {build.architecture}", found=f"it is not compiled in {folder}",
                expected="a kernel that was compiled before it is loaded", run="autotune kernels tune for its problem",
            )  # fmt: skip
        return kernel


def compile_sources(sources: Sequence[KernelSource], folder: Path) -> list[CompileResult]:
    """Compile kernels that are not in a cache; raises WorkError if that needs a compiler and there is none."""
    cache = CubinCache(folder)
    if all(cache.get(source) for source in sources):
        return [CompileResult() for _ in sources]
    return [
        CompileResult(refusal=kernel.detail if isinstance(kernel, CubinRefusal) else None, compile_s=kernel.compile_s)
        for kernel in cache.compile(compiler(), sources)
    ]


def cluster_source(build: SplitBuild) -> KernelSource:
    """Return the source of a tile of :mod:`autotune.search_spaces.cluster_gemm`."""
    tile = dict(build.tile.values)
    sides = [str(tile[side]) for side in ("tile_m", "tile_n", "tile_k", "warps_m", "warps_n", "stages")]
    return KernelSource(
        build=build, header="gemm_cluster.cuh", macro="AUTOTUNE_GEMM_CLUSTER", arguments=(*_types(build), *sides),
        threads=32 * int(tile["warps_m"]) * int(tile["warps_n"]), shared_bytes=cluster_gemm.shared_bytes(tile),
    )  # fmt: skip


def hopper_source(build: SplitBuild) -> KernelSource:
    """Return the source of a tile of :mod:`autotune.search_spaces.hopper_gemm`."""
    tile = dict(build.tile.values)
    sides = [str(tile[side]) for side in ("tile_m", "tile_n", "tile_k", "groups", "residents")]
    arguments = (
        *_types(build), _flag(bool(tile["swapped"])), *sides, str(hopper_gemm.stages(tile)), str(tile["cluster_m"]),
        str(tile["cluster_n"]),
    )  # fmt: skip
    return KernelSource(
        build=build, header="gemm_hopper.cuh", macro="AUTOTUNE_GEMM_HOPPER", arguments=arguments,
        threads=hopper_gemm.threads(tile), shared_bytes=hopper_gemm.shared_bytes(tile),
    )  # fmt: skip


def _types(build: SplitBuild) -> tuple[str, str, str]:
    return ELEMENTS[build.dtype], ELEMENTS[build.output], _flag(build.window)


def _flag(value: bool) -> str:
    return "true" if value else "false"


CLUSTER_GEMM = CudaKind(
    tiles=cluster_gemm.GEMM, header="gemm_cluster.cuh", source_of=cluster_source, loaded=LoadedClusterGemm
)
HOPPER_GEMM = CudaKind(
    tiles=hopper_gemm.GEMM, header="gemm_hopper.cuh", source_of=hopper_source, loaded=LoadedHopperGemm
)
