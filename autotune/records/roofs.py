"""The measured roofs of a device class: how fast it copies, multiplies matrices and launches."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from autotune.records.device import Toolchain
from autotune.records.plain import values_in
from autotune.records.schema import refuse_later
from autotune.records.trial import Measurement

PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
"""The precisions of matrix products, by the names that configurations use."""

SCHEMA = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Roof:
    """One measured roof: its value with the 95% interval, and the measurement that both are derived from.

    ``size`` is what a call worked on: the bytes of a copied buffer, or the rows of a square matrix. ``samples`` is the
    number of those that count: on a GPU those of its own clock, on a busy CPU those that others did not disturb.
    """

    value: float
    interval: tuple[float, float]
    size: int
    samples: int
    measurement: Measurement

    def __post_init__(self) -> None:
        low, high = self.interval
        if not (0 < low <= self.value <= high and math.isfinite(high)):
            raise ValueError(
                f"a roof is a positive number within its interval, found {self.value!r} [{low!r}, {high!r}]"
            )
        for name in ("size", "samples"):
            number = getattr(self, name)
            if type(number) is not int or number < 1:
                raise ValueError(f"the {name} of a roof is a positive whole number, found {number!r}")

    @property
    def flags(self) -> tuple[str, ...]:
        """The disturbances during the measurement, such as ``busy_host``."""
        return tuple(map(str, self.measurement.conditions.get("flags", ())))

    def as_dict(self) -> dict[str, object]:
        """Plain data for JSON."""
        return {
            "value": self.value, "interval": list(self.interval), "size": self.size,
            "samples": self.samples, "measurement": self.measurement.as_dict(),
        }  # fmt: skip

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> "Roof":
        """Read what :meth:`as_dict` wrote."""
        values = values_in(data)
        low, high = values["interval"]
        return cls(
            value=values["value"], interval=(low, high), size=values["size"],
            samples=values["samples"], measurement=Measurement.from_dict(values["measurement"]),
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Roofs:
    """The roofs of a device class: no call on it can be faster than they allow.

    ``copy_gb_s`` is the rate of a copy far beyond all caches, in GB/s: bytes that are read plus bytes that are written.
    ``matrix_tflops`` are the rates of square matrix products by precision, in TFLOP/s; ``absent`` has the reason for
    each precision without one. ``launch_us`` is the time in microseconds of a call that computes next to nothing.
    ``created`` is ISO 8601 in UTC.
    """

    device_class: str
    copy_gb_s: Roof
    matrix_tflops: Mapping[str, Roof]
    launch_us: Roof
    toolchain: Toolchain
    created: str
    absent: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.device_class or not self.created:
            raise ValueError("roofs need a device class and a date")
        unknown = sorted({*self.matrix_tflops, *self.absent} - set(PRECISIONS))
        if unknown:
            raise ValueError(f"a matrix rate is that of one of {', '.join(PRECISIONS)}, found {', '.join(unknown)}")

    @property
    def all(self) -> Mapping[str, Roof]:
        """All roofs by name: ``copy``, the precisions, ``launch``."""
        return {"copy": self.copy_gb_s, **self.matrix_tflops, "launch": self.launch_us}

    @property
    def flags(self) -> tuple[str, ...]:
        """The disturbances during any of the measurements."""
        return tuple(dict.fromkeys(flag for roof in self.all.values() for flag in roof.flags))

    def as_dict(self) -> dict[str, object]:
        """Plain data for JSON."""
        return {
            "schema": SCHEMA,
            "device_class": self.device_class,
            "copy_gb_s": self.copy_gb_s.as_dict(),
            "matrix_tflops": {name: roof.as_dict() for name, roof in self.matrix_tflops.items()},
            "launch_us": self.launch_us.as_dict(),
            "toolchain": self.toolchain.as_dict(),
            "created": self.created,
            "absent": dict(self.absent),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> "Roofs":
        """Read what :meth:`as_dict` wrote, also after a trip through JSON; ``ValueError`` for a later schema."""
        refuse_later(data, SCHEMA, what="roofs")
        values = values_in(data)
        return cls(
            device_class=values["device_class"],
            copy_gb_s=Roof.from_dict(values["copy_gb_s"]),
            matrix_tflops={name: Roof.from_dict(roof) for name, roof in values["matrix_tflops"].items()},
            launch_us=Roof.from_dict(values["launch_us"]),
            toolchain=Toolchain.of(values["toolchain"]),
            created=values["created"],
            absent=values.get("absent", {}),
        )
