"""The seam of kernels that are tuned one problem at a time: KernelMaker and Kernel."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from autotune.records.canonical import digest
from autotune.records.configuration import Configuration
from autotune.records.device import Device, Toolchain
from autotune.records.kernel_problem import GemmProblem


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownKernel:
    """A kernel that was measured on a problem, with its median in microseconds."""

    configuration: Configuration
    median_us: float

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"configuration": self.configuration.as_dict(), "median_us": self.median_us}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "KnownKernel":
        """Read what :meth:`as_dict` wrote."""
        return cls(configuration=Configuration.from_dict(data["configuration"]), median_us=float(data["median_us"]))


NEAR = 1.1
"""A kernel that takes so many times as long as the best, timed alone, may be the better one among its neighbours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownKernels:
    """What a build may choose from: by the digest of a problem the best kernel, and the best of the libraries' calls.

    ``near`` are those of our own that take at most :data:`NEAR` times as long as the best, the fastest first: timed
    alone, a kernel does not show how it goes with its neighbours. ``folder`` is the cache in which the kernels lie
    compiled, ``toolchain`` the digest of what they follow from, see :func:`toolchain_of`.
    """

    folder: Path
    toolchain: str = ""
    best: Mapping[str, KnownKernel] = field(default_factory=dict)
    library: Mapping[str, KnownKernel] = field(default_factory=dict)
    near: Mapping[str, tuple[KnownKernel, ...]] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """SHA-256 of what decides which kernels a build takes: the kernels of each problem, in their order.

        Neither the folder nor the times decide it: two databases that know the same kernels give the same digest.
        """
        single = {
            which: {problem: known.configuration.as_dict() for problem, known in found.items()}
            for which, found in (("best", self.best), ("library", self.library))
        }
        near = {
            problem: [known.configuration.as_dict() for known in several]
            for problem, several in self.near.items()
            if several
        }
        return digest({**single, "near": near, "toolchain": self.toolchain})

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "folder": str(self.folder),
            "toolchain": self.toolchain,
            "best": {digest: known.as_dict() for digest, known in self.best.items()},
            "library": {digest: known.as_dict() for digest, known in self.library.items()},
            "near": {digest: [known.as_dict() for known in several] for digest, several in self.near.items()},
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "KnownKernels":
        """Read what :meth:`as_dict` wrote."""
        found = {
            which: {digest: KnownKernel.from_dict(known) for digest, known in data[which].items()}
            for which in ("best", "library")
        }
        near = {
            digest: tuple(KnownKernel.from_dict(known) for known in several) for digest, several in data["near"].items()
        }
        return cls(folder=Path(data["folder"]), toolchain=str(data["toolchain"]), **found, near=near)


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeKernel:
    """What compiling a candidate came to: a kernel that can be loaded, or what the compiler said against it.

    ``compile_s`` is its share of the time of the unit that it was compiled in, 0 where it was compiled before.
    """

    refusal: str | None = None
    compile_s: float = 0.0


class Kernel(Protocol):
    """A loaded kernel for one problem.

    ``a`` has the problem's ``a_shape``: [m, k], or with a window [images, height, width, channels]; ``b`` [n, k] (a
    weight as torch stores it, channels last), ``bias`` [n] in fp32 or ``None``, ``residual`` and ``out`` [m, n]; all on
    the device, contiguous, in the dtypes of the problem.
    """

    @property
    def made(self) -> Mapping[str, float]:
        """What the compiler made of it: registers, spilled_bytes, shared_bytes, stages; empty where nobody tells."""
        ...

    def __call__(self, a: Any, b: Any, bias: Any, residual: Any, out: Any) -> Any:
        """Put the kernel into torch's current stream; it writes ``out``. May be captured in a CUDA graph.

        A library that cannot write into a tensor that it is given returns its own of the same shape instead; all others
        return ``None``.
        """
        ...


class KernelSpace(Protocol):
    """The candidates for one problem on one device."""

    @property
    def builds(self) -> Sequence[Configuration]:
        """What has to be compiled first, each build once, in the order of its kind's rules."""
        ...

    @property
    def ready(self) -> Sequence[Configuration]:
        """Candidates that need no compiler: the libraries' own calls, and kernels that come compiled."""
        ...

    def first(self, count: int) -> Sequence[Configuration]:
        """Choose the builds to begin with."""
        ...

    def suggested(self, count: int) -> Sequence[Configuration]:
        """Give builds that somebody else recommends, the most recommended first; none where nobody does."""
        ...

    def launches(self, build: Configuration) -> Sequence[Configuration]:
        """List the candidates of one build, which differ in what is set at launch; the plainest first."""
        ...


@runtime_checkable
class KernelMaker(Protocol):
    """What a backend has whose kernels are tuned: its attribute ``kernels``. Stateless, imports torch in methods.

    ``toolchain`` names the entries of a toolchain that its kernels follow from.
    """

    toolchain: tuple[str, ...]

    @property
    def sources(self) -> str:
        """Digest of the sources of its own that kernels are compiled from: with other ones they are other kernels."""
        ...

    def space(self, device: Device, problem: GemmProblem) -> KernelSpace:
        """What can compute a problem on a device; raises SpaceError where nothing can."""
        ...

    def compile(
        self, device: Device, problem: GemmProblem, builds: Sequence[Configuration], folder: Path
    ) -> list[MadeKernel]:
        """Compile builds, side by side within memory, into a cache that many processes share.

        Needs no GPU. Raises WorkError where there is no compiler and one of them is not there, or it fails by itself.
        """
        ...

    def compiled(
        self, device: Device, problem: GemmProblem, builds: Sequence[Configuration], folder: Path
    ) -> Sequence[Configuration]:
        """Give those of the builds that are compiled and lie in the cache, in their order: they need no compiler."""
        ...

    def load(
        self, device: Device, problem: GemmProblem, candidate: Configuration, folder: Path, *, early: bool = False
    ) -> Kernel:
        """Load a candidate that is compiled (its build in the cache ``folder``) or needs no compiler.

        With ``early`` its launches may begin before those before them in the stream have ended (programmatic dependent
        launch), where it knows how: then ``b`` and ``bias`` are read at once, so they are constants written long ago.
        Raises WorkError where it cannot be loaded: not compiled, another architecture, refused by its library.
        """
        ...

    def pack(
        self, device: Device, problem: GemmProblem, candidate: Configuration, folder: Path, target: Path
    ) -> Mapping[str, str]:
        """Copy what :meth:`load` needs of a candidate from the cache into another one, which may travel.

        Returns the names of the copied files with the digests of the sources they were compiled from; nothing where the
        candidate needs no file. Raises WorkError where it is not compiled.
        """
        ...

    def compute(self, problem: GemmProblem, a: Any, b: Any, bias: Any, residual: Any) -> Any:
        """The problem in plain torch and the operands' own precision: what a kernel must equal within rounding."""
        ...


def toolchain_of(maker: KernelMaker, installed: Toolchain) -> Toolchain:
    """What the kernels of a maker follow from: versions that are installed, and the maker's own sources."""
    return Toolchain.of({**installed.only(maker.toolchain).as_dict(), "sources": maker.sources})


def wants_kernels(configuration: Configuration) -> bool:
    """Whether a configuration leaves kernels of its graph to others than torch, so that its build is handed some."""
    return configuration.get("kernels", "torch") != "torch"
