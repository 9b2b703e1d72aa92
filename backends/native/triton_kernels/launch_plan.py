"""The sources of Triton kernels and their launches with arguments: plain data, without torch or Triton."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from autotune.records.canonical import digest

Constant = int | float | bool | str | None
Argument = int | float | str
"""A number, or the name of a buffer."""

POINTER_ALIGNMENT_BYTES = 16
"""The alignment of a buffer that a kernel relies on and a launch checks: one vectorised access."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TritonSource:
    """One kernel: Python text with ``@triton.jit`` functions, the one to compile, and everything that decides its code.

    ``parameters`` are the names and Triton types (``*fp16``, ``i32``, ``fp32``) of a launch's arguments, ``constants``
    the values of all other parameters of the function. ``aligned`` names integers that are multiples of 16 in every
    launch; pointers are always aligned to 16 bytes.
    """

    code: str
    function: str
    parameters: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, Constant], ...]
    aligned: tuple[str, ...] = ()
    warps: int
    stages: int = 1

    def __post_init__(self) -> None:
        names = [name for name, _ in (*self.parameters, *self.constants)]
        if len(set(names)) != len(names):
            raise ValueError(f"the parameters and constants of {self.function} must be distinct, found {names}")
        if self.warps not in (1, 2, 4, 8, 16, 32) or self.stages < 1:
            raise ValueError(f"{self.function}: warps are a power of two to 32, stages at least 1, found "
                             f"{self.warps} and {self.stages}")  # fmt: skip

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON, in hexadecimal."""
        return digest(asdict(self))


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """One launch of the kernel number ``kernel`` of a plan; ``arguments`` are by the names of its parameters."""

    kernel: int
    grid: tuple[int, int, int]
    arguments: tuple[tuple[str, Argument], ...]

    def __post_init__(self) -> None:
        limits = (2**31 - 1, 65535, 65535)  # CUDA's limits of a grid
        if any(not 1 <= size <= limit for size, limit in zip(self.grid, limits, strict=True)):
            raise ValueError(f"a grid has 1 to {limits} blocks along its dimensions, found {self.grid}")

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Launch":
        """Read the output of ``asdict``, also after a trip through JSON."""
        grid, arguments = data["grid"], data["arguments"]
        return cls(
            kernel=data["kernel"], grid=(grid[0], grid[1], grid[2]), arguments=tuple((n, v) for n, v in arguments)
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchPlan:
    """The kernels of one operator, and their launches in order.

    ``buffers`` are the names of a call's tensors. Launches may also name ``workspace``: ``workspace_bytes`` of memory
    on the device without contents before or after.
    """

    sources: tuple[TritonSource, ...]
    launches: tuple[Launch, ...]
    buffers: tuple[str, ...]
    workspace_bytes: int = 0

    def __post_init__(self) -> None:
        buffers = {*self.buffers, "workspace"} if self.workspace_bytes else set(self.buffers)
        for launch in self.launches:
            source = self.sources[launch.kernel]
            if {name for name, _ in launch.arguments} != {name for name, _ in source.parameters}:
                raise ValueError(f"{source.function} takes {source.parameters}, found {launch.arguments}")
            for name, value in launch.arguments:
                if isinstance(value, str) and value not in buffers:
                    raise ValueError(f"{source.function} takes {value!r} as {name}, expected one of {sorted(buffers)}")


def power_of_two(size: int) -> int:
    """Return the least power of two that is at least ``size``."""
    return 1 << (size - 1).bit_length()


def multiples_of_16(sizes: Mapping[str, int]) -> tuple[str, ...]:
    """Return the names of the sizes that are multiples of 16, for :attr:`TritonSource.aligned`."""
    return tuple(name for name, size in sizes.items() if size % 16 == 0)


def divisor_of_16(size: int) -> int:
    """Return the largest power of two up to 16 that divides a size."""
    return math.gcd(size, 16)


def present(names: Mapping[str, str | None]) -> tuple[tuple[tuple[str, str], ...], tuple[tuple[str, None], ...]]:
    """Return the pointers that a launch passes, with their types, and the absent ones as constants ``None``."""
    passed = tuple((name, f"*{dtype}") for name, dtype in names.items() if dtype is not None)
    return passed, tuple((name, None) for name, dtype in names.items() if dtype is None)


def blocks(size: int, block: int) -> int:
    """Return the number of blocks that cover a size."""
    return -(-size // block)


def at_names(names: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Return arguments that are buffers with the same names as their parameters."""
    return tuple((name, name) for name in names)
