"""Triton's GEMMs with few rows as a kind of kernels: which there are, how they are compiled, found and launched."""

from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from autotune.backends.native.kind import check_operands
from autotune.backends.native.triton_kernels.ahead import CompiledKernel, Refused, TritonCache, TritonCompiler
from autotune.backends.native.triton_kernels.gemm import plan
from autotune.backends.native.triton_kernels.launch import LoadedPlan
from autotune.backends.native.triton_kernels.packed import load_plan, pack_plan
from autotune.backends.native.triton_kernels.plan import TritonSource
from autotune.errors import SpaceError, WorkError
from autotune.kernel import Kernel, MadeKernel
from autotune.records.canonical import digest
from autotune.records.configuration import Configuration
from autotune.records.device import Device
from autotune.records.kernel_problem import GemmProblem
from autotune.search_spaces import triton_gemm


class TritonGemm:
    """Points of :mod:`autotune.search_spaces.triton_gemm`, compiled by Triton and launched without it.

    The cache has a folder for each release of Triton. What was packed for another place has its plan beside its
    kernels, so that a later release of this package, whose sources have other keys, launches it as well.
    """

    def builds(self, device: Device, problem: GemmProblem) -> Sequence[Configuration]:
        """List what is legal; none for more rows, or where the architecture or its types are not served."""
        try:
            return tuple(triton_gemm.space(device, problem))
        except SpaceError:
            return ()

    def first(
        self, device: Device, problem: GemmProblem, count: int, *, multiprocessors: int
    ) -> Sequence[Configuration]:
        """Choose by :func:`autotune.search_spaces.triton_gemm.first_candidates`."""
        return triton_gemm.first_candidates(device, problem, multiprocessors=multiprocessors, count=count)

    def launches(self, device: Device, problem: GemmProblem, build: Configuration) -> Sequence[Configuration]:
        """Everything is set at build."""
        return (build,)

    def build_of(self, candidate: Configuration) -> Configuration:
        """A candidate is its build."""
        return candidate

    def compile(
        self, device: Device, problem: GemmProblem, builds: Sequence[Configuration], folder: Path
    ) -> list[MadeKernel]:
        """Compile; raises WorkError where Triton is missing or does not work."""
        compiler = TritonCompiler.find(device)
        plans = [plan(problem, build) for build in builds]
        sources = list(dict.fromkeys(source for one in plans for source in one.sources))
        found = TritonCache(folder / compiler.version).compile(compiler, sources)
        came_to = dict(zip(sources, found, strict=True))
        return [_made([came_to[source] for source in one.sources]) for one in plans]

    def compiled(
        self, device: Device, problem: GemmProblem, builds: Sequence[Configuration], folder: Path
    ) -> Sequence[Configuration]:
        """Give the points whose kernels are there, compiled by any release of Triton, or packed."""
        return [build for build in builds if _is_there(device, problem, build, folder)]

    def load(
        self, device: Device, problem: GemmProblem, candidate: Configuration, folder: Path, *, early: bool = False
    ) -> Kernel:
        """Load a candidate, never to begin early; raises WorkError where it is not compiled, or not for this GPU."""
        packed = folder / _packed_name(device, problem, candidate)
        if packed.is_file():
            loaded = load_plan(packed, device.index)
        else:
            made = plan(problem, candidate)
            kernels = _find(device, candidate, made.sources, folder)
            loaded = LoadedPlan(kernels, made.launches, workspace_bytes=made.workspace_bytes, device=device.index)
        return _TritonKernel(loaded, problem, candidate, device)

    def pack(
        self, device: Device, problem: GemmProblem, candidate: Configuration, folder: Path, target: Path
    ) -> Mapping[str, str]:
        """Copy a candidate's kernels, and write its plan beside them."""
        made = plan(problem, candidate)
        kernels = _find(device, candidate, made.sources, folder)
        return pack_plan(made, kernels, target, _packed_name(device, problem, candidate))


TRITON_GEMM = TritonGemm()


class _TritonKernel:
    def __init__(self, loaded: LoadedPlan, problem: GemmProblem, candidate: Configuration, device: Device) -> None:
        import torch

        self._loaded, self._problem = loaded, problem
        self._made = {**loaded.made, "stages": float(candidate["stages"])}
        # What is called without a bias for a problem with one adds zeros.
        self._no_bias = torch.zeros(problem.n, device=device.torch_name) if problem.bias else None

    @property
    def made(self) -> Mapping[str, float]:
        return self._made

    def __call__(self, a: Any, b: Any, bias: Any, residual: Any, out: Any) -> None:
        check_operands(self._problem, a, b, bias, residual, out)
        given = {"a": a, "b": b, "bias": self._no_bias if bias is None else bias, "residual": residual, "out": out}
        self._loaded({name: tensor for name, tensor in given.items() if tensor is not None})


def _made(found: Sequence[CompiledKernel | Refused]) -> MadeKernel:
    refusal = next((kernel.detail for kernel in found if isinstance(kernel, Refused)), None)
    return MadeKernel(refusal=refusal, compile_s=sum(kernel.compile_s for kernel in found))


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
) -> list[CompiledKernel]:
    """Find kernels compiled by the Triton that is installed, or by another one."""
    try:
        installed = metadata.version("triton")
    except metadata.PackageNotFoundError:
        installed = ""
    releases = [path for path in folder.glob("*") if path.is_dir()] if folder.is_dir() and device.capability else []
    for release in sorted(releases, key=lambda path: (path.name != installed, path.name)):
        assert device.capability is not None
        compiler = TritonCompiler(version=release.name, capability=device.capability)
        found = [TritonCache(release).get(compiler.key(source)) for source in sources]
        kernels = [kernel for kernel in found if isinstance(kernel, CompiledKernel)]
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
