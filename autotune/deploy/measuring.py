"""``autotune.measure``: the timing of a study for any callable: measure, Measured."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from autotune.errors import RequestError
from autotune.measure.percentiles import Percentiles
from autotune.records.device import Device
from autotune.records.trial import Measurement

if TYPE_CHECKING:
    from autotune.measure.lock_holders import Holders

log = logging.getLogger(__name__)

HALF_WIDTH = 0.0025
"""Sampling ends when the 95% interval of the median is within 0.25% of it, as in the finals of a study."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """The time of one call, with every raw sample in ``measurement``.

    ``latency_ms`` is the median time that a caller waits, ``interval_ms`` its 95% interval; a percentile is ``None`` if
    the samples are too few for it. ``flags`` name the disturbances (``throttled``, ``shared_device``, ``canary_drift``,
    ``busy_host``); ``stopped`` is the reason why sampling ended.
    """

    device: Device
    measurement: Measurement
    latency_ms: float
    interval_ms: tuple[float, float]
    percentiles: Percentiles
    flags: tuple[str, ...]
    stopped: str

    def as_dict(self) -> dict[str, object]:
        """Plain data for JSON."""
        return {
            "device": self.device.as_dict(),
            "latency_ms": self.latency_ms,
            "interval_ms": list(self.interval_ms),
            "percentiles": self.percentiles.as_dict(),
            "flags": list(self.flags),
            "stopped": self.stopped,
            "measurement": self.measurement.as_dict(),
        }

    def __str__(self) -> str:
        low, high = self.interval_ms
        text = f"{self.latency_ms:.4g} ms [{low:.4g} – {high:.4g}] on {self.device.name}, {self.percentiles.n} samples"
        return f"{text}, measured under: {', '.join(self.flags)}" if self.flags else text


def measure(
    function: Callable[..., object],
    inputs: object,
    *,
    device: str | None = None,
    limit_s: float = 15.0,
    timeout_s: float | None = None,
) -> Measured:
    """Time one call of ``function`` as a study times its candidates, alone on the device.

    It waits while another process of autotune has the device, and logs which; this time counts for no limit.
    ``inputs`` are the arguments of one call: a tuple, a dict by parameter name or a single value; a list holds several
    such sets, which take turns. ``device`` defaults to that of the first tensor, else the CPU. Sampling ends when the
    median is precise to 0.25%, when more samples do not help, or after ``limit_s`` seconds; a call that hangs is
    abandoned after ``timeout_s`` (by default four times the limit and a minute).

    Raises RequestError for a wrong request, DeviceError if the device is not there, and WorkError if a call raises
    (the error names the call), changes the structure of its answer, hangs, or does no work on the GPU.
    """
    from autotune.measure.callables import Watched, guarded, require_device_work
    from autotune.measure.foreign import foreign_processes
    from autotune.measure.lock import device_lock
    from autotune.runtime import discovery

    if not limit_s > 0:
        raise RequestError("limit_s must be positive", found=f"{limit_s!r}", expected="a number of seconds")
    call, sets = _sets(function, inputs)
    target = discovery.find(device or _device_of(sets))
    watched = Watched(call)

    def whole() -> Measured:
        watched.enter("check")
        for arguments in sets:
            watched.check(arguments)
        watched.enter("measurement")
        measured = _sampled(watched, sets, target, limit_s)
        watched.enter("check")
        watched.check(sets[0])
        if target.kind == "cuda":  # last, because it may need a trace, and a process that has traced is slower
            require_device_work(call, sets[0], target.torch_name)
        return measured

    def on_wait(holders: "Holders") -> None:
        log.warning("autotune.measure waits for %s: %s", target.name, holders.text)

    timed = guarded(whole, timeout_s if timeout_s is not None else 4 * limit_s + 60, what="autotune.measure")
    with device_lock(target.uuid, exclusive=True, purpose="autotune.measure", on_wait=on_wait):
        measured = timed()
    for line in foreign_processes(measured.measurement.conditions, target).values():
        log.warning("autotune.measure: %s", line)
    return measured


def _sampled(
    call: Callable[..., object], sets: Sequence[tuple[object, ...]], device: Device, limit_s: float
) -> Measured:
    from autotune.measure.clock import SystemClock
    from autotune.measure.flags import stored_flags
    from autotune.measure.observers import observers_for
    from autotune.measure.percentiles import summary
    from autotune.measure.screening import screen
    from autotune.measure.statistics import median, median_interval
    from autotune.measure.stopping import FirstOf, IntervalReached, NoiseSettled, TimeLimit
    from autotune.measure.timer import CpuTimer, CudaTimer

    clock = SystemClock()
    timer = CpuTimer(clock) if device.kind == "cpu" else CudaTimer(clock, device.torch_name)
    screening = screen(
        call, sets, timer, clock=clock, conditions={"callable": True},
        rule=lambda grouped: FirstOf(
            [IntervalReached(HALF_WIDTH, calls=grouped), NoiseSettled(calls=grouped), TimeLimit(clock, limit_s)]
        ),
        observers=observers_for(device, clock),
    )  # fmt: skip
    samples = screening.measurement.flat_ms
    return Measured(
        device=device,
        measurement=screening.measurement,
        latency_ms=median(samples),
        interval_ms=median_interval(samples),
        percentiles=summary(samples),
        flags=stored_flags(screening.measurement.conditions),
        stopped=screening.reason,
    )


def _sets(function: Callable[..., object], inputs: object) -> tuple[Callable[..., object], list[tuple[object, ...]]]:
    """Return a callable that takes positional arguments, and the sets of these arguments."""
    if not callable(function):
        raise RequestError(
            "only something that can be called can be measured",
            found=type(function).__name__,
            expected="a function, a module or a plan that was loaded",
        )
    sets: list[object] = inputs if isinstance(inputs, list) else [inputs]
    if not sets:
        raise RequestError("a measurement needs inputs", found="an empty list", expected="at least one set of inputs")
    by_name = [arguments for arguments in sets if isinstance(arguments, Mapping)]
    if by_name and len(by_name) < len(sets):
        raise RequestError("sets of inputs are all dicts or all tuples", found="both", expected="one kind")
    if by_name:
        names = tuple(by_name[0])
        if any(tuple(arguments) != names for arguments in by_name):
            raise RequestError("every set of inputs needs the same names", found=", ".join(map(str, sets)))
        call = _by_position(function, names)
        return call, [tuple(arguments.values()) for arguments in by_name]
    return function, [arguments if isinstance(arguments, tuple) else (arguments,) for arguments in sets]


def _by_position(function: Callable[..., object], names: Sequence[str]) -> Callable[..., object]:
    return lambda *values: function(**dict(zip(names, values, strict=True)))


def _device_of(sets: Sequence[tuple[object, ...]]) -> str:
    for value in sets[0]:
        device = getattr(value, "device", None)
        if device is not None and getattr(device, "type", "") == "cuda":
            return f"cuda:{device.index or 0}"
    return "cpu"
