"""Energy of one call: a loop of calls between two changes of the device's energy counter."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from types import ModuleType

from autotune.errors import DeviceError, WorkError
from autotune.measure.block import InputSets
from autotune.measure.clock import Clock
from autotune.measure.nvml import open_nvml
from autotune.measure.timer import Function
from autotune.records.device import Device

COUNTER_TIMEOUT_S = 2.0
"""A counter that stands still for this long under load does not work; a working one moves about every 100 ms."""

Counter = Callable[[], int]
"""Returns the millijoules that a device has used since an arbitrary moment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Energy:
    """Energy of one call and the figures that it follows from: ``calls`` one after the other in ``seconds``."""

    joules_per_call: float
    calls: int
    seconds: float
    energy_j: float
    mean_power_w: float

    def __post_init__(self) -> None:
        if self.calls < 1 or not all(value > 0 for value in (self.seconds, self.energy_j)):
            raise ValueError(f"energy is measured over calls that take time and energy, found {self}")

    def as_dict(self) -> dict[str, object]:
        """Plain data for JSON."""
        return asdict(self)


def energy_per_call(
    function: Function,
    input_sets: InputSets,
    counter: Counter,
    clock: Clock,
    synchronize: Callable[[], None],
    *,
    least_s: float = 5.0,
) -> Energy:
    """Call without a pause for ``least_s``, one set of inputs after the other, each call waited for.

    The counter moves about every 100 ms, so the loop counts from one move that was just seen to another. The counter is
    read after every call while a move is awaited, and not in between, because reading it takes time from the calls. The
    remaining error is the duration of a call at either end: for calls of 100 ms, 2% of 5 s each.

    Raises ``WorkError`` if the counter stands still for 2 s under load or goes backwards, or if the clock does. An
    error of the function passes through.
    """
    if not input_sets:
        raise ValueError("at least one set of inputs is needed, found none")
    if not least_s > 0:
        raise ValueError(f"least_s is a positive number of seconds, found {least_s!r}")
    loop = _Loop(function, input_sets, counter, clock, synchronize)
    loop.until_renewed()
    calls, begun_ns, energy_mj = loop.calls, loop.now_ns, loop.energy_mj
    while loop.now_ns - begun_ns < least_s * 1e9:
        loop.call()
    loop.read()
    loop.until_renewed()
    calls, seconds, energy_j = loop.calls - calls, (loop.now_ns - begun_ns) / 1e9, (loop.energy_mj - energy_mj) / 1e3
    return Energy(
        joules_per_call=energy_j / calls,
        calls=calls,
        seconds=seconds,
        energy_j=energy_j,
        mean_power_w=energy_j / seconds,
    )


class _Loop:
    """Calls one after the other, with the last readings of the clock and of the counter."""

    def __init__(
        self,
        function: Function,
        input_sets: InputSets,
        counter: Counter,
        clock: Clock,
        synchronize: Callable[[], None],
    ) -> None:
        self._function, self._input_sets, self._synchronize = function, input_sets, synchronize
        self._counter, self._clock = counter, clock
        self.calls = 0
        self.now_ns = clock.now_ns()
        self.energy_mj = counter()

    def call(self) -> None:
        """Make one call, wait for it and read the clock."""
        self._function(*self._input_sets[self.calls % len(self._input_sets)])
        self._synchronize()
        self.calls += 1
        now_ns = self._clock.now_ns()
        if now_ns <= self.now_ns:
            raise WorkError(
                "energy was to be measured over time",
                found=f"a clock that moved from {self.now_ns} to {now_ns} ns during a call",
                expected="a clock that grows",
            )
        self.now_ns = now_ns

    def read(self) -> bool:
        """Read the counter; returns whether it has moved."""
        energy_mj = self._counter()
        if energy_mj < self.energy_mj:
            raise WorkError(
                "energy was to be measured",
                found=f"a counter that fell from {self.energy_mj} to {energy_mj} mJ",
                expected="a counter that grows while the driver stays loaded",
                run="the same again; if it stays so, another objective than energy",
            )
        moved, self.energy_mj = energy_mj > self.energy_mj, energy_mj
        return moved

    def until_renewed(self) -> None:
        """Call, and read the counter after each call, until it has moved."""
        begun_ns = self.now_ns
        while True:
            self.call()
            if self.read():
                return
            if self.now_ns - begun_ns > COUNTER_TIMEOUT_S * 1e9:
                raise WorkError(
                    "energy was to be measured",
                    found=f"a counter that stood at {self.energy_mj} mJ for {COUNTER_TIMEOUT_S:g} s under load",
                    expected="a counter that moves about every 100 ms",
                    run="nvidia-smi -q -d POWER; if it shows no power, another objective than energy",
                )


def nvml_energy_counter(device: Device, nvml: ModuleType | None = None) -> Counter:
    """Make the counter of a GPU; raises ``DeviceError`` with the reason if it has none."""
    try:
        opened = open_nvml(device, nvml)
        opened.energy_mj()
    except OSError as error:
        raise DeviceError(
            f"energy was requested on {device.name}",
            found=str(error),
            expected="a whole GPU whose energy counter NVML can read (Volta or later)",
            run="the same with another objective or device",
        ) from error
    return opened.energy_mj
