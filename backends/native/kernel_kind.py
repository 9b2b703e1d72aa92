"""The interface of a kind of kernels, and the checks that every kernel makes before it is launched."""

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from autotune.kernel import CompileResult, LoadedKernel
from autotune.records.configuration import Configuration
from autotune.records.device import Device
from autotune.records.kernel_problem import GemmProblem

if TYPE_CHECKING:
    from torch import Tensor

ALIGNMENT_BYTES = 16
"""Every operand begins at a multiple of this, as torch allocates memory; kernels are chosen for it."""

TORCH_NAMES = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}


class Build(Protocol):
    """All that decides a binary, with its key."""

    @property
    def key(self) -> str:
        """SHA-256 in hexadecimal."""
        ...


BuildT = TypeVar("BuildT", bound=Build)


class LibraryKind(Protocol):
    """Kernels that are shipped compiled; the backend of their configurations is the kind's name."""

    def ready(self, device: Device, problem: GemmProblem) -> Sequence[Configuration]:
        """List the candidates for a problem, none if the library cannot compute it there."""
        ...

    def load(self, device: Device, problem: GemmProblem, candidate: Configuration, folder: Path) -> LoadedKernel:
        """Load a candidate; raises WorkError if the library refuses it."""
        ...


class CompiledKind(Protocol):
    """Kernels that are compiled first; see :class:`autotune.kernel.KernelProvider` for what the methods promise."""

    def builds(self, device: Device, problem: GemmProblem) -> Sequence[Configuration]:
        """List the builds; none if the kind does not support the device or the problem."""
        ...

    def first(self, device: Device, problem: GemmProblem, count: int, *, sm_count: int) -> Sequence[Configuration]:
        """Choose the builds to begin with among those of :meth:`builds`, which lists at least one."""
        ...

    def launches(self, device: Device, problem: GemmProblem, build: Configuration) -> Sequence[Configuration]:
        """List the candidates of one build, the plainest first."""
        ...

    def build_of(self, candidate: Configuration) -> Configuration:
        """Return the build of a candidate."""
        ...

    def compile(
        self, device: Device, problem: GemmProblem, builds: Sequence[Configuration], folder: Path
    ) -> list[CompileResult]:
        """Compile builds into ``folder``; raises WorkError if there is no compiler."""
        ...

    def compiled(
        self, device: Device, problem: GemmProblem, builds: Sequence[Configuration], folder: Path
    ) -> Sequence[Configuration]:
        """Return the builds that :meth:`load` finds in ``folder``."""
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
        """Load a candidate from ``folder``; raises WorkError if it is not there or does not load."""
        ...

    def pack(
        self, device: Device, problem: GemmProblem, candidate: Configuration, folder: Path, target: Path
    ) -> Mapping[str, str]:
        """Copy the files that :meth:`load` reads into another cache; returns their names with the sources' digests."""
        ...


def check_operands(
    problem: GemmProblem, a: "Tensor", b: "Tensor", bias: "Tensor | None", residual: "Tensor | None", out: "Tensor"
) -> None:
    """Raise ValueError for operands that a kernel for this problem would read or write out of bounds."""
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


def _check(name: str, tensor: "Tensor", shape: tuple[int, ...], dtype: str, out: "Tensor") -> None:
    actual = (tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), tensor.device)
    if actual != (shape, dtype, out.device) or not tensor.is_contiguous():
        raise ValueError(
            f"{name} must be a contiguous {dtype} tensor of shape {shape} on {out.device}, "
            f"found {actual[1]} {actual[0]} with strides {tuple(tensor.stride())} on {actual[2]}"
        )
    if tensor.data_ptr() % ALIGNMENT_BYTES:
        raise ValueError(f"{name} must begin at a multiple of {ALIGNMENT_BYTES} bytes, found {tensor.data_ptr():#x}")


def libraries_of(
    tiles: Sequence[Configuration],
    build_of: Callable[[Configuration], BuildT],
    key_of: Callable[[BuildT], str],
    folder: Path,
) -> list[Configuration]:
    """Return the tiles whose library is in a cache, under its source's key, or packed, under its build's key."""
    names = [path.name.split(".")[:-1] for path in folder.rglob("*.so")]
    cached = {name[0] for name in names if len(name) == 1}
    packed = {name[0] for name in names if len(name) > 1}
    if not names:  # a space has thousands of tiles, and their keys take time
        return []
    builds = [build_of(tile) for tile in tiles]
    return [
        tile
        for tile, build in zip(tiles, builds, strict=True)
        if (cached and key_of(build) in cached) or (packed and build.key in packed)
    ]


def copy_atomically(source: Path, target: Path) -> None:
    """Copy a kernel; a process that has loaded the earlier file keeps it, since that file is not overwritten."""
    copied = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.copyfile(source, copied)
    copied.replace(target)
