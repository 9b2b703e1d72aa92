"""Our own GEMMs in CUDA as kinds of kernels: how their builds are listed, compiled, loaded and launched."""

import ctypes
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from autotune.backends.native.cutlass.nvcc_compiler import (
    CompiledCudaKernel,
    CudaSource,
    NvccCache,
    NvccCompiler,
    NvccRefusal,
    key_of,
)
from autotune.backends.native.kernel_kind import check_operands, copy_atomically, libraries_of
from autotune.errors import SpaceError, WorkError
from autotune.kernel import CompileResult, LoadedKernel
from autotune.records.configuration import Configuration
from autotune.records.device import Device
from autotune.records.kernel_problem import GemmProblem
from autotune.search_spaces import cluster_gemm, hopper_gemm
from autotune.search_spaces.split_gemm import SplitBuild, SplitGemm

if TYPE_CHECKING:
    from torch import Tensor

HERE = Path(__file__).parent
ELEMENTS = {"fp16": "__half", "bf16": "__nv_bfloat16", "fp32": "float"}
ACTIVATIONS = ("none", "relu", "gelu", "gelu_tanh", "silu")
"""The numbers of ``epilogue.cuh`` for each."""

KERNELS_A_UNIT = 12
"""Our headers are parsed in a second, so in a unit of this many kernels each takes half a second."""

WINDOW = (
    "height", "width", "channels", "kernel_w", "stride_h", "stride_w", "padding_h", "padding_w", "dilation_h",
    "dilation_w", "places_h", "places_w",
)  # fmt: skip


class _LaunchArguments(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("a", "b", "bias", "residual", "d")),
        *((name, ctypes.c_int) for name in ("m", "n", "k", "activation", "early", *WINDOW)),
    )


class _CudaUsage(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_int) for name in ("registers", "spilled_bytes", "shared_bytes"))


@dataclass(frozen=True, slots=True, kw_only=True)
class CudaKind:
    """Tiles of one space, compiled by nvcc without any headers but its own.

    In the cache a library has the key of its source as its name. The name of a packed library has the key of its build
    as well: a later release of this package, whose headers change the source's key, loads it by that.
    """

    tiles: SplitGemm
    source_of: Callable[[SplitBuild], CudaSource]

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
        """Compile tiles; raises WorkError if nvcc is missing."""
        wanted = [self.tiles.build_of(device, problem, tile) for tile in builds]
        if not wanted:
            return []
        compiler = NvccCompiler.bare(_short(wanted[0].architecture))
        sources = [self.source_of(build) for build in wanted]
        results = NvccCache(folder).compile(compiler, sources, a_unit=KERNELS_A_UNIT)
        return [
            CompileResult(
                refusal=kernel.detail if isinstance(kernel, NvccRefusal) else None, compile_s=kernel.compile_s
            )
            for kernel in results
        ]

    def compiled(
        self, device: Device, problem: GemmProblem, builds: Sequence[Configuration], folder: Path
    ) -> Sequence[Configuration]:
        """Return the tiles whose libraries are in the cache, compiled by any release of nvcc."""
        return libraries_of(builds, lambda tile: self.tiles.build_of(device, problem, tile), self._key, folder)

    def load(
        self,
        device: Device,
        problem: GemmProblem,
        candidate: Configuration,
        folder: Path,
        *,
        programmatic_launch: bool = False,
    ) -> LoadedKernel:
        """Load a library; raises WorkError if it is not compiled, or not for this GPU."""
        build = self.tiles.build_of(device, problem, self.build_of(candidate))
        return _CudaKernel(
            self._find(build, folder),
            problem,
            int(candidate["splits"]),
            device,
            programmatic_launch=programmatic_launch,
        )

    def pack(
        self, device: Device, problem: GemmProblem, candidate: Configuration, folder: Path, target: Path
    ) -> Mapping[str, str]:
        """Copy a candidate's library, under a name with the key of its build."""
        build = self.tiles.build_of(device, problem, self.build_of(candidate))
        compiled = self._find(build, folder)
        target.mkdir(parents=True, exist_ok=True)
        packed = target / f"{build.key}.{compiled.key}.so"
        copy_atomically(compiled.library, packed)
        return {packed.name: compiled.key}

    def _key(self, build: SplitBuild) -> str:
        return key_of(self.source_of(build), _short(build.architecture))

    def _find(self, build: SplitBuild, folder: Path) -> CompiledCudaKernel:
        """Return a build's library, compiled here or packed; raises WorkError if there is none."""
        compiled = NvccCache(folder).get(self._key(build))
        if isinstance(compiled, CompiledCudaKernel):
            return compiled
        for packed in sorted(folder.glob(f"{build.key}.*.so")):
            return CompiledCudaKernel(key=packed.name.split(".")[1], library=packed)
        raise WorkError(
            f"loading the kernel {build.tile} for {build.architecture}", found=f"it is not compiled in {folder}",
            expected="a kernel that was compiled before it is loaded", run="autotune kernels tune for its problem",
        )  # fmt: skip


