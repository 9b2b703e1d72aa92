"""Whether a plan made elsewhere runs here, decided by what is recorded: portability, Portability."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from autotune.deploy.signing import PublicKey
from autotune.errors import RequestError
from autotune.records.device import Device, Toolchain
from autotune.records.plan import Plan

Verdict = Literal["optimal", "works", "rebuild", "impossible"]

TEXTS = {
    "optimal": "optimal: tuned for this device class with these libraries",
    "works": "works, but was tuned elsewhere",
    "rebuild": "must be built again here, with the model",
    "impossible": "cannot run here",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Portability:
    """Whether a plan runs on a device, with the reasons for any verdict but ``optimal``.

    ``optimal``: it was tuned for this device class and these versions of its libraries. ``works``: it was tuned on
    another device of the same kind, but its artifact runs on this one. ``rebuild``: the artifact fits neither this
    processor nor these libraries. ``impossible``: there is no device of this kind here, or no backend.
    """

    verdict: Verdict
    plan: Plan
    device: Device
    reasons: tuple[str, ...] = ()

    @property
    def runs(self) -> bool:
        """Whether the artifact runs here as it is."""
        return self.verdict in ("optimal", "works")

    def as_dict(self) -> dict[str, object]:
        """Plain data for JSON."""
        return {
            "verdict": self.verdict,
            "reasons": list(self.reasons),
            "plan": self.plan.uid,
            "device_class": self.device.device_class,
            "made_for": self.plan.device.device_class,
        }

    def __str__(self) -> str:
        return "\n  ".join([TEXTS[self.verdict], *self.reasons])


def portability(
    bundle: Path | str | Plan,
    *,
    device: str | None = None,
    require_signature: PublicKey | Sequence[PublicKey] | None = None,
) -> Portability:
    """Decide from the records of a bundle, or of a plan, whether it runs here; nothing of its artifact is loaded.

    ``device`` is by default the CPU for a plan of a CPU, and else ``auto``. Errors are those of reading a bundle, see
    :func:`autotune.load_bundle`.
    """
    from autotune.deploy.bundle_manifest import read_manifest
    from autotune.deploy.signing import PublicKeys

    keys = None if require_signature is None else PublicKeys(require_signature)
    plan = bundle if isinstance(bundle, Plan) else read_manifest(Path(bundle), keys).plan
    return bundle_portability(plan, device)


def bundle_portability(plan: Plan, device: str | None) -> Portability:
    """Decide whether a plan runs on the device of a name, by default the CPU for a plan of a CPU, and else ``auto``."""
    from autotune.runtime import discovery

    return portability_on(plan, discovery.find(device or ("cpu" if plan.device.kind == "cpu" else "auto")))


def portability_on(plan: Plan, device: Device, here: Toolchain | None = None) -> Portability:
    """Decide whether a plan runs on a device; ``here`` is by default the toolchain that is installed."""
    from autotune import registry
    from autotune.runtime import toolchain

    name, made_for = plan.configuration.backend, plan.device
    if device.kind != made_for.kind:
        return Portability(
            verdict="impossible", plan=plan, device=device,
            reasons=(f"made for device class {made_for.device_class}, and here is {device.device_class}",),
        )  # fmt: skip
    try:
        backend = registry.backend(name)
    except RequestError as error:
        return Portability(verdict="impossible", plan=plan, device=device, reasons=(error.asked,))
    working = backend.probe(device)
    if not working.works:
        remedy = f" ({working.remedy})" if working.remedy else ""
        reasons = (f"backend {name} does not work here: {working.reason}{remedy}",)
        return Portability(verdict="impossible", plan=plan, device=device, reasons=reasons)
    versions = here or toolchain.current(device, backend.toolchain)
    differing = (*_other_instructions(plan, device), *_other_versions(plan, versions.only(backend.toolchain)))
    if device.device_class == made_for.device_class:
        verdict: Verdict = "rebuild" if differing else "optimal"
        return Portability(verdict=verdict, plan=plan, device=device, reasons=differing)
    elsewhere = f"made for device class {made_for.device_class}, and here is {device.device_class}"
    return Portability(
        verdict="rebuild" if differing else "works", plan=plan, device=device, reasons=(elsewhere, *differing)
    )


def _other_versions(plan: Plan, here: Toolchain) -> tuple[str, ...]:
    mine, own = here.as_dict(), plan.toolchain.as_dict()
    return tuple(
        f"made for {name} {own.get(name, 'none')}, and here is {mine.get(name, 'none')}"
        for name in sorted({*mine, *own}) if mine.get(name) != own.get(name)
    )  # fmt: skip


def _other_instructions(plan: Plan, device: Device) -> tuple[str, ...]:
    """Return the reason why compiled code for the plan's device cannot run on another one; empty if it can."""
    from autotune import registry

    if registry.adapts_at_load(plan.configuration.backend, device.kind):
        return ()
    if device.kind == "cuda":
        made_for, here = (".".join(map(str, d.capability or ())) for d in (plan.device, device))
        return () if made_for == here else (f"compiled for compute capability {made_for}, and here is {here}",)
    missing = [name for name in plan.device.isa if name not in device.isa]
    return (f"compiled for instruction sets that this processor lacks: {', '.join(missing)}",) if missing else ()
