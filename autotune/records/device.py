"""One piece of hardware, and the versions that built software depends on."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal

from autotune.records.plain import values_in

DeviceKind = Literal["cpu", "cuda"]


def slug(text: str) -> str:
    """Lower-case letters, digits and single hyphens: ``NVIDIA H200`` becomes ``nvidia-h200``."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def names_sku(part: str, sku: str) -> bool:
    """Return whether a text names an SKU: by whole words of its slug, so that ``l4`` names no L40S."""
    words = slug(part)
    return bool(words) and f"-{words}-" in f"-{sku}-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One device. Plans are keyed by its :attr:`device_class`; the ``uuid`` is only for locks.

    ``cores`` are the CPU cores that this process may use (with a GPU they build);
    ``isa`` are the instruction sets of a CPU that decide speed, ``capability`` the compute capability of a GPU.
    """

    kind: DeviceKind
    name: str
    uuid: str
    index: int = 0
    cores: int = 1
    isa: tuple[str, ...] = ()
    capability: tuple[int, int] | None = None
    memory_bytes: int = 0
    mig_profile: str | None = None
    power_limit_w: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("cpu", "cuda"):
            raise ValueError(f"device kind must be cpu or cuda, found {self.kind!r}")
        if not slug(self.name):
            raise ValueError(f"device name {self.name!r} has no letter or digit")
        if self.cores < 1 or self.index < 0 or self.memory_bytes < 0:
            raise ValueError(f"device {self.name}: cores >= 1, index >= 0 and memory >= 0 expected")
        if self.kind == "cuda" and self.capability is None:
            raise ValueError(f"GPU {self.name} needs its compute capability")

    @property
    def sku(self) -> str:
        """The name as a slug, such as ``nvidia-h200``; for a CPU with its usable cores."""
        return slug(self.name) if self.kind == "cuda" else f"{slug(self.name)}-{self.cores}c"

    @property
    def device_class(self) -> str:
        """The key of plans: SKU, MIG profile and power limit; for a CPU its model, instruction set and cores."""
        if self.kind == "cpu":
            return f"{self.sku}/{'+'.join(self.isa) or 'baseline'}"
        return f"{self.sku}/{self.mig_profile or 'whole'}/{self.power_limit_w or 'unknown'}w"

    @property
    def torch_name(self) -> str:
        """Its name in torch: ``cpu`` or ``cuda:0``."""
        return "cpu" if self.kind == "cpu" else f"cuda:{self.index}"

    def as_dict(self) -> dict[str, object]:
        """Plain data for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> "Device":
        """Read what :meth:`as_dict` wrote, also after a trip through JSON."""
        values = values_in(data)
        values["isa"] = tuple(values.get("isa", ()))
        if values.get("capability") is not None:
            values["capability"] = tuple(values["capability"])
        return cls(**values)


@dataclass(frozen=True, slots=True, kw_only=True)
class Toolchain:
    """The versions that decide what gets built, by name: driver, cuda, torch, triton, onnxruntime, compiler."""

    versions: tuple[tuple[str, str], ...]

    def __post_init__(self) -> None:
        names = [name for name, _ in self.versions]
        if names != sorted(set(names)):
            raise ValueError(f"toolchain entries must be sorted and distinct, found {names}")

    @classmethod
    def of(cls, versions: Mapping[str, str]) -> "Toolchain":
        """Build one from a mapping in any order."""
        return cls(versions=tuple(sorted(versions.items())))

    def only(self, names: tuple[str, ...]) -> "Toolchain":
        """Return the entries that one backend declares; an entry that is absent stays absent."""
        return Toolchain(versions=tuple(pair for pair in self.versions if pair[0] in names))

    def as_dict(self) -> dict[str, str]:
        """Plain data for JSON."""
        return dict(self.versions)

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON, in hexadecimal."""
        return hashlib.sha256(json.dumps(self.as_dict(), sort_keys=True).encode()).hexdigest()
