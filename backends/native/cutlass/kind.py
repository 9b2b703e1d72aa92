"""CUTLASS's kernels as a kind: which builds there are, how they are compiled, found again and launched."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from importlib import metadata
from pathlib import Path
from typing import Any

from autotune.backends.native.cutlass.compiler import CompiledKernel, Compiler, KernelCache, Refused, key_of
from autotune.backends.native.cutlass.kernel import LoadedKernel, Operands, Shape
from autotune.backends.native.cutlass.source import source_of
from autotune.backends.native.kind import check_operands, libraries_of, place
from autotune.errors import SpaceError, WorkError
from autotune.kernel import Kernel, MadeKernel
from autotune.records.configuration import Configuration
from autotune.records.device import Device
from autotune.records.kernel_problem import GemmProblem
from autotune.search_spaces import cutlass_gemm
from autotune.search_spaces.cutlass_gemm import CutlassBuild, CutlassCandidate
from autotune.search_spaces.cutlass_launch import CutlassLaunch


class Cutlass:
    """Tiles of :mod:`autotune.search_spaces.cutlass_gemm`, compiled by nvcc.

    The cache has a folder for each release of CUTLASS, and in it a library under the key of its source. What was packed
    for another place has its build's key in its name as well, by which a later release of this package finds it too,
    whose headers give the source another key.
    """

    def builds(self, device: Device, problem: GemmProblem) -> Sequence[Configuration]:
        """List the tiles; none where the architecture, the types or the alignment are not CUTLASS's."""
        try:
            return tuple(cutlass_gemm.space(device, problem))
        except SpaceError:
            return ()

    def first(
        self, device: Device, problem: GemmProblem, count: int, *, multiprocessors: int
    ) -> Sequence[Configuration]:
        """Choose the tiles with the fewest waves."""
        found = cutlass_gemm.first_candidates(device, problem, multiprocessors=multiprocessors, count=count)
        return tuple(candidate.build.tile for candidate in found)

    def launches(self, device: Device, problem: GemmProblem, build: Configuration) -> Sequence[Configuration]:
        """List the launches of one tile."""
        return tuple(candidate.configuration for candidate in cutlass_gemm.candidates(device, problem, build))

    def build_of(self, candidate: Configuration) -> Configuration:
        """A candidate without what is set at launch."""
        launch = {field.name for field in fields(CutlassLaunch)}
        return Configuration.of(cutlass_gemm.NAME, {n: value for n, value in candidate.values if n not in launch})

    def compile(
        self, device: Device, problem: GemmProblem, builds: Sequence[Configuration], folder: Path
    ) -> list[MadeKernel]:
        """Compile tiles; raises WorkError where nvcc or CUTLASS's headers are missing."""
        wanted = [cutlass_gemm.build_of(device, problem, tile) for tile in builds]
        compiler = Compiler.find(_short(cutlass_gemm.architecture(device)))
        found = KernelCache(folder / compiler.headers_version).compile(compiler, [source_of(build) for build in wanted])
        return [
            MadeKernel(refusal=kernel.detail if isinstance(kernel, Refused) else None, compile_s=kernel.compile_s)
            for kernel in found
        ]

    def compiled(
        self, device: Device, problem: GemmProblem, builds: Sequence[Configuration], folder: Path
    ) -> Sequence[Configuration]:
        """Give the tiles whose libraries are there, whichever nvcc compiled them."""
        return libraries_of(builds, lambda tile: cutlass_gemm.build_of(device, problem, tile), _key, folder)

    def load(
        self, device: Device, problem: GemmProblem, candidate: Configuration, folder: Path, *, early: bool = False
    ) -> Kernel:
        """Load a library; raises WorkError where it is not compiled, or not for this GPU."""
        wanted = CutlassCandidate.of(device, problem, candidate)
        return _CutlassKernel(LoadedKernel(_find(wanted.build, folder)), problem, wanted.launch, device, early=early)

    def pack(
        self, device: Device, problem: GemmProblem, candidate: Configuration, folder: Path, target: Path
    ) -> Mapping[str, str]:
        """Copy a candidate's library, under a name that tells its build."""
        build = CutlassCandidate.of(device, problem, candidate).build
        found = _find(build, folder)
        target.mkdir(parents=True, exist_ok=True)
        packed = target / f"{build.key}.{found.key}.so"
        place(found.library, packed)
        return {packed.name: found.key}


CUTLASS = Cutlass()


class _CutlassKernel:
    def __init__(
        self, loaded: LoadedKernel, problem: GemmProblem, launch: CutlassLaunch, device: Device, *, early: bool
    ) -> None:
        import torch

        self._loaded, self._problem, self._launch, self._early = loaded, problem, launch, early
        self._shape = Shape(m=problem.m, n=problem.n, k=problem.k)
        with torch.cuda.device(device.index):
            self._made = {name: float(value) for name, value in asdict(loaded.made()).items()}
        self._multiprocessors = torch.cuda.get_device_properties(device.index).multi_processor_count
        self._workspace_bytes = loaded.workspace_bytes(self._shape, launch, multiprocessors=self._multiprocessors)

    @property
    def made(self) -> Mapping[str, float]:
        return self._made

    def __call__(self, a: Any, b: Any, bias: Any, residual: Any, out: Any) -> None:
        import torch

        check_operands(self._problem, a, b, bias, residual, out)
        addresses = {
            name: 0 if tensor is None else tensor.data_ptr()
            for name, tensor in (("a", a), ("b", b), ("bias", bias), ("residual", residual), ("d", out))
        }
        # CUTLASS sets to zero what has to be zero of it, in the stream, at every launch.
        workspace = torch.empty(self._workspace_bytes, dtype=torch.uint8, device=out.device)
        with torch.cuda.device(out.device):
            self._loaded.launch(
                Operands(**addresses), self._shape, self._launch, multiprocessors=self._multiprocessors,
                workspace=workspace.data_ptr(), stream=torch.cuda.current_stream().cuda_stream, early=self._early,
            )  # fmt: skip


def _key(build: CutlassBuild) -> str:
    return key_of(source_of(build), _short(build.architecture))


def _find(build: CutlassBuild, folder: Path) -> CompiledKernel:
    """Find a build's library: compiled with the release of CUTLASS that is installed, with another one, or packed."""
    key = _key(build)
    try:
        installed = metadata.version("nvidia-cutlass")
    except metadata.PackageNotFoundError:
        installed = ""
    releases = sorted(path for path in folder.glob("*") if path.is_dir()) if folder.is_dir() else []
    for release in sorted(releases, key=lambda path: path.name != installed):
        found = KernelCache(release).get(key)
        if isinstance(found, CompiledKernel):
            return found
    for packed in sorted(folder.glob(f"{build.key}.*.so")):
        return CompiledKernel(key=packed.name.split(".")[1], library=packed)
    raise WorkError(
        f"loading the kernel {build.tile} for {build.architecture}", found=f"it is not compiled in {folder}",
        expected="a kernel that was compiled before it is loaded", run="autotune kernels tune for its problem",
    )  # fmt: skip


def _short(architecture: str) -> str:
    return architecture.removeprefix("sm_")
