"""Our own GEMMs in CUDA as kinds of kernels: which builds there are, how they are compiled, found and launched."""

import ctypes
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autotune.backends.native.cutlass.compiler import (
    CompiledKernel,
    Compiler,
    KernelCache,
    KernelSource,
    Refused,
    key_of,
)
from autotune.backends.native.kind import check_operands, libraries_of, place
from autotune.errors import SpaceError, WorkError
from autotune.kernel import Kernel, MadeKernel
from autotune.records.configuration import Configuration
from autotune.records.device import Device
from autotune.records.kernel_problem import GemmProblem
from autotune.search_spaces import cluster_gemm, hopper_gemm
from autotune.search_spaces.split_gemm import SplitBuild, SplitGemm

HERE = Path(__file__).parent
ELEMENTS = {"fp16": "__half", "bf16": "__nv_bfloat16", "fp32": "float"}
ACTIVATIONS = ("none", "relu", "gelu", "gelu_tanh", "silu")
"""The numbers of ``epilogue.cuh`` for each."""

KERNELS_A_UNIT = 12
"""Our headers are read in a second, so that as many kernels in one unit take half a second each."""

WINDOW = (
    "height", "width", "channels", "kernel_w", "stride_h", "stride_w", "padding_h", "padding_w", "dilation_h",
    "dilation_w", "places_h", "places_w",
)  # fmt: skip


class _Order(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("a", "b", "bias", "residual", "d")),
        *((name, ctypes.c_int) for name in ("m", "n", "k", "activation", "early", *WINDOW)),
    )


class _Made(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_int) for name in ("registers", "spilled_bytes", "shared_bytes"))


@dataclass(frozen=True, slots=True, kw_only=True)
class CudaGemm:
    """Tiles of one space, compiled by nvcc without any headers but its own.

    The cache has a library under the key of its source. What was packed for another place has its build's key in its
    name as well, by which a later release of this package finds it too, whose headers give the source another key.
    """

    tiles: SplitGemm
    source_of: Callable[[SplitBuild], KernelSource]

    def builds(self, device: Device, problem: GemmProblem) -> Sequence[Configuration]:
        """List the tiles; none where the architecture, the types, the rows or their alignment are not served."""
        try:
            return tuple(self.tiles.space(device, problem))
        except SpaceError:
            return ()

    def first(
        self, device: Device, problem: GemmProblem, count: int, *, multiprocessors: int
    ) -> Sequence[Configuration]:
        """Choose by :meth:`autotune.search_spaces.split_gemm.SplitGemm.first_candidates`."""
        return self.tiles.first_candidates(device, problem, multiprocessors=multiprocessors, count=count)

    def launches(self, device: Device, problem: GemmProblem, build: Configuration) -> Sequence[Configuration]:
        """List the splits of one tile, one first."""
        return tuple(self.tiles.launches(device, problem, build))

    def build_of(self, candidate: Configuration) -> Configuration:
        """A candidate without its splits."""
        values = {name: value for name, value in candidate.values if name != "splits"}
        return Configuration.of(self.tiles.name, values)

    def compile(
        self, device: Device, problem: GemmProblem, builds: Sequence[Configuration], folder: Path
    ) -> list[MadeKernel]:
        """Compile tiles; raises WorkError where nvcc is missing."""
        wanted = [self.tiles.build_of(device, problem, tile) for tile in builds]
        if not wanted:
            return []
        compiler = Compiler.bare(_short(wanted[0].architecture))
        sources = [self.source_of(build) for build in wanted]
        found = KernelCache(folder).compile(compiler, sources, a_unit=KERNELS_A_UNIT)
        return [
            MadeKernel(refusal=kernel.detail if isinstance(kernel, Refused) else None, compile_s=kernel.compile_s)
            for kernel in found
        ]

    def compiled(
        self, device: Device, problem: GemmProblem, builds: Sequence[Configuration], folder: Path
    ) -> Sequence[Configuration]:
        """Give the tiles whose libraries are there, whichever nvcc compiled them."""
        return libraries_of(builds, lambda tile: self.tiles.build_of(device, problem, tile), self._key, folder)

    def load(
        self, device: Device, problem: GemmProblem, candidate: Configuration, folder: Path, *, early: bool = False
    ) -> Kernel:
        """Load a library; raises WorkError where it is not compiled, or not for this GPU."""
        build = self.tiles.build_of(device, problem, self.build_of(candidate))
        return _CudaKernel(self._find(build, folder), problem, int(candidate["splits"]), device, early=early)

    def pack(
        self, device: Device, problem: GemmProblem, candidate: Configuration, folder: Path, target: Path
    ) -> Mapping[str, str]:
        """Copy a candidate's library, under a name that tells its build."""
        build = self.tiles.build_of(device, problem, self.build_of(candidate))
        found = self._find(build, folder)
        target.mkdir(parents=True, exist_ok=True)
        packed = target / f"{build.key}.{found.key}.so"
        place(found.library, packed)
        return {packed.name: found.key}

    def _key(self, build: SplitBuild) -> str:
        return key_of(self.source_of(build), _short(build.architecture))

    def _find(self, build: SplitBuild, folder: Path) -> CompiledKernel:
        """Find a build's library: compiled here, or packed."""
        found = KernelCache(folder).get(self._key(build))
        if isinstance(found, CompiledKernel):
            return found
        for packed in sorted(folder.glob(f"{build.key}.*.so")):
            return CompiledKernel(key=packed.name.split(".")[1], library=packed)
        raise WorkError(
            f"loading the kernel {build.tile} for {build.architecture}", found=f"it is not compiled in {folder}",
            expected="a kernel that was compiled before it is loaded", run="autotune kernels tune for its problem",
        )  # fmt: skip


