"""The flags of a measurement: the meaning of its conditions, its validity, and the next step for a user."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from autotune.measure.canary import DRIFT_LIMIT
from autotune.measure.conditions import Readings, observed, observed_entries, observed_number, recorded

BUSY_SHARE = 0.1
"""A CPU is busy with others above this share of the cores: 0.2 of 2 cores.

On 2 cores with nothing else to do the share read -0.02 to 0.02 over 0.3 to 5 s; with one busy process beside, 0.5.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Flag:
    """One warning about a measurement: the registered ``conditions`` that it follows from, a sentence and a remedy."""

    name: str
    conditions: tuple[str, ...]
    meaning: str
    remedy: str
    raised: Callable[[Readings], bool]


def flags(readings: Readings) -> tuple[str, ...]:
    """Return the names of the flags that the readings raise, in the order of :data:`FLAGS`.

    A condition that is absent raises no flag.
    """
    return tuple(flag.name for flag in ALL_FLAGS if flag.raised(readings))


def stored_flags(conditions: Mapping[str, object]) -> tuple[str, ...]:
    """Return the flags that a screening or a kernel's timing recorded in its conditions."""
    names = recorded(conditions, "flags")
    return tuple(str(name) for name in names) if isinstance(names, list | tuple) else ()


def invalid(readings: Readings) -> bool:
    """Return whether a block should be measured again: another process was active on the device, or the canary drifted.

    Throttling and a busy host leave a block valid, flagged. After repeated discards a block is kept with its flags.
    """
    return gpu_shared(readings) or _drifted(readings)


def cores_shared(readings: Readings) -> bool:
    """Return whether others used the cores of the CPU that was measured."""
    on_cpu = observed(readings, "host", "device") == "cpu"
    return on_cpu and observed_number(readings, "host", "competing_share") > BUSY_SHARE


def gpu_shared(readings: Readings) -> bool:
    """Return whether another process was active on the GPU that was measured.

    One whose share of the SMs the driver does not report counts as active.
    """
    shares = [process.get("sm_percent") for process in observed_entries(readings, "gpu", "other_processes")]
    return any(not isinstance(share, int | float) or share > 0 for share in shares)


def explain(flag: str) -> str:
    """Return the meaning and the remedy of a flag for a report; ``ValueError`` for an unknown name."""
    for entry in ALL_FLAGS:
        if entry.name == flag:
            return f"{entry.meaning} {entry.remedy}"
    raise ValueError(f"{flag!r} is not one of the flags {FLAGS}")


def _throttled(readings: Readings) -> bool:
    violations = ("power_violation_ns", "thermal_violation_ns")
    return any(observed_number(readings, "gpu", name) > 0 for name in violations) or bool(
        observed(readings, "gpu", "throttle_reasons")
    )


def _drifted(readings: Readings) -> bool:
    """Return whether the canary took longer than before, for another reason than throttling."""
    # Large products bring an H200 to its power limit within milliseconds, at 1410 of 1980 MHz, and a canary among them
    # takes 15% longer, however often they are measured again.
    limit = observed_number(readings, "canary", "limit") or DRIFT_LIMIT
    return observed_number(readings, "canary", "drift") > limit and not _throttled(readings)


def _others_on_gpu(readings: Readings) -> bool:
    return bool(observed_entries(readings, "gpu", "other_processes"))


ALL_FLAGS = (
    Flag(
        name="throttled",
        conditions=("gpu.throttle_reasons", "gpu.power_violation_ns", "gpu.thermal_violation_ns"),
        meaning="The GPU lowered its clocks because of its power limit, its temperature or its power supply.",
        remedy="If this was not the GPU's normal state, cool it or restore its power limit (nvidia-smi -q -d "
        "PERFORMANCE,POWER,TEMPERATURE), then measure again.",
        raised=_throttled,
    ),
    Flag(
        name="shared_device",
        conditions=("gpu.other_processes",),
        meaning="Another process, which does not belong to this study, was on the device.",
        remedy="End it or wait for its end (nvidia-smi lists it), then measure again.",
        raised=_others_on_gpu,
    ),
    Flag(
        name="canary_drift",
        conditions=("canary.drift", "canary.limit"),
        meaning="A small fixed piece of work around the measurement took longer than before.",
        remedy="Wait until the device runs at its usual speed, then measure again.",
        raised=_drifted,
    ),
    Flag(
        name="busy_host",
        conditions=("host.competing_share",),
        meaning=f"Other processes used more than {BUSY_SHARE:.0%} of the processor cores that were measured.",
        remedy="End them or wait for their end (top lists them), then measure again.",
        raised=cores_shared,
    ),
)

FLAGS = tuple(flag.name for flag in ALL_FLAGS)
"""The names of all flags, in the order in which they are reported."""
