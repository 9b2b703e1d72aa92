"""What makes the native backend's kernels: one table of the kinds of kernels, behind autotune.kernel.KernelMaker."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from typing import Any

from autotune.backends.native import cublaslt, library
from autotune.backends.native.cublaslt import CUBLASLT
from autotune.backends.native.cuda_kernels.kind import CLUSTER_GEMM, HOPPER_GEMM
from autotune.backends.native.cutlass import matmul_heuristics
from autotune.backends.native.cutlass.kind import CUTLASS
from autotune.backends.native.kind import CompiledKind, LibraryKind
from autotune.backends.native.library import TORCH
from autotune.backends.native.triton_kernels.kind import TRITON_GEMM
from autotune.errors import DeviceError, SpaceError, WorkError
from autotune.kernel import Kernel, MadeKernel
from autotune.records.canonical import digest
from autotune.records.configuration import Configuration
from autotune.records.device import Device
from autotune.records.kernel_problem import GemmProblem
from autotune.search_spaces import cluster_gemm, cutlass_gemm, hopper_gemm, triton_gemm

LIBRARIES: Mapping[str, LibraryKind] = {cublaslt.NAME: CUBLASLT, library.NAME: TORCH}
"""Kinds of kernels that come compiled, by the backend of their configurations."""

COMPILED: Mapping[str, CompiledKind] = {
    hopper_gemm.NAME: HOPPER_GEMM, cutlass_gemm.NAME: CUTLASS, cluster_gemm.NAME: CLUSTER_GEMM,
    triton_gemm.NAME: TRITON_GEMM,
}  # fmt: skip
"""Kinds of kernels that are compiled first."""


SOURCES = ("cutlass/*.h", "cutlass/*.cuh", "cuda_kernels/*.cuh", "triton_kernels/gemm_kernels.py")
"""What tuned kernels are compiled from; what is generated from a configuration is in the configuration."""


@dataclass(frozen=True, kw_only=True)
class NativeSpace:
    """The candidates for one problem on one device, kind after kind."""

    device: Device
    problem: GemmProblem
    multiprocessors: int | None = None

    @cached_property
    def builds(self) -> Sequence[Configuration]:
        """What has to be compiled first."""
        return tuple(build for builds in self._by_kind.values() for build in builds)

    @cached_property
    def ready(self) -> Sequence[Configuration]:
        """The libraries' calls."""
        return tuple(found for kind in LIBRARIES.values() for found in kind.ready(self.device, self.problem))

    def first(self, count: int) -> Sequence[Configuration]:
        """Choose the builds to begin with: each kind's own choice, the kinds taking turns.

        Counts the GPU's multiprocessors, unless they were given; raises DeviceError without a GPU.
        """
        if count < 1 or not self.builds:
            return ()
        multiprocessors = self.multiprocessors or _multiprocessors(self.device)
        chosen = [
            COMPILED[kind].first(self.device, self.problem, count, multiprocessors=multiprocessors)
            for kind, builds in self._by_kind.items()
            if builds
        ]
        turns = (build for turn in zip_longest(*chosen) for build in turn if build is not None)
        return tuple(turns)[:count]

    def suggested(self, count: int) -> Sequence[Configuration]:
        """Ask nvMatmulHeuristics for CUTLASS tiles, where it is installed."""
        return matmul_heuristics.suggested(self.device, self.problem, count)

    def launches(self, build: Configuration) -> Sequence[Configuration]:
        """List the candidates of one build, the plainest first."""
        return _kind(build).launches(self.device, self.problem, build)

    @cached_property
    def _by_kind(self) -> Mapping[str, Sequence[Configuration]]:
        return {name: kind.builds(self.device, self.problem) for name, kind in COMPILED.items()}


