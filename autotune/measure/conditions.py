"""The registry of conditions: every value that is stored beside the samples of a measurement, with unit and meaning.

A measurement's ``conditions`` hold the entries of :data:`RECORDED`. One of them, ``readings``, holds the readings of
the observers by their names, with the entries of :data:`OBSERVED`. An observer whose reading has an unregistered name
becomes unavailable, and reading an unregistered name raises ``ValueError``: a new condition begins with an entry here.

Names and nesting are those of stored measurements, so an entry is never renamed.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

Readings = Mapping[str, Mapping[str, object]]
"""The reading of each observer by the observer's name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """One stored value; ``unit`` is empty for a value without one.

    ``absent`` says when a measurement lacks the value. ``parts`` names the entries of a value that is an object or a
    list of objects.
    """

    name: str
    meaning: str
    unit: str = ""
    absent: str = "never"
    parts: tuple[str, ...] = ()


_ALWAYS_READ = ("available", "reason")

NO_COUNTER = "the driver refuses it: not_available has the reason"
IF_FINALS = "in finals"
IF_SCREENING = "in a screening"
IF_KERNEL = "if a kernel was timed"
IF_MODEL = "if a model was measured"

OBSERVED: Mapping[str, tuple[Condition, ...]] = {
    "gpu": (
        Condition(
            name="sm_clock_mhz", unit="MHz", parts=("min", "max"), absent=NO_COUNTER,
            meaning="lowest and highest clock of the SMs",
        ),
        Condition(
            name="memory_clock_mhz", unit="MHz", parts=("min", "max"), absent=NO_COUNTER,
            meaning="lowest and highest clock of the device memory",
        ),
        Condition(name="temperature_c", unit="Celsius", absent=NO_COUNTER, meaning="highest temperature of the chip"),
        Condition(
            name="power_w", unit="W", parts=("mean", "max"), absent=f"on a MIG instance, or {NO_COUNTER}",
            meaning="power of the board; since Ampere each value is an average over a second",
        ),
        Condition(
            name="memory_used_bytes", unit="bytes", absent=NO_COUNTER,
            meaning="most device memory in use, by all processes and the driver",
        ),
        Condition(
            name="throttle_reasons", absent=NO_COUNTER,
            meaning="why the clocks were lowered: values of autotune.measure.nvml.THROTTLE_REASONS",
        ),
        Condition(
            name="power_violation_ns", unit="ns", absent=NO_COUNTER,
            meaning="time during which the power limit lowered the clocks",
        ),
        Condition(
            name="thermal_violation_ns", unit="ns", absent=NO_COUNTER,
            meaning="time during which the temperature lowered the clocks",
        ),
        Condition(
            name="energy_mj", unit="mJ",
            absent=f"on a MIG instance, if the counter did not move, or {NO_COUNTER}",
            meaning="energy that the board used; the counter moves about every 100 ms",
        ),
        Condition(
            name="other_processes", parts=("pid", "used_bytes", "sm_percent"), absent=NO_COUNTER,
            meaning="processes of others on the device: id, device memory in bytes, and share of the SMs in percent; "
            "the last two are null if the driver does not report them",
        ),
        Condition(name="not_available", meaning="the quantities that were refused, each with the reason"),
    ),
    "host": (
        Condition(name="device", meaning="kind of the measured device: cpu or cuda"),
        Condition(
            name="competing_cores", unit="cores",
            meaning="cores that others kept busy, on average, among those that this process may use",
        ),
        Condition(name="competing_share", unit="fraction", meaning="competing_cores as a share of cores, at most 1"),
        Condition(name="cores", unit="cores", meaning="cores that this process may use"),
        Condition(name="window_s", unit="s", meaning="time over which the load was averaged"),
    ),
    "canary": (
        Condition(name="before_ms", unit="ms", meaning="time of the fixed work before the measurement"),
        Condition(name="after_ms", unit="ms", meaning="time of the fixed work after the measurement"),
        Condition(name="reference_ms", unit="ms", meaning="time of the fixed work that both are compared with"),
        Condition(
            name="drift", unit="fraction",
            meaning="how much longer than the reference the slower of both took; 0 if neither took longer",
        ),
        Condition(
            name="limit", unit="fraction", absent="in the first stored measurements, whose limit was 0.02",
            meaning="the largest drift that leaves a measurement valid",
        ),
    ),
    "memory": (
        Condition(name="peak_bytes", unit="bytes", meaning="peak above before_bytes"),
        Condition(name="before_bytes", unit="bytes", meaning="memory in use before the runner was loaded"),
        Condition(name="source", meaning="the counter that the peak was read from"),
        Condition(name="per_process", meaning="whether no other process can have changed the peak"),
        Condition(
            name="torch_allocated_bytes", unit="bytes", absent="on a CPU, or if torch does not use the GPU",
            meaning="peak that torch's allocator handed out",
        ),
        Condition(
            name="torch_reserved_bytes", unit="bytes", absent="on a CPU, or if torch does not use the GPU",
            meaning="peak that torch's allocator reserved",
        ),
        Condition(
            name="alone", absent="outside the finals of a study",
            meaning="whether no other process of the study was loaded at the same time",
        ),
    ),
}  # fmt: skip
"""The entries of each observer's reading, beside ``available`` and, if that is false, ``reason``."""

