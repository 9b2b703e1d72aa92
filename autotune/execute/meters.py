"""The figure that each objective compares: of one candidate in its screening, of every finalist in each round.

Latencies are in the samples of every measurement already. Energy, throughput and memory are measured after them, with
the same runner on the same inputs.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from autotune.measure.block import InputSets
from autotune.measure.clock import Clock
from autotune.measure.percentiles import percentile, samples_a_round, samples_needed, tail_statistic
from autotune.measure.rounds import Meter, TimedRunner
from autotune.measure.stopping import FirstOf, IntervalReached, StoppingRule, TimeLimit
from autotune.records.device import Device
from autotune.records.objective import Objective
from autotune.records.trial import Measurement

if TYPE_CHECKING:
    from autotune.measure.energy import Energy
    from autotune.measure.throughput import Throughput

TAIL = 0.99
TAIL_ROUNDS = 20
"""The samples of a percentile come from so many rounds, the fewest after which finals are decided."""

ENERGY_SCREENING_S, ENERGY_FINALS_S = 2.0, 5.0
"""A device's energy counter moves every 100 ms or so: over 2 s its error is about 5%, over 5 s 2%."""

THROUGHPUT_WINDOW_S, THROUGHPUT_WINDOWS, THROUGHPUT_WARM_UP_S = 0.25, 4, 0.25

Lane = Callable[..., object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """A candidate's figure under the study's objective (``None`` if that is its latency), and how it was measured."""

    value: float | None = None
    conditions: Mapping[str, object] = field(default_factory=dict)


class Lanes:
    """Several loaded copies of each finalist, so that as many requests can be in flight."""

    def __init__(self, load: Callable[[str], TimedRunner], device: Device, concurrency: Mapping[str, int]) -> None:
        self._load, self._device, self._concurrency = load, device, concurrency
        self._lanes: dict[str, list[Lane]] = {}

    def load(self, name: str, finalist: TimedRunner) -> None:
        """Load the copies that a finalist needs beside itself, each on a stream of its own on a GPU."""
        copies = [self._load(name) for _ in range(self._concurrency.get(name, 1) - 1)]
        self._lanes[name] = [lane_of(candidate, self._device) for candidate in (finalist, *copies)]

    def of(self, name: str) -> list[Lane]:
        """Return the finalist and its copies, which were loaded before."""
        return self._lanes[name]


def lane_of(candidate: Lane, device: Device) -> Lane:
    """Return a candidate as one lane of several."""
    from autotune.measure.throughput import cuda_lane

    return cuda_lane(candidate, device.torch_name) if device.kind == "cuda" else candidate


def samples_a_block(objective: Objective) -> int:
    """Return how many samples every block has if a tail is compared; 0 if each finalist's pace decides."""
    return samples_a_round(TAIL, TAIL_ROUNDS) if objective.name == "latency_p99" else 0


def screening_rule_for(objective: Objective, clock: Clock, limit_s: float) -> Callable[[int], StoppingRule] | None:
    """Return the rule that ends a screening for the objective; ``None`` if a median is all that is compared."""
    if objective.name != "latency_p99":
        return None
    needed = samples_needed(TAIL)
    return lambda grouped: FirstOf(
        [
            IntervalReached(0.99, min_samples=needed, min_time_ms=0.0, calls=grouped),
            TimeLimit(clock, 2 * limit_s),
        ]
    )


def score(
    objective: Objective,
    measurement: Measurement,
    runner: TimedRunner,
    device: Device,
    sets: InputSets,
    clock: Clock,
    load_another: Callable[[], TimedRunner],
    batch: int,
) -> Scored:
    """Measure a screened candidate's figure; raises WorkError if the device cannot measure it."""
    if objective.name == "latency_p99":
        backed = percentile(measurement.flat_ms, TAIL)
        value = backed if backed is not None else tail_statistic(measurement.flat_ms, TAIL)
        return Scored(value=value, conditions={"backed": backed is not None})
    if objective.name == "energy":
        energy = _energy(runner, sets, device, clock, ENERGY_SCREENING_S)
        return Scored(value=energy.joules_per_call, conditions={"energy": energy.as_dict()})
    if objective.name == "throughput":
        return _saturated(runner, device, sets, clock, load_another, batch)
    return Scored()


def meter_for(
    objective: Objective,
    device: Device,
    sets: InputSets,
    clock: Clock,
    lanes: Lanes,
    batch: int,
) -> Meter | None:
    """Return the meter of a finalist's figure in each round; ``None`` if its samples are compared."""
    if objective.name == "energy":
        return lambda _, finalist: _energy(finalist, sets, device, clock, ENERGY_FINALS_S).joules_per_call
    if objective.name == "throughput":
        return lambda name, _: _ms_an_item(lanes.of(name), sets, device, clock, batch)
    return None


def _energy(runner: TimedRunner, sets: InputSets, device: Device, clock: Clock, least_s: float) -> "Energy":
    from autotune.measure.energy import energy_per_call, nvml_energy_counter

    counter = nvml_energy_counter(device)
    return energy_per_call(runner, sets, counter, clock, _synchronize(device), least_s=least_s)


def _ms_an_item(lanes: Sequence[Lane], sets: InputSets, device: Device, clock: Clock, batch: int) -> float:
    return 1e3 / _throughput(lanes, sets, device, clock, batch).items_per_s


def _throughput(
    lanes: Sequence[Lane],
    sets: InputSets,
    device: Device,
    clock: Clock,
    batch: int,
) -> "Throughput":
    from autotune.measure.throughput import run_lanes

    return run_lanes(
        lanes, sets, batch, clock=clock, synchronize=_synchronize(device), window_s=THROUGHPUT_WINDOW_S,
        windows=THROUGHPUT_WINDOWS, warm_up_s=THROUGHPUT_WARM_UP_S,
    )  # fmt: skip


def _saturated(
    runner: TimedRunner,
    device: Device,
    sets: InputSets,
    clock: Clock,
    load_another: Callable[[], TimedRunner],
    batch: int,
) -> Scored:
    """Double the requests in flight until that gains nothing, and return the milliseconds an item of the best point."""
    from autotune.measure.throughput import best, saturate

    loaded: list[TimedRunner] = [runner]

    def at(concurrency: int) -> "Throughput":
        while len(loaded) < concurrency:
            loaded.append(load_another())
        return _throughput([lane_of(candidate, device) for candidate in loaded], sets, device, clock, batch)

    chosen = best(saturate(at))
    figures = {name: value for name, value in chosen.as_dict().items() if name != "samples_ms"}
    return Scored(value=1e3 / chosen.items_per_s, conditions={"throughput": figures})


def _synchronize(device: Device) -> Callable[[], None]:
    if device.kind == "cpu":
        return lambda: None
    import torch

    return lambda: torch.cuda.synchronize(device.torch_name)
