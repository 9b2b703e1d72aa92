"""The kernels of the native backend, kind by kind, behind autotune.kernel.KernelProvider: NativeKernels."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

from autotune.backends.native import cublaslt, library
from autotune.backends.native.cublaslt import CUBLASLT
from autotune.backends.native.cuda_kernels import kernel_sets
from autotune.backends.native.cuda_kernels.cuda_kind import CLUSTER_GEMM, HOPPER_GEMM
from autotune.backends.native.cuda_kernels.launch_arguments import ABI
from autotune.backends.native.cutlass import matmul_heuristics
from autotune.backends.native.cutlass.cutlass_kind import CUTLASS
from autotune.backends.native.kernel_kind import CompiledKind, LibraryKind
from autotune.backends.native.library import TORCH
from autotune.backends.native.triton_kernels.triton_kind import TRITON_GEMM
from autotune.errors import DeviceError, SpaceError, WorkError
from autotune.kernel import CompileResult, LoadedKernel, StoredKernel
from autotune.records.canonical import digest
from autotune.records.configuration import Configuration
from autotune.records.device import Device
from autotune.records.kernel_problem import GemmProblem
from autotune.search_spaces import cluster_gemm, cutlass_gemm, hopper_gemm, triton_gemm

if TYPE_CHECKING:
    from torch import Tensor

LIBRARIES: Mapping[str, LibraryKind] = {cublaslt.NAME: CUBLASLT, library.NAME: TORCH}
"""Kinds of kernels that are shipped compiled, by the backend of their configurations."""

COMPILED: Mapping[str, CompiledKind] = {
    hopper_gemm.NAME: HOPPER_GEMM, cutlass_gemm.NAME: CUTLASS, cluster_gemm.NAME: CLUSTER_GEMM,
    triton_gemm.NAME: TRITON_GEMM,
}  # fmt: skip
"""Kinds of kernels that are compiled first."""


SMS_OF_H200 = 132

SOURCES = ("cutlass/*.h", "cutlass/*.cuh", "cuda_kernels/*.cuh", "triton_kernels/gemm_kernels.py")
"""The files that tuned kernels are compiled from. Code that is generated from a configuration is not in a file."""


@dataclass(frozen=True, kw_only=True)
class NativeSpace:
    """The candidates for one problem on one device, by kind."""

    device: Device
    problem: GemmProblem
    sm_count: int | None = None

    @cached_property
    def builds(self) -> Sequence[Configuration]:
        """The configurations that have to be compiled first."""
        return tuple(build for builds in self._by_kind.values() for build in builds)

    @cached_property
    def ready(self) -> Sequence[Configuration]:
        """The libraries' calls."""
        return tuple(candidate for kind in LIBRARIES.values() for candidate in kind.ready(self.device, self.problem))

    def first(self, count: int) -> Sequence[Configuration]:
        """Choose the builds to begin with: the kinds take turns, each with its own choice.

        Reads the GPU's number of SMs unless it was given; raises DeviceError without a GPU.
        """
        if count < 1 or not self.builds:
            return ()
        sm_count = self.sm_count or _sm_count(self.device)
        chosen = [
            COMPILED[kind].first(self.device, self.problem, count, sm_count=sm_count)
            for kind, builds in self._by_kind.items()
            if builds
        ]
        turns = (build for turn in zip_longest(*chosen) for build in turn if build is not None)
        return tuple(turns)[:count]

    def suggested(self, count: int) -> Sequence[Configuration]:
        """Ask nvMatmulHeuristics for CUTLASS tiles, if it is installed."""
        return matmul_heuristics.suggested(self.device, self.problem, count)

    def launches(self, build: Configuration) -> Sequence[Configuration]:
        """List the candidates of one build, the plainest first."""
        return _kind(build).launches(self.device, self.problem, build)

    @cached_property
    def _by_kind(self) -> Mapping[str, Sequence[Configuration]]:
        return {name: kind.builds(self.device, self.problem) for name, kind in COMPILED.items()}


