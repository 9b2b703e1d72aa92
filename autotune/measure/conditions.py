"""What the readings of the observers mean for a measurement: flags, and whether it counts."""

from collections.abc import Iterable, Mapping
from typing import Any

from autotune.measure.canary import DRIFT_LIMIT

FLAGS = ("throttled", "shared_device", "canary_drift", "busy_host")
"""What can be said of a measurement, in the order in which it is said."""

BUSY_SHARE = 0.1
"""A CPU is busy with others above this share of the cores: 0.2 of 2 cores.

On 2 cores with nothing else to do the share read -0.02 to 0.02 over 0.3 to 5 s; with one busy process beside, 0.5.
"""

_SENTENCES = {
    "throttled": "The GPU was slowed down, by its power limit, its temperature or its power supply.",
    "shared_device": "Another process, not of this study, was on the device.",
    "canary_drift": "A small fixed piece of work around the measurement took another time than before.",
    "busy_host": f"Other processes used more than {BUSY_SHARE:.0%} of the processor cores that were measured.",
}

Readings = Mapping[str, Mapping[str, Any]]


def flags(readings: Readings) -> tuple[str, ...]:
    """Say what is to be known about a measurement, in the order of :data:`FLAGS`; what was not seen raises no flag."""
    gpu, canary = _seen(readings, "gpu"), _seen(readings, "canary")
    raised = {
        "throttled": _throttled(gpu),
        "shared_device": bool(gpu.get("other_processes")),
        "canary_drift": _drifted(canary) and not _throttled(gpu),
        "busy_host": cores_shared(readings),
    }
    return tuple(flag for flag in FLAGS if raised[flag])


def invalid(readings: Readings) -> bool:
    """Whether a block should be measured again: another process was active on the device, or the canary drifted.

    A foreign process counts as active unless the driver says that it used none of the SMs. Throttling and a busy host
    leave a block valid, flagged. Throttling also explains a canary that drifts: large products bring an H200 to its
    power limit within milliseconds, at 1410 of 1980 MHz, and a canary among them takes 15% longer, however often they
    are measured again. After repeated discards a block is kept with its flags, whatever they are.
    """
    gpu = _seen(readings, "gpu")
    return gpu_shared(readings) or (_drifted(_seen(readings, "canary")) and not _throttled(gpu))


def cores_shared(readings: Readings) -> bool:
    """Whether others used the cores of the CPU that was measured."""
    host = _seen(readings, "host")
    return host.get("device") == "cpu" and (host.get("competing_share") or 0.0) > BUSY_SHARE


def gpu_shared(readings: Readings) -> bool:
    """Whether another process was active on the GPU that was measured, or the driver does not say that it was not."""
    others = _seen(readings, "gpu").get("other_processes") or ()
    return any(one.get("sm_percent") is None or one["sm_percent"] > 0 for one in others)


def explain(flag: str) -> str:
    """Give the sentence for a report; ``ValueError`` for what is no flag."""
    if flag not in _SENTENCES:
        raise ValueError(f"{flag!r} is not one of the flags {FLAGS}")
    return _SENTENCES[flag]


def merge(several: Iterable[Iterable[str]]) -> tuple[str, ...]:
    """Unite the flags of several blocks, in the order of :data:`FLAGS`; ``ValueError`` for what is no flag."""
    raised = {flag for some in several for flag in some}
    if unknown := sorted(raised - set(FLAGS)):
        raise ValueError(f"{unknown} are not among the flags {FLAGS}")
    return tuple(flag for flag in FLAGS if flag in raised)


def _seen(readings: Readings, name: str) -> Mapping[str, Any]:
    reading = readings.get(name, {})
    return reading if reading.get("available") else {}


def _throttled(gpu: Mapping[str, Any]) -> bool:
    violated = any((gpu.get(name) or 0) > 0 for name in ("power_violation_ns", "thermal_violation_ns"))
    return violated or bool(gpu.get("throttle_reasons"))


def _drifted(canary: Mapping[str, Any]) -> bool:
    drift = canary.get("drift")
    return drift is not None and bool(drift > canary.get("limit", DRIFT_LIMIT))
