"""How fast a GPU computes and moves bytes, read from the device itself."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from autotune.errors import WorkError

FLOPS_PER_CLOCK: Mapping[tuple[int, int], int] = {
    (7, 5): 1024,
    (8, 0): 2048,
    (8, 6): 1024,
    (8, 9): 1024,
    (9, 0): 4096,
}
"""Dense half-precision tensor operations of one SM a clock, by capability (NVIDIA's white papers)."""

SUSTAINED_FLOPS, SUSTAINED_MEMORY = 0.74, 0.87
"""Shares of the peaks at the highest clock that last: 790 of 1070 TFLOP/s and 4.3 of 4.9 TB/s on an H200."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceRates:
    """What an estimate of a kernel's time needs to know of a GPU, or of the slice of it that is used.

    ``flops_per_s`` (half precision, dense) and ``memory_bytes_per_s`` are what the whole device sustains, ``clock_hz``
    the highest clock of an SM and ``flops_per_clock`` what it computes in one, ``shared_bytes`` the shared
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
    def read(cls, device: str) -> "DeviceRates":
        """Ask CUDA about a device, such as ``cuda:0``; a MIG device answers for its slice's SMs.

        Raises :class:`~autotune.errors.WorkError` if its capability or its memory's clock is not known.
        """
        import torch

        return cls.of(torch.cuda.get_device_properties(device))

    @classmethod
    def of(cls, properties: Any) -> "DeviceRates":
        """Derive the rates from what ``torch.cuda.get_device_properties`` tells."""
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
            memory_bytes_per_s=SUSTAINED_MEMORY * 2 * memory_hz * width_bits / 8,  # two transfers a clock
            shared_bytes=properties.shared_memory_per_multiprocessor,
            cache_bytes=properties.L2_cache_size,
        )

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "DeviceRates":
        """Read the output of :meth:`as_dict`."""
        return cls(**data)