class NativeKernels:
    """Kernels of every kind; see :class:`autotune.kernel.KernelProvider`.

    ``sm_count`` is for machines that choose builds for a GPU that they do not have; without it the GPU is asked.
    A loaded kernel allocates the workspace of a launch by torch's allocator, which keeps the memory of one stream or
    graph separate from the others.
    """

    # The entries that decide a kernel's code or a library's choice. nvcc is not among them: it translates the same code
    # for the same architecture, so kernels that another machine or another release compiled are valid too.
    toolchain: tuple[str, ...] = ("cublaslt", "cutlass", "torch", "triton")

    @cached_property
    def sources(self) -> str:
        """Digest of the headers and of the text of the Triton kernels of GEMMs."""
        here = Path(__file__).parent
        files = [path for pattern in SOURCES for path in sorted(here.glob(pattern))]
        return digest({path.relative_to(here).as_posix(): path.read_text() for path in files})

    def __init__(self, *, sm_count: int | None = None) -> None:
        self.sm_count = sm_count

    def space(self, device: Device, problem: GemmProblem) -> NativeSpace:
        """Return the candidates for a problem; raises SpaceError if kernels do not read its operands' layout.

        If no compiled kind supports the architecture, the types or the alignment, the libraries' calls remain.
        """
        if problem.a_major != "k" or problem.b_major != "k":
            raise SpaceError(
                f"kernels for {problem.canonical}", found=f"A {problem.a_major}-major, B {problem.b_major}-major",
                expected="both k-major: a linear layer's activations and its weight as torch stores them",
            )  # fmt: skip
        return NativeSpace(device=device, problem=problem, sm_count=self.sm_count)

    def compile(
        self, device: Device, problem: GemmProblem, builds: Sequence[Configuration], folder: Path
    ) -> list[CompileResult]:
        """Compile builds into the cache ``folder``, in their order; refusals are cached as well.

        If the compiler of a kind is missing but all of its builds are in the cache, those are used.
        """
        results: dict[Configuration, CompileResult] = {}
        for name, same in _grouped(builds):
            kind = _kind(same[0])
            try:
                results |= zip(same, kind.compile(device, problem, same, folder / name), strict=True)
            except WorkError:
                if len(kind.compiled(device, problem, same, folder / name)) < len(same):
                    raise
                results |= {build: CompileResult() for build in same}
        return [results[build] for build in builds]

    def compiled(
        self, device: Device, problem: GemmProblem, builds: Sequence[Configuration], folder: Path
    ) -> Sequence[Configuration]:
        """Return the builds that are in the cache, compiled here or by another machine."""
        there: set[Configuration] = set()
        for name, same in _grouped(builds):
            there |= set(_kind(same[0]).compiled(device, problem, same, folder / name))
        return [build for build in builds if build in there]

    def load(
        self,
        device: Device,
        problem: GemmProblem,
        candidate: Configuration,
        folder: Path,
        *,
        programmatic_launch: bool = False,
    ) -> LoadedKernel:
        """Load a candidate; raises WorkError if it is not compiled, or refused by its library."""
        name = candidate.backend
        if name in LIBRARIES:
            return LIBRARIES[name].load(device, problem, candidate, folder)
        return _kind(candidate).load(device, problem, candidate, folder / name, programmatic_launch=programmatic_launch)

    def pack(
        self, device: Device, problem: GemmProblem, candidate: Configuration, folder: Path, target: Path
    ) -> Mapping[str, str]:
        """Copy the files that loading a candidate reads into another cache; the libraries' calls read none.

        One that another machine compiled is compiled here first; raises WorkError if that cannot be.
        """
        name = candidate.backend
        if name in LIBRARIES:
            return {}
        kind = _kind(candidate)
        try:
            copied = kind.pack(device, problem, candidate, folder / name, target / name)
        except WorkError:
            (result,) = kind.compile(device, problem, [kind.build_of(candidate)], folder / name)
            if result.refusal is not None:
                raise
            copied = kind.pack(device, problem, candidate, folder / name, target / name)
        return {f"{name}/{file}": source for file, source in copied.items()}

    abi = ABI

    @property
    def architectures(self) -> tuple[str, ...]:
        """The architectures that have a standard set of kernels."""
        return tuple(kernel_sets.architectures())

    def stored(self, folder: Path) -> Sequence[StoredKernel]:
        """List our CUDA kernels in a cache; those of Triton and CUTLASS are not packed."""
        return kernel_sets.stored_kernels(folder)

    def check_stored(self, folder: Path, kernel: StoredKernel) -> None:
        """Read a kernel; raises WorkError if it is damaged or of another ABI."""
        kernel_sets.check_stored(folder, kernel)

    def compile_set(
        self, architecture: str, dtypes: Sequence[str], problems: Sequence[GemmProblem], folder: Path, *, jobs: int,
        tell: Callable[[int, int], None],
    ) -> list[CompileResult]:  # fmt: skip
        """Compile the standard set of an architecture and the first builds of problems; raises WorkError if it cannot.

        Without ``sm_count`` the first builds are chosen for a GPU with as many SMs as an H200 has.
        """
        sources = list(kernel_sets.standard_sources(architecture, dtypes))
        for problem in problems:
            sources += kernel_sets.problem_sources(architecture, problem, sm_count=self.sm_count or SMS_OF_H200)
        return kernel_sets.compile_set(sources, folder, jobs=jobs, tell=tell)

    def compute(
        self, problem: GemmProblem, a: "Tensor", b: "Tensor", bias: "Tensor | None", residual: "Tensor | None"
    ) -> "Tensor":
        """Compute the problem in plain torch, every step in the type of ``a``."""
        return library.compute(problem, a, b, bias, residual)


KERNELS = NativeKernels()


def _grouped(builds: Sequence[Configuration]) -> Iterator[tuple[str, list[Configuration]]]:
    for kind in dict.fromkeys(build.backend for build in builds):
        yield kind, list(dict.fromkeys(build for build in builds if build.backend == kind))


def _kind(configuration: Configuration) -> CompiledKind:
    kind = COMPILED.get(configuration.backend)
    if kind is None:
        raise WorkError(
            f"a kernel {configuration}", found=f"kind {configuration.backend!r}",
            expected=f"one of {', '.join((*COMPILED, *LIBRARIES))}", run="autotune kernels list",
        )  # fmt: skip
    return kind


def _sm_count(device: Device) -> int:
    """Read the number of SMs of the GPU."""
    import torch

    if device.kind != "cuda" or not torch.cuda.is_available():
        raise DeviceError(
            f"choosing kernels for {device.name}", found="no GPU to read the number of SMs from",
            expected="the GPU, or NativeKernels(sm_count=...)", run="autotune doctor",
        )  # fmt: skip
    return int(torch.cuda.get_device_properties(device.index).multi_processor_count)
