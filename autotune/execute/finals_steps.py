"""The step of the finals: one process that holds all finalists."""

import random
from collections.abc import Mapping
from typing import TYPE_CHECKING

from autotune.execute.answers import Done
from autotune.execute.candidate import Candidate, loads_alone, loads_in_turn, sets_on_device, timer_for
from autotune.execute.channel import Channel
from autotune.execute.input_sets import TIMING
from autotune.execute.requests import FinalsRequest, RoundsOrder
from autotune.execute.stages import enter, holding, loading

if TYPE_CHECKING:
    from autotune.execute.meters import Lanes

UTILISATION_S = 0.5
"""How long the device's own counters of its activity are watched, for each finalist."""


def finals(request: FinalsRequest, channel: Channel) -> Done:
    """Hold all finalists and run rounds on demand until an order says to close; one of several fresh processes.

    After loading it sends ``ready``. Each :class:`RoundsOrder` is answered with as many rounds as fit its limits, and
    ``{"utilisation": True}`` with each finalist's use of the device. A process that has traced times nothing more.
    """
    from autotune.execute.meters import Lanes, meter_for, samples_a_block
    from autotune.measure.clock import SystemClock
    from autotune.measure.finals import run_rounds
    from autotune.measure.observers import observers_for
    from autotune.measure.utilisation import measured_utilisation
    from autotune.model.source import CapturedModel

    device, objective = request.device, request.objective
    model = CapturedModel(request.folder)
    lanes = Lanes(lambda name: Candidate(request.artifacts[name], device), device, request.concurrency)
    finalists = _loaded(request, lanes, channel)
    sets = sets_on_device(request.folder / TIMING, model, device)
    rng, clock = random.Random(request.seed), SystemClock()
    timer, observers = timer_for(device, clock), observers_for(device, clock, canary=request.canary)
    meter = meter_for(objective, device, sets, clock, lanes, model.workload.batch)
    channel.send({"ready": True})
    while (message := channel.receive()) is not None and "close" not in message:
        with holding(channel, device, "measure", exclusive=True):
            if "utilisation" in message:
                channel.send({"utilisation": measured_utilisation(finalists, sets, device, seconds=UTILISATION_S)})
                continue
            order = RoundsOrder.from_dict(message)
            rounds = run_rounds(
                finalists, sets, timer, rng, order.rounds, clock=clock, frozen=order.frozen, limit_s=order.limit_s,
                longest_s=order.longest_s, least=order.least, announce=lambda name: channel.send({"turn": name}),
                observers=observers, meter=meter, samples=samples_a_block(objective),
            )  # fmt: skip
            enter(channel, "load")
        channel.send({"rounds": [{name: block.as_dict() for name, block in blocks.items()} for blocks in rounds]})
    return Done()


def _loaded(request: FinalsRequest, lanes: "Lanes", channel: Channel) -> Mapping[str, Candidate]:
    """Load every finalist with the copies that it needs, saying whose turn it is."""
    enter(channel, "load")
    finalists: dict[str, Candidate] = {}
    for name, folder in request.artifacts.items():
        channel.send({"turn": name})
        with loading(channel, request.device, alone=loads_alone(folder), in_turn=loads_in_turn(folder)):
            finalists[name] = Candidate(folder, request.device)
            lanes.load(name, finalists[name])
    return finalists