def cluster_source(build: SplitBuild) -> CudaSource:
    """Return the source of a tile of :mod:`autotune.search_spaces.cluster_gemm`."""
    sides = (build.tile[side] for side in ("tile_m", "tile_n", "tile_k", "warps_m", "warps_n", "stages"))
    return _source("gemm_cluster.cuh", "AUTOTUNE_GEMM_CLUSTER", *_types(build), *map(str, sides))


def hopper_source(build: SplitBuild) -> CudaSource:
    """Return the source of a tile of :mod:`autotune.search_spaces.hopper_gemm`."""
    tile = build.tile
    swapped = "true" if tile["swapped"] else "false"
    sides = (tile[side] for side in ("tile_m", "tile_n", "tile_k", "groups", "residents"))
    stages, cluster = hopper_gemm.stages(dict(tile.values)), (tile["cluster_m"], tile["cluster_n"])
    arguments = map(str, (*sides, stages, *cluster))
    return _source("gemm_hopper.cuh", "AUTOTUNE_GEMM_HOPPER", *_types(build), swapped, *arguments)


def _types(build: SplitBuild) -> tuple[str, str, str]:
    return ELEMENTS[build.dtype], ELEMENTS[build.output], "true" if build.window else "false"


def _source(header: str, macro: str, *arguments: str) -> CudaSource:
    return CudaSource(header=HERE / header, code=f"{macro}({{name}}, {', '.join(arguments)})")


CLUSTER_GEMM = CudaKind(tiles=cluster_gemm.GEMM, source_of=cluster_source)
HOPPER_GEMM = CudaKind(tiles=hopper_gemm.GEMM, source_of=hopper_source)


def launch_arguments(
    problem: GemmProblem, operands: "Sequence[Tensor | None]", *, programmatic_launch: bool = False
) -> ctypes.Structure:
    """Return the arguments of a launch: the addresses of a, b, bias, residual and out, and the problem.

    Operands may be ``None``. ``programmatic_launch`` as in :meth:`autotune.kernel.KernelProvider.load`.
    """
    addresses = (None if tensor is None else tensor.data_ptr() for tensor in operands)
    window = problem.window
    window_fields: tuple[int, ...] = ()
    if window is not None:
        pairs = (*window.stride, *window.padding, *window.dilation, *window.places)
        window_fields = (window.height, window.width, window.channels, window.kernel[1], *pairs)
    sizes = problem.m, problem.n, problem.k
    return _LaunchArguments(
        *addresses, *sizes, ACTIVATIONS.index(problem.activation), programmatic_launch, *window_fields
    )


class _CudaKernel:
    def __init__(
        self,
        compiled: CompiledCudaKernel,
        problem: GemmProblem,
        splits: int,
        device: Device,
        *,
        programmatic_launch: bool,
    ) -> None:
        import torch

        self._problem, self._splits, self._name, self._programmatic_launch = (
            problem,
            splits,
            compiled.name,
            programmatic_launch,
        )
        try:
            library = ctypes.CDLL(str(compiled.library))
            self._run, usage_function = (
                getattr(library, f"{compiled.name}_run"),
                getattr(library, f"{compiled.name}_made"),
            )
        except (OSError, AttributeError) as error:
            raise WorkError(
                f"loading kernel {compiled.name}", found=str(error), expected=f"{compiled.library} as it was compiled",
                run="the same after deleting that file: it is compiled again",
            ) from error  # fmt: skip
        self._run.argtypes = (ctypes.POINTER(_LaunchArguments), ctypes.c_int, ctypes.c_void_p)
        usage_function.argtypes = (ctypes.POINTER(_CudaUsage),)
        usage = _CudaUsage()
        with torch.cuda.device(device.index):
            status = usage_function(usage)
        self._check(status, "loading it")
        self._resource_usage = {name: float(getattr(usage, name)) for name, *_ in _CudaUsage._fields_}

    @property
    def resource_usage(self) -> Mapping[str, float]:
        return self._resource_usage

    def __call__(
        self, a: "Tensor", b: "Tensor", bias: "Tensor | None", residual: "Tensor | None", out: "Tensor"
    ) -> None:
        import torch

        check_operands(self._problem, a, b, bias, residual, out)
        problem = self._problem
        order = launch_arguments(problem, (a, b, bias, residual, out), programmatic_launch=self._programmatic_launch)
        with torch.cuda.device(out.device):
            status = self._run(order, self._splits, torch.cuda.current_stream().cuda_stream)
        self._check(status, f"launching it on {problem.canonical} with {self._splits} splits")

    def _check(self, status: int, action: str) -> None:
        if status != 0:
            raise WorkError(
                f"kernel {self._name}: {action}", found=f"CUDA error {status}",
                expected="a GPU of the architecture that it was compiled for",
            )  # fmt: skip


def _short(architecture: str) -> str:
    return architecture.removeprefix("sm_")
