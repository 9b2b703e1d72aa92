"""What a kernel is compiled from, and what is launched with which arguments: plain data, without torch or Triton."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from autotune.records.canonical import digest

Constant = int | float | bool | str | None
Argument = int | float | str
"""A number, or the name of a buffer."""

POINTER_ALIGNMENT_BYTES = 16
"""The alignment that a kernel may take for granted of a buffer, which a launch checks: one vectorised access."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TritonSource:
    """One kernel: Python text with ``@triton.jit`` functions, the one to compile, and everything its code follows from.

    ``parameters`` are the names and Triton types (``*fp16``, ``i32``, ``fp32``) of what a launch passes, ``constants``
    the values of all other parameters of the function. ``aligned`` names integers that are multiples of 16 in every
    launch; pointers are aligned to 16 bytes always.
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
        """Read what ``asdict`` gave, also after a trip through JSON."""
        grid, arguments = data["grid"], data["arguments"]
        return cls(
            kernel=data["kernel"], grid=(grid[0], grid[1], grid[2]), arguments=tuple((n, v) for n, v in arguments)
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What computes one thing: kernels, and their launches in order.

    ``buffers`` are the tensors that a call hands over, by name. Launches may besides name ``workspace``:
    ``workspace_bytes`` on the device that hold nothing before or after.
    """

    sources: tuple[TritonSource, ...]
    launches: tuple[Launch, ...]
    buffers: tuple[str, ...]
    workspace_bytes: int = 0

    def __post_init__(self) -> None:
        known = {*self.buffers, "workspace"} if self.workspace_bytes else set(self.buffers)
        for launch in self.launches:
            source = self.sources[launch.kernel]
            if {name for name, _ in launch.arguments} != {name for name, _ in source.parameters}:
                raise ValueError(f"{source.function} takes {source.parameters}, found {launch.arguments}")
            for name, value in launch.arguments:
                if isinstance(value, str) and value not in known:
                    raise ValueError(f"{source.function} takes {value!r} as {name}, expected one of {sorted(known)}")


def power_of_two(size: int) -> int:
    """Give the least power of two that is no less than a size."""
    return 1 << (size - 1).bit_length()


def multiples_of_16(sizes: Mapping[str, int]) -> tuple[str, ...]:
    """Name the sizes that :attr:`TritonSource.aligned` may name."""
    return tuple(name for name, size in sizes.items() if size % 16 == 0)


def divisor_of_16(size: int) -> int:
    """Give the largest power of two up to 16 that divides a size."""
    return math.gcd(size, 16)


def present(names: Mapping[str, str | None]) -> tuple[tuple[tuple[str, str], ...], tuple[tuple[str, None], ...]]:
    """Tell pointers that are passed, with their types, from those that are not there and are constants: ``None``."""
    passed = tuple((name, f"*{dtype}") for name, dtype in names.items() if dtype is not None)
    return passed, tuple((name, None) for name, dtype in names.items() if dtype is None)


def blocks(size: int, block: int) -> int:
    """How many blocks cover a size."""
    return -(-size // block)


def at_names(names: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Arguments that are buffers of the same names as their parameters."""
    return tuple((name, name) for name in names)
