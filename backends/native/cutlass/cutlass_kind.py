"""CUTLASS's kernels as a kind: which builds there are, how they are compiled, found again and launched."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from autotune.backends.native.cutlass.loaded_kernel import GemmSize, LoadedCutlassKernel, Operands
from autotune.backends.native.cutlass.nvcc_compiler import (
    CompiledCudaKernel,
    NvccCache,
    NvccCompiler,
    NvccRefusal,
    key_of,
)
from autotune.backends.native.cutlass.source import source_of
from autotune.backends.native.kernel_kind import check_operands, copy_atomically, libraries_of
from autotune.errors import SpaceError, WorkError
from autotune.kernel import CompileResult, LoadedKernel
from autotune.records.configuration import Configuration
from autotune.records.device import Device
from autotune.records.kernel_problem import GemmProblem
from autotune.search_spaces import cutlass_gemm
from autotune.search_spaces.cutlass_gemm import CutlassBuild, CutlassCandidate
from autotune.search_spaces.cutlass_launch import CutlassLaunch

if TYPE_CHECKING:
    from torch import Tensor


class CutlassKind:
    """Tiles of :mod:`autotune.search_spaces.cutlass_gemm`, compiled by nvcc.

    The cache has a folder for each release of CUTLASS, in which a library has the key of its source as its name. The
    name of a packed library has the key of its build as well: a later release of this package, whose headers change the
    source's key, loads it by that.
    """

    def builds(self, device: Device, problem: GemmProblem) -> Sequence[Configuration]:
        """List the tiles; none if CUTLASS does not support the architecture, the types or the alignment."""
        try:
            return tuple(cutlass_gemm.space(device, problem))
        except SpaceError:
            return ()

    def first(self, device: Device, problem: GemmProblem, count: int, *, sm_count: int) -> Sequence[Configuration]:
        """Choose the tiles with the fewest waves."""
        candidates = cutlass_gemm.first_candidates(device, problem, sm_count=sm_count, count=count)
        return tuple(candidate.build.tile for candidate in candidates)

    def launches(self, device: Device, problem: GemmProblem, build: Configuration) -> Sequence[Configuration]:
        """List the launches of one tile."""
        return tuple(candidate.configuration for candidate in cutlass_gemm.candidates(device, problem, build))

    def build_of(self, candidate: Configuration) -> Configuration:
        """Return a candidate without its launch parameters."""
        launch = {field.name for field in fields(CutlassLaunch)}
        return Configuration.of(cutlass_gemm.NAME, {n: value for n, value in candidate.values if n not in launch})

    def compile(
        self, device: Device, problem: GemmProblem, builds: Sequence[Configuration], folder: Path
    ) -> list[CompileResult]:
        """Compile tiles; raises WorkError if nvcc or CUTLASS's headers are missing."""
        wanted = [cutlass_gemm.build_of(device, problem, tile) for tile in builds]
        compiler = NvccCompiler.find(_short(cutlass_gemm.architecture(device)))
        results = NvccCache(folder / compiler.headers_version).compile(compiler, [source_of(build) for build in wanted])
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
        return libraries_of(builds, lambda tile: cutlass_gemm.build_of(device, problem, tile), _key, folder)

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
        wanted = CutlassCandidate.of(device, problem, candidate)
        return _CutlassKernel(
            LoadedCutlassKernel(_find(wanted.build, folder)),
            problem,
            wanted.launch,
            device,
            programmatic_launch=programmatic_launch,
        )

    def pack(
        self, device: Device, problem: GemmProblem, candidate: Configuration, folder: Path, target: Path
    ) -> Mapping[str, str]:
        """Copy a candidate's library, under a name with the key of its build."""
        build = CutlassCandidate.of(device, problem, candidate).build
        compiled = _find(build, folder)
        target.mkdir(parents=True, exist_ok=True)
        packed = target / f"{build.key}.{compiled.key}.so"
        copy_atomically(compiled.library, packed)
        return {packed.name: compiled.key}


CUTLASS = CutlassKind()


class _CutlassKernel:
    def __init__(
        self,
        loaded: LoadedCutlassKernel,
        problem: GemmProblem,
        launch: CutlassLaunch,
        device: Device,
        *,
        programmatic_launch: bool,
    ) -> None:
        import torch

        self._loaded, self._problem, self._launch, self._programmatic_launch = (
            loaded,
            problem,
            launch,
            programmatic_launch,
        )
        self._shape = GemmSize(m=problem.m, n=problem.n, k=problem.k)
        with torch.cuda.device(device.index):
            self._resource_usage = {name: float(value) for name, value in asdict(loaded.resource_usage()).items()}
        self._sm_count = torch.cuda.get_device_properties(device.index).multi_processor_count
        self._workspace_bytes = loaded.workspace_bytes(self._shape, launch, sm_count=self._sm_count)

    @property
    def resource_usage(self) -> Mapping[str, float]:
        return self._resource_usage

    def __call__(
        self, a: "Tensor", b: "Tensor", bias: "Tensor | None", residual: "Tensor | None", out: "Tensor"
    ) -> None:
        import torch

        check_operands(self._problem, a, b, bias, residual, out)
        addresses = {
            name: 0 if tensor is None else tensor.data_ptr()
            for name, tensor in (("a", a), ("b", b), ("bias", bias), ("residual", residual), ("d", out))
        }
        # CUTLASS itself clears the parts that have to be zero, in the stream, at every launch.
        workspace = torch.empty(self._workspace_bytes, dtype=torch.uint8, device=out.device)
        with torch.cuda.device(out.device):
            self._loaded.launch(
                Operands(**addresses), self._shape, self._launch, sm_count=self._sm_count,
                workspace=workspace.data_ptr(), stream=torch.cuda.current_stream().cuda_stream,
                programmatic_launch=self._programmatic_launch,
            )  # fmt: skip


def _key(build: CutlassBuild) -> str:
    return key_of(source_of(build), _short(build.architecture))


def _find(build: CutlassBuild, folder: Path) -> CompiledCudaKernel:
    """Return a build's library: compiled with the installed release of CUTLASS, with another release, or packed."""
    key = _key(build)
    try:
        installed = metadata.version("nvidia-cutlass")
    except metadata.PackageNotFoundError:
        installed = ""
    releases = sorted(path for path in folder.glob("*") if path.is_dir()) if folder.is_dir() else []
    for release in sorted(releases, key=lambda path: path.name != installed):
        compiled = NvccCache(release).get(key)
        if isinstance(compiled, CompiledCudaKernel):
            return compiled
    for packed in sorted(folder.glob(f"{build.key}.*.so")):
        return CompiledCudaKernel(key=packed.name.split(".")[1], library=packed)
    raise WorkError(
        f"loading the kernel {build.tile} for {build.architecture}", found=f"it is not compiled in {folder}",
        expected="a kernel that was compiled before it is loaded", run="autotune kernels tune for its problem",
    )  # fmt: skip


def _short(architecture: str) -> str:
    return architecture.removeprefix("sm_")