RECORDED: tuple[Condition, ...] = (
    Condition(name="readings", absent="without observers", meaning="the readings of the observers; in finals, a list"),
    Condition(name="flags", meaning="the flags that the readings raise: see autotune.measure.flags; in finals, lists"),
    Condition(name="process", absent=IF_FINALS, meaning="id of the process that measured"),
    Condition(name="seed", absent="outside a study", meaning="seed of inputs and of the order of rounds"),
    Condition(
        name="warm_up", parts=("calls", "elapsed_ms", "settled"), absent=IF_FINALS,
        meaning="calls before the first sample, their time in ms, and whether their times had settled",
    ),
    Condition(
        name="cpu_ms", unit="ms", absent=IF_KERNEL,
        meaning="CPU time of the whole process for one call, for each sample",
    ),
    Condition(
        name="switches", absent=IF_KERNEL,
        meaning="involuntary context switches of the process during each sample",
    ),
    Condition(
        name="input_sets", absent=IF_KERNEL, meaning="index of the set of inputs of each sample",
    ),
    Condition(name="queued", meaning="whether device times hold nothing of the host's launching"),
    Condition(name="stopped", absent=IF_FINALS, meaning="the stopping rule's reason to end"),
    Condition(name="retaken", absent=IF_FINALS, meaning="times that the samples were taken again"),
    Condition(name="rounds", absent=IF_SCREENING, meaning="index of the round of each block"),
    Condition(name="processes", absent=IF_SCREENING, meaning="index of the process of each block"),
    Condition(name="positions", absent=IF_SCREENING, meaning="place of each block in its round, from 0"),
    Condition(name="grouped", meaning="calls behind each sample", absent="in a screening, whose protocol has it"),
    Condition(name="unrolled", meaning="calls behind each device time", absent="in a screening, whose protocol has it"),
    Condition(
        name="figures", unit="the objective's", absent=IF_SCREENING,
        meaning="figures of an objective other than latency, of each block",
    ),
    Condition(
        name="utilisation", absent="if it was not measured",
        meaning="use of the GPU: see autotune.measure.utilisation.measured_utilisation",
    ),
    Condition(
        name="backed", absent="if the objective is no percentile", meaning="whether the samples back the percentile",
    ),
    Condition(
        name="energy", absent="if the objective is not energy", meaning="see autotune.measure.energy.Energy",
        parts=("joules_per_call", "calls", "seconds", "energy_j", "mean_power_w"),
    ),
    Condition(
        name="throughput", absent="if the objective is not throughput",
        meaning="the best point: see autotune.measure.throughput.Throughput",
    ),
    Condition(
        name="kernels", absent="if the artifact has no tuned kernels",
        meaning="digest of the tuned kernels of the artifact that was timed",
    ),
    Condition(name="callable", absent="in a study", meaning="true for what autotune.measure measured"),
    Condition(name="clock", absent=IF_MODEL, meaning="the clock of the samples: device or wall"),
    Condition(name="l2", absent=IF_MODEL, meaning="state of the L2 cache before a call: steady or cold"),
    Condition(name="sets", absent=IF_MODEL, meaning="sets of operands that calls rotate among"),
)  # fmt: skip
"""The entries of a measurement's conditions; a value for each sample or block stands in a list."""

_OBSERVED_NAMES = {observer: {entry.name for entry in entries} for observer, entries in OBSERVED.items()}
_RECORDED_NAMES = {entry.name for entry in RECORDED}


def unregistered(observer: str, reading: Iterable[str]) -> list[str]:
    """Return the names in an observer's reading that the registry does not have, sorted."""
    return sorted({*reading} - {*_ALWAYS_READ} - _OBSERVED_NAMES.get(observer, set()))


def unregistered_conditions(conditions: Iterable[str]) -> list[str]:
    """Return the names in a measurement's conditions that the registry does not have, sorted."""
    return sorted({*conditions} - _RECORDED_NAMES)


def observed(readings: Readings, observer: str, name: str) -> object:
    """Return one entry of an observer's reading; ``None`` if it is absent or the observer was not available.

    Raises ``ValueError`` for a name that is not registered, as :func:`recorded` does.
    """
    if name not in _OBSERVED_NAMES.get(observer, ()):
        raise ValueError(f"{observer}.{name} is no registered condition: add it to autotune.measure.conditions")
    reading = readings.get(observer, {})
    return reading.get(name) if reading.get("available") else None


def observed_number(readings: Readings, observer: str, name: str) -> float:
    """Return one number of an observer's reading; 0 if it is absent."""
    value = observed(readings, observer, name)
    return float(value) if isinstance(value, int | float) else 0.0


def observed_entries(readings: Readings, observer: str, name: str) -> Sequence[Mapping[str, object]]:
    """Return a list of objects in an observer's reading; empty if it is absent."""
    value = observed(readings, observer, name)
    return [entry for entry in value if isinstance(entry, Mapping)] if isinstance(value, list | tuple) else []


def recorded(conditions: Mapping[str, object], name: str) -> object:
    """Return one entry of a measurement's conditions; ``None`` if it is absent."""
    if name not in _RECORDED_NAMES:
        raise ValueError(f"{name} is no registered condition: add it to autotune.measure.conditions")
    return conditions.get(name)


def all_readings(conditions: Mapping[str, object]) -> list[Readings]:
    """Return the readings of a measurement: one set of a screening, one for each round of finals."""
    value = recorded(conditions, "readings")
    sets = [value] if isinstance(value, Mapping) else value
    return [readings for readings in sets if isinstance(readings, Mapping)] if isinstance(sets, list | tuple) else []
