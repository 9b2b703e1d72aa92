"""Triton's GEMMs with few rows as a kind of kernels: which there are, how they are compiled, found and launched."""

from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from autotune.backends.native.kernel_kind import check_operands
from autotune.backends.native.triton_kernels.gemm import plan
from autotune.backends.native.triton_kernels.launch import LoadedPlan
from autotune.backends.native.triton_kernels.launch_plan import TritonSource
from autotune.backends.native.triton_kernels.packed import load_plan, pack_plan
from autotune.backends.native.triton_kernels.triton_compiler import (
    CompiledCubin,
    TritonCache,
    TritonCompiler,
    TritonRefusal,
)
from autotune.errors import SpaceError, WorkError
from autotune.kernel import CompileResult, LoadedKernel
from autotune.records.canonical import digest
from autotune.records.configuration import Configuration
from autotune.records.device import Device
from autotune.records.kernel_problem import GemmProblem
from autotune.search_spaces import triton_gemm

if TYPE_CHECKING:
    from torch import Tensor


class TritonKind:
    """Points of :mod:`autotune.search_spaces.triton_gemm`, compiled by Triton and launched without it.

    The cache has a folder for each release of Triton. A packed kernel has its plan beside it, so that a later release
    of this package, whose sources have other keys, can launch it.
    """

    def builds(self, device: Device, problem: GemmProblem) -> Sequence[Configuration]:
        """List the legal builds; none for too many rows, or if the architecture or its types are not supported."""
        try:
            return tuple(triton_gemm.space(device, problem))
        except SpaceError:
            return ()

    def first(self, device: Device, problem: GemmProblem, count: int, *, sm_count: int) -> Sequence[Configuration]:
        """Choose by :func:`autotune.search_spaces.triton_gemm.first_candidates`."""
        return triton_gemm.first_candidates(device, problem, sm_count=sm_count, count=count)

    def launches(self, device: Device, problem: GemmProblem, build: Configuration) -> Sequence[Configuration]:
        """Return the build itself: it has no launch parameters."""
        return (build,)

    def build_of(self, candidate: Configuration) -> Configuration:
        """Return the candidate itself, which is its build."""
        return candidate

    def compile(
        self, device: Device, problem: GemmProblem, builds: Sequence[Configuration], folder: Path
    ) -> list[CompileResult]:
        """Compile builds; raises WorkError if Triton is missing or does not work."""
        compiler = TritonCompiler.find(device)
        plans = [plan(problem, build) for build in builds]
        sources = list(dict.fromkeys(source for launch_plan in plans for source in launch_plan.sources))
        results = TritonCache(folder / compiler.version).compile(compiler, sources)
        by_source = dict(zip(sources, results, strict=True))
        return [_joined([by_source[source] for source in launch_plan.sources]) for launch_plan in plans]

    def compiled(
        self, device: Device, problem: GemmProblem, builds: Sequence[Configuration], folder: Path
    ) -> Sequence[Configuration]:
        """Return the builds whose kernels are in the cache, compiled by any release of Triton, or packed."""
        return [build for build in builds if _is_there(device, problem, build, folder)]

    def load(
        self,
        device: Device,
        problem: GemmProblem,
        candidate: Configuration,
        folder: Path,
        *,
        programmatic_launch: bool = False,
    ) -> LoadedKernel:
        """Load a candidate, without programmatic launch; raises WorkError if it is not compiled for this GPU."""
        packed = folder / _packed_name(device, problem, candidate)
        if packed.is_file():
            loaded = load_plan(packed, device.index)
        else:
            launch_plan = plan(problem, candidate)
            kernels = _find(device, candidate, launch_plan.sources, folder)
            loaded = LoadedPlan(
                kernels, launch_plan.launches, workspace_bytes=launch_plan.workspace_bytes, device=device.index
            )
        return _TritonKernel(loaded, problem, candidate, device)

    def pack(
        self, device: Device, problem: GemmProblem, candidate: Configuration, folder: Path, target: Path
    ) -> Mapping[str, str]:
        """Copy a candidate's kernels, and write its plan beside them."""
        launch_plan = plan(problem, candidate)
        kernels = _find(device, candidate, launch_plan.sources, folder)
        return pack_plan(launch_plan, kernels, target, _packed_name(device, problem, candidate))


TRITON_GEMM = TritonKind()


class _TritonKernel:
    def __init__(self, loaded: LoadedPlan, problem: GemmProblem, candidate: Configuration, device: Device) -> None:
        import torch

        self._loaded, self._problem = loaded, problem
        self._resource_usage = {**loaded.resource_usage, "stages": float(candidate["stages"])}
        # A call without a bias, of a problem that has one, adds zeros.
        self._no_bias = torch.zeros(problem.n, device=device.torch_name) if problem.bias else None

    @property
    def resource_usage(self) -> Mapping[str, float]:
        return self._resource_usage

    def __call__(
        self, a: "Tensor", b: "Tensor", bias: "Tensor | None", residual: "Tensor | None", out: "Tensor"
    ) -> None:
        check_operands(self._problem, a, b, bias, residual, out)
        buffers = {"a": a, "b": b, "bias": self._no_bias if bias is None else bias, "residual": residual, "out": out}
        self._loaded({name: tensor for name, tensor in buffers.items() if tensor is not None})


def _joined(results: Sequence[CompiledCubin | TritonRefusal]) -> CompileResult:
    refusal = next((kernel.detail for kernel in results if isinstance(kernel, TritonRefusal)), None)
    return CompileResult(refusal=refusal, compile_s=sum(kernel.compile_s for kernel in results))


def _is_there(device: Device, problem: GemmProblem, candidate: Configuration, folder: Path) -> bool:
    if (folder / _packed_name(device, problem, candidate)).is_file():
        return True
    try:
        _find(device, candidate, plan(problem, candidate).sources, folder)
    except WorkError:
        return False
    return True


def _find(
    device: Device, candidate: Configuration, sources: Sequence[TritonSource], folder: Path
) -> list[CompiledCubin]:
    """Return the kernels that the installed Triton or another release compiled; raises WorkError if there are none."""
    try:
        installed = metadata.version("triton")
    except metadata.PackageNotFoundError:
        installed = ""
    releases = [path for path in folder.glob("*") if path.is_dir()] if folder.is_dir() and device.capability else []
    for release in sorted(releases, key=lambda path: (path.name != installed, path.name)):
        assert device.capability is not None
        compiler = TritonCompiler(version=release.name, capability=device.capability)
        results = [TritonCache(release).get(compiler.key(source)) for source in sources]
        kernels = [kernel for kernel in results if isinstance(kernel, CompiledCubin)]
        if len(kernels) == len(sources):
            return kernels
    raise WorkError(
        f"loading the kernel {candidate} for {device.name}", found=f"it is not compiled in {folder}",
        expected="a kernel that was compiled before it is loaded", run="autotune kernels tune for its problem",
    )  # fmt: skip


def _packed_name(device: Device, problem: GemmProblem, candidate: Configuration) -> str:
    capability = list(device.capability or ())
    key = digest({"problem": problem.as_dict(), "candidate": candidate.as_dict(), "capability": capability})
    return f"{key}.plan.json"
