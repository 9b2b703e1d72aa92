"""The interface to kernels that are tuned one problem at a time: KernelProvider, KernelSpace and LoadedKernel."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from autotune.records.canonical import digest
from autotune.records.configuration import Configuration
from autotune.records.device import Device, Toolchain
from autotune.records.kernel_problem import GemmProblem

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownKernel:
    """A kernel that was measured on a problem, with its median in microseconds."""

    configuration: Configuration
    median_us: float

    def as_dict(self) -> dict[str, object]:
        """Return plain data for JSON."""
        return {"configuration": self.configuration.as_dict(), "median_us": self.median_us}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "KnownKernel":
        """Read the output of :meth:`as_dict`."""
        return cls(configuration=Configuration.from_dict(data["configuration"]), median_us=float(data["median_us"]))


NEAR = 1.1
"""A kernel that takes at most this many times as long as the best, timed alone, may be the better one in a graph."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownKernels:
    """The measured kernels that a build may choose from, by the digest of their problem.

    ``best`` has the fastest kernel of each problem, ``library`` the fastest call of a library. ``near`` has our own
    kernels that take at most :data:`NEAR` times as long as the best, the fastest first: a time that was measured alone
    does not show how a kernel runs beside its neighbours. ``folder`` is the cache with the compiled kernels,
    ``toolchain`` the digest of the versions that they depend on, see :func:`toolchain_of`.
    """

    folder: Path
    toolchain: str = ""
    best: Mapping[str, KnownKernel] = field(default_factory=dict)
    library: Mapping[str, KnownKernel] = field(default_factory=dict)
    near: Mapping[str, tuple[KnownKernel, ...]] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """SHA-256 of all that decides which kernels a build uses: the kernels of each problem, in their order.

        Neither the folder nor the times decide it: two databases with the same kernels have the same digest.
        """
        single = {
            name: {problem: kernel.configuration.as_dict() for problem, kernel in kernels.items()}
            for name, kernels in (("best", self.best), ("library", self.library))
        }
        near = {
            problem: [kernel.configuration.as_dict() for kernel in kernels]
            for problem, kernels in self.near.items()
            if kernels
        }
        return digest({**single, "near": near, "toolchain": self.toolchain})

    def as_dict(self) -> dict[str, object]:
        """Return plain data for JSON."""
        return {
            "folder": str(self.folder),
            "toolchain": self.toolchain,
            "best": {digest: kernel.as_dict() for digest, kernel in self.best.items()},
            "library": {digest: kernel.as_dict() for digest, kernel in self.library.items()},
            "near": {digest: [kernel.as_dict() for kernel in kernels] for digest, kernels in self.near.items()},
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "KnownKernels":
        """Read the output of :meth:`as_dict`."""
        single = {
            name: {digest: KnownKernel.from_dict(kernel) for digest, kernel in data[name].items()}
            for name in ("best", "library")
        }
        near = {
            digest: tuple(KnownKernel.from_dict(kernel) for kernel in kernels)
            for digest, kernels in data["near"].items()
        }
        return cls(folder=Path(data["folder"]), toolchain=str(data["toolchain"]), **single, near=near)


@dataclass(frozen=True, slots=True, kw_only=True)
class CompileResult:
    """The result of compiling a candidate: a kernel that can be loaded, or the compiler's error message.

    ``compile_s`` is the kernel's share of the time of the unit that it was compiled in, 0 if it was in the cache.
    """

    refusal: str | None = None
    compile_s: float = 0.0


class LoadedKernel(Protocol):
    """A kernel for one problem that is ready to run.

    ``a`` has the problem's ``a_shape``: [m, k], or with a window [images, height, width, channels]; ``b`` [n, k] (a
    weight as torch stores it, channels last), ``bias`` [n] in fp32 or ``None``, ``residual`` and ``out`` [m, n]; all on
    the device, contiguous, in the dtypes of the problem.
    """

    @property
    def resource_usage(self) -> Mapping[str, float]:
        """The resources that the compiler gave it: registers, spilled_bytes, shared_bytes, stages; empty if unknown."""
        ...

    def __call__(
        self, a: "Tensor", b: "Tensor", bias: "Tensor | None", residual: "Tensor | None", out: "Tensor"
    ) -> "Tensor | None":
        """Enqueue the kernel in torch's current stream; it writes ``out``. May be captured in a CUDA graph.

        Returns ``None``. Only a library that cannot write into a given tensor returns its own, of the same shape.
        """
        ...


class KernelSpace(Protocol):
    """The candidates for one problem on one device."""

    @property
    def builds(self) -> Sequence[Configuration]:
        """The configurations that need a compiler, each once, in the order of their kind's rules."""
        ...

    @property
    def ready(self) -> Sequence[Configuration]:
        """The candidates that need no compiler: the libraries' own calls, and kernels that are shipped compiled."""
        ...

    def first(self, count: int) -> Sequence[Configuration]:
        """Choose the builds that a search begins with."""
        ...

    def suggested(self, count: int) -> Sequence[Configuration]:
        """Return builds that an outside source recommends, the most recommended first; none without such a source."""
        ...

    def launches(self, build: Configuration) -> Sequence[Configuration]:
        """List the candidates of one build, which differ in their launch parameters; the plainest first."""
        ...


@runtime_checkable
class KernelProvider(Protocol):
    """The attribute ``kernels`` of a backend whose kernels are tuned. Stateless; imports torch inside its methods.

    ``toolchain`` names the entries of a toolchain that its kernels depend on.
    """

    toolchain: tuple[str, ...]

    @property
    def sources(self) -> str:
        """Digest of the backend's own sources that kernels are compiled from: other sources mean other kernels."""
        ...

    def space(self, device: Device, problem: GemmProblem) -> KernelSpace:
        """Return the candidates for a problem on a device; raises SpaceError if there are none."""
        ...

    def compile(
        self, device: Device, problem: GemmProblem, builds: Sequence[Configuration], folder: Path
    ) -> list[CompileResult]:
        """Compile builds, in parallel as far as memory allows, into a cache that several processes share.

        Needs no GPU. Raises WorkError if a build is not in the cache and the compiler is missing or itself fails.
        """
        ...

    def compiled(
        self, device: Device, problem: GemmProblem, builds: Sequence[Configuration], folder: Path
    ) -> Sequence[Configuration]:
        """Return the builds that are in the cache and need no compiler, in their order."""
        ...

    def load(
        self,
        device: Device,
        problem: GemmProblem,
        candidate: Configuration,
        folder: Path,
        *,
        programmatic_launch: bool = False,
    ) -> LoadedKernel:
        """Load a candidate that is compiled (its build is in the cache ``folder``) or needs no compiler.

        With ``programmatic_launch``, if the kernel supports it, a launch may begin before the launches before it in the
        stream have ended (programmatic dependent launch). It then reads ``b`` and ``bias`` at once, so these must be
        constants that were written long before.
        Raises WorkError if it cannot be loaded: not compiled, another architecture, refused by its library.
        """
        ...

    def pack(
        self, device: Device, problem: GemmProblem, candidate: Configuration, folder: Path, target: Path
    ) -> Mapping[str, str]:
        """Copy the files that :meth:`load` needs for a candidate into another cache, which may go to another machine.

        Returns the names of the copied files with the digests of the sources they were compiled from; empty if the
        candidate needs no file. Raises WorkError if it is not compiled.
        """
        ...

    def compute(
        self, problem: GemmProblem, a: "Tensor", b: "Tensor", bias: "Tensor | None", residual: "Tensor | None"
    ) -> "Tensor":
        """Compute the problem in plain torch, in the operands' precision: a kernel must equal this within rounding."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredKernel:
    """A compiled kernel in a cache or a pack, whose ``files`` are relative to it.

    ``kind`` and ``group`` (architecture, types, form) describe it in words. ``cuda`` is the release that compiled it:
    a driver of an earlier one does not load it. A release of this package launches the kernels of its own ``abi``.
    """

    name: str
    kind: str
    architecture: str
    group: str
    abi: int
    cuda: tuple[int, int]
    files: tuple[str, ...]


@runtime_checkable
class PacksKernels(Protocol):
    """The further members of a :class:`KernelProvider` whose compiled kernels travel between machines as packs.

    ``abi`` is the number of the interface to its kernels, ``architectures`` those that it has a standard set for.
    """

    abi: int
    architectures: tuple[str, ...]

    def stored(self, folder: Path) -> Sequence[StoredKernel]:
        """List the whole kernels of a cache; damaged ones are left out."""
        ...

    def check_stored(self, folder: Path, kernel: StoredKernel) -> None:
        """Read a kernel; raises WorkError if it is damaged or of another ABI."""
        ...

    def compile_set(
        self, architecture: str, dtypes: Sequence[str], problems: Sequence[GemmProblem], folder: Path, *, jobs: int,
        tell: Callable[[int, int], None],
    ) -> list[CompileResult]:  # fmt: skip
        """Compile the standard set of an architecture and the first builds of problems, ``jobs`` at once.

        ``tell`` gets the number of compiled kernels, and of all. Raises WorkError without a compiler.
        """
        ...


def toolchain_of(provider: KernelProvider, installed: Toolchain) -> Toolchain:
    """Return all that the kernels of a provider depend on: installed versions, and the provider's own sources."""
    return Toolchain.of({**installed.only(provider.toolchain).as_dict(), "sources": provider.sources})


def wants_kernels(configuration: Configuration) -> bool:
    """Return true if a configuration uses other kernels than torch's in its graph, so that its build needs some."""
    return configuration.get("kernels", "torch") != "torch"


_EARLIER_USAGE = "made"


def resource_usage_of(kernel: LoadedKernel) -> Mapping[str, float]:
    """Return the resource usage of a kernel; a plug-in's kernel may have it under its name of version 0.1, ``made``."""
    if not hasattr(kernel, "resource_usage"):
        message = f"{type(kernel).__name__}.made is now resource_usage; the old name goes with version 0.3.0"
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        usage: Mapping[str, float] = getattr(kernel, _EARLIER_USAGE)
        return usage
    return kernel.resource_usage


_NEW_NAMES = {"Kernel": "LoadedKernel", "KernelMaker": "KernelProvider", "MadeKernel": "CompileResult"}
"""New names by those of version 0.1; to be removed in 0.3.0."""


def __getattr__(name: str) -> object:
    """Return a class under its old name, with a warning that names the line that uses it."""
    if name not in _NEW_NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    message = f"{__name__}.{name} is now {_NEW_NAMES[name]}; the old name goes with version 0.3.0"
    warnings.warn(message, DeprecationWarning, stacklevel=2)
    return globals()[_NEW_NAMES[name]]
