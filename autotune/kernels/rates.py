"""The rates at which a GPU computes and moves bytes, read from the device itself: DeviceRates."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Protocol

from autotune.errors import WorkError

FLOPS_PER_CLOCK: Mapping[tuple[int, int], int] = {
    (7, 5): 1024,
    (8, 0): 2048,
    (8, 6): 1024,
    (8, 9): 1024,
    (9, 0): 4096,
}
"""Dense half-precision tensor operations of one SM per clock, by capability (NVIDIA's white papers)."""

SM_COUNT = "multiprocessors"
"""The key of the number of SMs in plain data."""

SUSTAINED_FLOPS, SUSTAINED_MEMORY = 0.74, 0.87
"""Shares of the peaks at the highest clock that last: 790 of 1070 TFLOP/s and 4.3 of 4.9 TB/s on an H200."""


class DeviceProperties(Protocol):
    """The part of torch's device properties that is always there; clocks are read if they are."""

    name: str
    major: int
    minor: int
    multi_processor_count: int
    shared_memory_per_multiprocessor: int
    L2_cache_size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceRates:
    """The rates of a GPU, or of the MIG slice that is used, from which a kernel's time is estimated.

    ``flops_per_s`` (half precision, dense) and ``memory_bytes_per_s`` are sustained by the whole device, ``clock_hz``
    is the highest clock of an SM and ``flops_per_clock`` its operations in one clock, ``shared_bytes`` the shared
    memory of one SM, ``cache_bytes`` the L2 cache of the device.
    """

    sm_count: int
    clock_hz: float
    flops_per_clock: int
    flops_per_s: float
    memory_bytes_per_s: float
    shared_bytes: int
    cache_bytes: int

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
                raise ValueError(f"{field.name} must be a positive number, found {value!r}")

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Return the keys of :meth:`as_dict`."""
        return (SM_COUNT, *(field.name for field in fields(cls) if field.name != "sm_count"))

    @classmethod
    def read(cls, device: str) -> "DeviceRates":
        """Read the rates of a device, such as ``cuda:0``; for a MIG device those of its slice.

        Raises :class:`~autotune.errors.WorkError` if its capability or its memory's clock is not known.
        """
        import torch

        return cls.of(torch.cuda.get_device_properties(device))

    @classmethod
    def of(cls, properties: "DeviceProperties") -> "DeviceRates":
        """Derive the rates from the output of ``torch.cuda.get_device_properties``."""
        per_clock = FLOPS_PER_CLOCK.get((properties.major, properties.minor))
        memory_hz = 1e3 * getattr(properties, "memory_clock_rate", 0)
        clock_hz = 1e3 * getattr(properties, "clock_rate", 0)
        width_bits = getattr(properties, "memory_bus_width", 0)
        if per_clock is None or not (memory_hz and clock_hz and width_bits):
            raise WorkError(
                f"rates of {properties.name}",
                found=f"sm_{properties.major}{properties.minor}, clocks of {clock_hz:g} and {memory_hz:g} Hz, "
                f"a memory of {width_bits} bits",
                expected=f"one of {', '.join(f'sm_{major}{minor}' for major, minor in FLOPS_PER_CLOCK)}, with clocks",
            )
        return cls(
            sm_count=properties.multi_processor_count,
            clock_hz=clock_hz,
            flops_per_clock=per_clock,
            flops_per_s=SUSTAINED_FLOPS * properties.multi_processor_count * clock_hz * per_clock,
            memory_bytes_per_s=SUSTAINED_MEMORY * 2 * memory_hz * width_bits / 8,  # two transfers per clock
            shared_bytes=properties.shared_memory_per_multiprocessor,
            cache_bytes=properties.L2_cache_size,
        )

    def as_dict(self) -> dict[str, object]:
        """Return plain data for JSON, in which :attr:`sm_count` is ``multiprocessors``, as in all stored records."""
        data: dict[str, object] = asdict(self)
        return {SM_COUNT: data.pop("sm_count"), **data}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "DeviceRates":
        """Read the output of :meth:`as_dict`."""
        return cls(**{"sm_count" if name == SM_COUNT else name: value for name, value in data.items()})