def cluster_source(build: SplitBuild) -> KernelSource:
    """Give the source of a tile of :mod:`autotune.search_spaces.cluster_gemm`."""
    sides = (build.tile[side] for side in ("tile_m", "tile_n", "tile_k", "warps_m", "warps_n", "stages"))
    return _source("gemm_cluster.cuh", "AUTOTUNE_GEMM_CLUSTER", *_types(build), *map(str, sides))


def hopper_source(build: SplitBuild) -> KernelSource:
    """Give the source of a tile of :mod:`autotune.search_spaces.hopper_gemm`."""
    tile = build.tile
    turned = "true" if tile["swapped"] else "false"
    sides = (tile[side] for side in ("tile_m", "tile_n", "tile_k", "groups", "residents"))
    stages, together = hopper_gemm.stages(dict(tile.values)), (tile["cluster_m"], tile["cluster_n"])
    arguments = map(str, (*sides, stages, *together))
    return _source("gemm_hopper.cuh", "AUTOTUNE_GEMM_HOPPER", *_types(build), turned, *arguments)


def _types(build: SplitBuild) -> tuple[str, str, str]:
    return ELEMENTS[build.dtype], ELEMENTS[build.output], "true" if build.window else "false"


def _source(header: str, macro: str, *arguments: str) -> KernelSource:
    return KernelSource(header=HERE / header, code=f"{macro}({{name}}, {', '.join(arguments)})")


CLUSTER_GEMM = CudaGemm(tiles=cluster_gemm.GEMM, source_of=cluster_source)
HOPPER_GEMM = CudaGemm(tiles=hopper_gemm.GEMM, source_of=hopper_source)


def order_of(problem: GemmProblem, operands: Sequence[Any], *, early: bool = False) -> ctypes.Structure:
    """What a kernel is told: the addresses of a, b, bias, residual and out, which may be ``None``, and the problem.

    ``early`` as in :meth:`autotune.kernel.KernelMaker.load`.
    """
    addresses = (None if tensor is None else tensor.data_ptr() for tensor in operands)
    window = problem.window
    seen: tuple[int, ...] = ()
    if window is not None:
        pairs = (*window.stride, *window.padding, *window.dilation, *window.places)
        seen = (window.height, window.width, window.channels, window.kernel[1], *pairs)
    sizes = problem.m, problem.n, problem.k
    return _Order(*addresses, *sizes, ACTIVATIONS.index(problem.activation), early, *seen)


class _CudaKernel:
    def __init__(
        self, compiled: CompiledKernel, problem: GemmProblem, splits: int, device: Device, *, early: bool
    ) -> None:
        import torch

        self._problem, self._splits, self._name, self._early = problem, splits, compiled.name, early
        try:
            library = ctypes.CDLL(str(compiled.library))
            self._run, made = getattr(library, f"{compiled.name}_run"), getattr(library, f"{compiled.name}_made")
        except (OSError, AttributeError) as error:
            raise WorkError(
                f"loading kernel {compiled.name}", found=str(error), expected=f"{compiled.library} as it was compiled",
                run="the same after deleting that file: it is compiled again",
            ) from error  # fmt: skip
        self._run.argtypes = (ctypes.POINTER(_Order), ctypes.c_int, ctypes.c_void_p)
        made.argtypes = (ctypes.POINTER(_Made),)
        told = _Made()
        with torch.cuda.device(device.index):
            status = made(told)
        self._check(status, "loading it")
        self._made = {name: float(getattr(told, name)) for name, *_ in _Made._fields_}

    @property
    def made(self) -> Mapping[str, float]:
        return self._made

    def __call__(self, a: Any, b: Any, bias: Any, residual: Any, out: Any) -> None:
        import torch

        check_operands(self._problem, a, b, bias, residual, out)
        problem = self._problem
        order = order_of(problem, (a, b, bias, residual, out), early=self._early)
        with torch.cuda.device(out.device):
            status = self._run(order, self._splits, torch.cuda.current_stream().cuda_stream)
        self._check(status, f"launching it on {problem.canonical} with {self._splits} splits")

    def _check(self, status: int, asked: str) -> None:
        if status != 0:
            raise WorkError(
                f"kernel {self._name}: {asked}", found=f"CUDA error {status}",
                expected="a GPU of the architecture that it was compiled for",
            )  # fmt: skip


def _short(architecture: str) -> str:
    return architecture.removeprefix("sm_")
