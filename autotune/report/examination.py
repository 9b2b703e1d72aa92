"""The result of ``autotune doctor``: the devices, the versions, the database and a proof of each backend."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from autotune.execute.proof import Proof
    from autotune.records.device import Device, Toolchain


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseState:
    """The location of the tuning database, and its state in words."""

    location: str
    state: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Examination:
    """The result of ``autotune doctor``; ``proved`` is false if it only looked for the parts of each backend."""

    proved: bool
    devices: "Sequence[Device]"
    toolchain: "Toolchain"
    database: DatabaseState
    proofs: "Sequence[Proof]"

    @property
    def usable(self) -> bool:
        """True if at least one backend works; if nothing was proved, if the parts of at least one are there."""
        return any(proof.works if self.proved else proof.found for proof in self.proofs)

    def as_dict(self) -> dict[str, object]:
        """Plain data for JSON."""
        return {
            "proved": self.proved,
            "devices": [
                {"device": device.torch_name, **device.as_dict(), "device_class": device.device_class}
                for device in self.devices
            ],
            "toolchain": self.toolchain.as_dict(),
            "database": {"location": self.database.location, "state": self.database.state},
            "backends": [proof.as_dict() for proof in self.proofs],
        }