class NativeKernels:
    """Makes kernels of every kind; see :class:`autotune.kernel.KernelMaker`.

    ``multiprocessors`` is for machines that choose builds for a GPU that they do not have; without it the GPU is asked.
    A loaded kernel takes the workspace of a launch from torch's allocator, which keeps what one stream or graph uses
    from the others.

    The toolchain has what decides a kernel's code or a library's choice. nvcc is not part of it: it translates the same
    code for the same architecture, so that kernels that were compiled elsewhere, or by another release, serve.
    """

    toolchain: tuple[str, ...] = ("cublaslt", "cutlass", "torch", "triton")

    @cached_property
    def sources(self) -> str:
        """Digest of the headers and of the text of the Triton kernels."""
        here = Path(__file__).parent
        files = [path for pattern in SOURCES for path in sorted(here.glob(pattern))]
        return digest({path.relative_to(here).as_posix(): path.read_text() for path in files})

    def __init__(self, *, multiprocessors: int | None = None) -> None:
        self.multiprocessors = multiprocessors

    def space(self, device: Device, problem: GemmProblem) -> NativeSpace:
        """List what can compute a problem; raises SpaceError where its operands have another layout than kernels take.

        Where no kind of compiled kernel serves the architecture, the types or the alignment, the libraries remain.
        """
        if problem.a_major != "k" or problem.b_major != "k":
            raise SpaceError(
                f"kernels for {problem.canonical}", found=f"A {problem.a_major}-major, B {problem.b_major}-major",
                expected="both k-major: a linear layer's activations and its weight as torch stores them",
            )  # fmt: skip
        return NativeSpace(device=device, problem=problem, multiprocessors=self.multiprocessors)

    def compile(
        self, device: Device, problem: GemmProblem, builds: Sequence[Configuration], folder: Path
    ) -> list[MadeKernel]:
        """Compile builds into the cache ``folder``, in their order; a refusal is kept and said again.

        Where the compiler of a kind is missing, those that are there serve as they are.
        """
        made: dict[Configuration, MadeKernel] = {}
        for name, same in _grouped(builds):
            kind = _kind(same[0])
            try:
                made |= zip(same, kind.compile(device, problem, same, folder / name), strict=True)
            except WorkError:
                if len(kind.compiled(device, problem, same, folder / name)) < len(same):
                    raise
                made |= {build: MadeKernel() for build in same}
        return [made[build] for build in builds]

    def compiled(
        self, device: Device, problem: GemmProblem, builds: Sequence[Configuration], folder: Path
    ) -> Sequence[Configuration]:
        """Give those of the builds that lie in the cache, compiled here or by another machine."""
        there: set[Configuration] = set()
        for name, same in _grouped(builds):
            there |= set(_kind(same[0]).compiled(device, problem, same, folder / name))
        return [build for build in builds if build in there]

    def load(
        self, device: Device, problem: GemmProblem, candidate: Configuration, folder: Path, *, early: bool = False
    ) -> Kernel:
        """Load a candidate; raises WorkError where it is not compiled, or refused by its library."""
        name = candidate.backend
        if name in LIBRARIES:
            return LIBRARIES[name].load(device, problem, candidate, folder)
        return _kind(candidate).load(device, problem, candidate, folder / name, early=early)

    def pack(
        self, device: Device, problem: GemmProblem, candidate: Configuration, folder: Path, target: Path
    ) -> Mapping[str, str]:
        """Copy what loading a candidate reads from the cache into another one; the libraries' calls read nothing.

        One that another machine compiled is compiled here first; raises WorkError where that cannot be.
        """
        name = candidate.backend
        if name in LIBRARIES:
            return {}
        kind = _kind(candidate)
        try:
            copied = kind.pack(device, problem, candidate, folder / name, target / name)
        except WorkError:
            (made,) = kind.compile(device, problem, [kind.build_of(candidate)], folder / name)
            if made.refusal is not None:
                raise
            copied = kind.pack(device, problem, candidate, folder / name, target / name)
        return {f"{name}/{file}": source for file, source in copied.items()}

    def compute(self, problem: GemmProblem, a: Any, b: Any, bias: Any, residual: Any) -> Any:
        """The problem in plain torch, every step in the type of ``a``."""
        return library.compute(problem, a, b, bias, residual)


KERNELS = NativeKernels()


def _grouped(builds: Sequence[Configuration]) -> Iterator[tuple[str, list[Configuration]]]:
    for kind in dict.fromkeys(build.backend for build in builds):
        yield kind, list(dict.fromkeys(build for build in builds if build.backend == kind))


def _kind(configuration: Configuration) -> CompiledKind:
    found = COMPILED.get(configuration.backend)
    if found is None:
        raise WorkError(
            f"a kernel {configuration}", found=f"kind {configuration.backend!r}",
            expected=f"one of {', '.join((*COMPILED, *LIBRARIES))}", run="autotune kernels list",
        )  # fmt: skip
    return found


def _multiprocessors(device: Device) -> int:
    """Ask the GPU how many multiprocessors it has."""
    import torch

    if device.kind != "cuda" or not torch.cuda.is_available():
        raise DeviceError(
            f"choosing kernels for {device.name}", found="no GPU to count the multiprocessors of",
            expected="the GPU, or NativeKernels(multiprocessors=...) with their number", run="autotune doctor",
        )  # fmt: skip
    return int(torch.cuda.get_device_properties(device.index).multi_processor_count)
