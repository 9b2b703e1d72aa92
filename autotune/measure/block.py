"""Consecutive samples of one callable with the conditions of each: Block."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from autotune.measure.clock import Clock
from autotune.measure.conditions import Readings, all_readings, recorded
from autotune.measure.device_clock import DeviceTime
from autotune.measure.flags import cores_shared, gpu_shared
from autotune.measure.statistics import checked, median
from autotune.measure.timer import L2, Function, Sample, Timer
from autotune.records.trial import Measurement

InputSets = Sequence[Sequence[object]]

ON_DEVICE_EVERY = 4
"""The device's own clock times one more call for this number of samples; on a cold cache, one for each sample."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Samples in the order they were taken, with their conditions, of which there is one for each of ``samples_ms``.

    ``device_samples_ms`` are fewer: calls timed by the device's own clock, if it has one, each the mean of
    ``unrolled`` calls; ``queued`` says that no launching is in any of them. ``cpu_ms`` is CPU time of the whole process
    for one call, ``switches`` its involuntary context switches during the sample, ``input_sets`` the index of its set
    of inputs. ``position`` is the block's place in its round. ``figures`` are those that an objective other than
    latency compares, in its own unit, less is better. ``readings`` are the observers', ``flags`` follow from them.
    """

    samples_ms: tuple[float, ...]
    device_samples_ms: tuple[float, ...] = ()
    cpu_ms: tuple[float, ...] = ()
    switches: tuple[int, ...] = ()
    input_sets: tuple[int, ...] = ()
    grouped: int = 1
    unrolled: int = 1
    queued: bool = True
    position: int = 0
    figures: tuple[float, ...] = ()
    readings: Readings = field(default_factory=dict)
    flags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        checked(self.samples_ms)
        if self.figures:
            checked(self.figures)
        if self.device_samples_ms:
            checked(self.device_samples_ms)
        for name in ("cpu_ms", "switches", "input_sets"):
            if len(getattr(self, name)) not in (0, len(self.samples_ms)):
                raise ValueError(f"{name} has {len(getattr(self, name))} entries for {len(self.samples_ms)} samples")

    @property
    def latency_ms(self) -> float:
        """The median of the block."""
        return median(self.samples_ms)

    @property
    def shared(self) -> bool:
        """Return whether others used the device meanwhile."""
        return cores_shared(self.readings) or gpu_shared(self.readings)

    @property
    def undisturbed_ms(self) -> tuple[float, ...]:
        """See :func:`undisturbed`."""
        return undisturbed(self.samples_ms, self.switches, self.readings)

    @property
    def compared(self) -> tuple[float, ...]:
        """The figures that finals compare: the objective's, else the samples."""
        return self.figures or self.samples_ms

    def as_dict(self) -> dict[str, object]:
        """Plain data for JSON."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Block":
        """Read what :meth:`as_dict` wrote."""
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in data.items()
        }
        return cls(**values)


def undisturbed(samples_ms: Sequence[float], switches: Sequence[int], readings: Readings) -> tuple[float, ...]:
    """Return the samples that others did not disturb: all if nobody used the device, none on a GPU that is shared.

    On a shared CPU they are those during which the system took no core away. Threads of one process may take cores from
    one another, so a switch means nothing on a CPU that is not shared. Beside a process that burned each of two cores,
    the median of the samples without a switch was that of a quiet host within 20% for eight of ten candidates of an
    encoder (within a factor of 1.6 for the others); the median of all samples lay up to 100 times above it.
    """
    if gpu_shared(readings):
        return ()
    if not cores_shared(readings):
        return tuple(samples_ms)
    return tuple(sample for sample, count in zip(samples_ms, switches, strict=False) if count == 0)


def latency_ms(measurement: Measurement) -> float:
    """Return the latency of a screening: the median of its undisturbed samples.

    If others used the device for all of them, it is the fastest: that is the nearest to the latency without them.
    """
    escaped = undisturbed_of(measurement)
    return median(escaped) if escaped else min(measurement.flat_ms)


def undisturbed_of(measurement: Measurement) -> tuple[float, ...]:
    """Return the :func:`undisturbed` samples of a screening."""
    switches = recorded(measurement.conditions, "switches")
    counts = switches if isinstance(switches, list | tuple) else ()
    readings = next(iter(all_readings(measurement.conditions)), {})
    return undisturbed(measurement.flat_ms, counts, readings)


class BlockRecorder:
    """Takes samples of one callable, rotating its inputs, until :meth:`block` closes it."""

    def __init__(
        self,
        timer: Timer,
        clock: Clock,
        input_sets: InputSets,
        grouped: int = 1,
        *,
        first: int = 0,
    ) -> None:
        """Begin with input set ``first``."""
        if not input_sets:
            raise ValueError("at least one set of inputs is needed, found none")
        self._timer = timer
        self._clock = clock
        self._input_sets = input_sets
        self._grouped = grouped
        self._next = first
        self._device_times: list[DeviceTime] = []
        self._samples: list[Sample] = []
        self._cpu_ms: list[float] = []
        self._switches: list[int] = []
        self._used: list[int] = []
        timer.settle()

    def take(self, function: Function) -> Sample:
        """Take one sample on the next set of inputs."""
        chosen = self._next % len(self._input_sets)
        switches, cpu_ns = self._clock.switches(), self._clock.cpu_ns()
        sample = self._timer.time_call(function, self._input_sets[chosen], self._grouped)
        self._cpu_ms.append((self._clock.cpu_ns() - cpu_ns) / 1e6 / self._grouped)
        self._switches.append(self._clock.switches() - switches)
        self._samples.append(sample)
        self._used.append(chosen)
        self._next += 1
        return sample

    @property
    def undisturbed(self) -> int:
        """The number of samples so far during which the system took no core away."""
        return sum(not count for count in self._switches)

    @property
    def escaped(self) -> bool:
        """Return whether the last sample was one of these."""
        return not self._switches[-1]

    @property
    def elapsed_ms(self) -> float:
        """The time that the samples took so far, all calls of a group included."""
        return self._grouped * sum(sample.wall_ms for sample in self._samples)

    def take_on_device(self, function: Function, previous: DeviceTime | None = None) -> DeviceTime | None:
        """Let the device's own clock time some further calls, after all samples; returns the last time.

        Never between samples: the device's work for the last one would be part of the next one's time. ``previous`` is
        an earlier device time of the same callable.
        """
        every = 1 if self._timer.l2 == "cold" else ON_DEVICE_EVERY
        for _ in range(math.ceil(len(self._samples) / every)):
            inputs = self._input_sets[self._next % len(self._input_sets)]
            previous = self._timer.time_on_device(function, inputs, self._samples[-1], previous)
            if previous is None:
                break
            self._device_times.append(previous)
            self._next += 1
        return previous

    def block(self, *, position: int = 0) -> Block:
        """Return the samples so far as a block; ``ValueError`` if there are none."""
        return Block(
            samples_ms=tuple(sample.wall_ms for sample in self._samples),
            device_samples_ms=tuple(time.ms for time in self._device_times),
            cpu_ms=tuple(self._cpu_ms),
            switches=tuple(self._switches),
            input_sets=tuple(self._used),
            grouped=self._grouped,
            unrolled=max((time.unrolled for time in self._device_times), default=1),
            queued=all(time.queued for time in self._device_times),
            position=position,
        )


def protocol_of(
    name: str, timer_kind: str, sets: int, *, grouped: int = 1, unrolled: int = 1, l2: L2 = "steady"
) -> dict[str, object]:
    """Name the rules of a measurement; whole models run in steady state with rotated inputs, kernels on a cold cache.

    Two measurements compare only if all entries but ``grouped`` and ``unrolled`` are the same. Those two say how a
    single call's time was obtained.
    """
    return {
        "name": name,
        "device": timer_kind,
        "inputs": "rotated",
        "sets": sets,
        "l2": l2,
        "grouped": grouped,
        "unrolled": unrolled,
    }
