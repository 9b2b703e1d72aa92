"""The kinds of kernels: what each has to offer, and what every one of them may rely on when it is called."""

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from autotune.kernel import Kernel, MadeKernel
from autotune.records.configuration import Configuration
from autotune.records.device import Device
from autotune.records.kernel_problem import GemmProblem

ALIGNMENT_BYTES = 16
"""Every operand begins at a multiple of it, as torch allocates; kernels are chosen for that."""

TORCH_NAMES = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}


class Build(Protocol):
    """What decides a binary, and the key of it."""

    @property
    def key(self) -> str:
        """SHA-256 in hexadecimal."""
        ...


BuildT = TypeVar("BuildT", bound=Build)


class LibraryKind(Protocol):
    """Kernels that come compiled; the backend of their configurations is the kind's name."""

    def ready(self, device: Device, problem: GemmProblem) -> Sequence[Configuration]:
        """List the candidates for a problem, none where the library cannot compute it there."""
        ...

    def load(self, device: Device, problem: GemmProblem, candidate: Configuration, folder: Path) -> Kernel:
        """Load one; raises WorkError where the library refuses it."""
        ...


class CompiledKind(Protocol):
    """Kernels that are compiled first; see :class:`autotune.kernel.KernelMaker` for what the methods promise."""

    def builds(self, device: Device, problem: GemmProblem) -> Sequence[Configuration]:
        """List what can be compiled, nothing where the kind does not serve the device or the problem."""
        ...

    def first(
        self, device: Device, problem: GemmProblem, count: int, *, multiprocessors: int
    ) -> Sequence[Configuration]:
        """Choose the builds to begin with, out of those of :meth:`builds`, of which there is one at least."""
        ...

    def launches(self, device: Device, problem: GemmProblem, build: Configuration) -> Sequence[Configuration]:
        """List the candidates of one build, the plainest first."""
        ...

    def build_of(self, candidate: Configuration) -> Configuration:
        """Give the build that a candidate launches."""
        ...

    def compile(
        self, device: Device, problem: GemmProblem, builds: Sequence[Configuration], folder: Path
    ) -> list[MadeKernel]:
        """Compile builds into ``folder``; raises WorkError where there is no compiler."""
        ...

    def compiled(
        self, device: Device, problem: GemmProblem, builds: Sequence[Configuration], folder: Path
    ) -> Sequence[Configuration]:
        """Give those of the builds that :meth:`load` finds in ``folder``."""
        ...

    def load(
        self, device: Device, problem: GemmProblem, candidate: Configuration, folder: Path, *, early: bool = False
    ) -> Kernel:
        """Load a candidate from ``folder``; raises WorkError where it is not there or does not load."""
        ...

    def pack(
        self, device: Device, problem: GemmProblem, candidate: Configuration, folder: Path, target: Path
    ) -> Mapping[str, str]:
        """Copy what :meth:`load` reads from one cache into another; gives names in it, with digests of the sources."""
        ...


def check_operands(problem: GemmProblem, a: Any, b: Any, bias: Any, residual: Any, out: Any) -> None:
    """Refuse operands that a kernel for this problem would read or write out of bounds; raises ValueError."""
    operand, result = TORCH_NAMES[problem.dtype], TORCH_NAMES[problem.output]
    _check("a", a, problem.a_shape, operand, out)
    _check("b", b, (problem.n, problem.k), operand, out)
    _check("out", out, (problem.m, problem.n), result, out)
    if bias is not None:
        _check("bias", bias, (problem.n,), "float32", out)
        if not problem.bias:
            raise ValueError(f"a bias was given to a kernel for a problem without one: {problem.canonical}")
    if residual is not None:
        _check("residual", residual, (problem.m, problem.n), result, out)
    if (residual is not None) != problem.residual:
        given = "a" if residual is not None else "no"
        raise ValueError(f"{given} residual was given to a kernel for {problem.canonical}")


def _check(name: str, tensor: Any, shape: tuple[int, ...], dtype: str, out: Any) -> None:
    found = (tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), tensor.device)
    if found != (shape, dtype, out.device) or not tensor.is_contiguous():
        raise ValueError(
            f"{name} must be a contiguous {dtype} tensor of shape {shape} on {out.device}, found {found[1]} {found[0]} "
            f"with strides {tuple(tensor.stride())} on {found[2]}"
        )
    if tensor.data_ptr() % ALIGNMENT_BYTES:
        raise ValueError(f"{name} must begin at a multiple of {ALIGNMENT_BYTES} bytes, found {tensor.data_ptr():#x}")


def libraries_of(
    tiles: Sequence[Configuration],
    build_of: Callable[[Configuration], BuildT],
    key_of: Callable[[BuildT], str],
    folder: Path,
) -> list[Configuration]:
    """Give the tiles of which a library lies in a cache, by its source's key, or among packed kernels, by its build's.

    A space has thousands of tiles, so that nothing is worked out that no file could answer to.
    """
    names = [path.name.split(".")[:-1] for path in folder.rglob("*.so")]
    cached = {name[0] for name in names if len(name) == 1}
    packed = {name[0] for name in names if len(name) > 1}
    if not names:
        return []
    builds = [build_of(tile) for tile in tiles]
    return [
        tile
        for tile, build in zip(tiles, builds, strict=True)
        if (cached and key_of(build) in cached) or (packed and build.key in packed)
    ]


def place(source: Path, target: Path) -> None:
    """Copy a kernel to where it is to be; who has loaded what lies there keeps it: writing over it would break that."""
    copied = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.copyfile(source, copied)
    copied.replace(target)
