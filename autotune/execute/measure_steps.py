"""Steps that load one artifact in a fresh process: measure it, read its peak of memory, call it as its user will."""

import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING

from autotune.execute.answers import Done, FootprintAnswer, MeasureAnswer, MemoryReading
from autotune.execute.candidate import Candidate, judged, loads_alone, loads_in_turn, sets_on_device, timer_for
from autotune.execute.channel import Channel, ChannelClosed
from autotune.execute.input_sets import TIMING, read_sets
from autotune.execute.requests import DeployedRequest, FootprintRequest, MeasureOrder, MeasureRequest
from autotune.execute.stages import Turns, enter, holding, loading

if TYPE_CHECKING:
    from autotune.model.source import CapturedModel


def measure(request: MeasureRequest, channel: Channel) -> MeasureAnswer:
    """Load an artifact as a deployment does, judge it on the held-out inputs, and time it; alone on the device.

    With ``early`` it loads beside others, says so, and is judged and timed after a :class:`MeasureOrder`. No part of
    that load is beside a timing, or none that computes if it loads onto a GPU and its backend loads in turn.
    """
    from autotune.model.source import CapturedModel

    device, model = request.device, CapturedModel(request.folder)
    with _Turn(channel, request) as turn:
        candidate = Candidate(request.artifact, device)
        turn.begin_checking()
        verdict = judged(candidate, model, request.folder, device, request.objective)
        answer = MeasureAnswer(signal_error=verdict.signal_error, failure=verdict.failure)
        if verdict.failure is not None or request.check_only:
            return answer
        return _timed(answer, candidate, model, request, turn.abandon_ms, channel)


class _Turn(contextlib.ExitStack):
    """The turn of a candidate on the device, from its load to its last call.

    One that loads early is beside others until it times kernels or has loaded. Then it says so and waits for its
    :class:`MeasureOrder`; from then on it is alone.
    """

    def __init__(self, channel: Channel, request: MeasureRequest) -> None:
        super().__init__()
        self._channel, self._artifact, self._waits = channel, request.artifact, request.early
        self._turns = Turns(channel, request.device, "load")
        self.abandon_ms = request.abandon_ms

    def __enter__(self) -> "_Turn":
        from autotune.runtime.turn import takes_turn_by

        if self._waits:
            self.enter_context(self._turns.beside(in_turn=loads_in_turn(self._artifact)))
        else:
            self._turns.begin_alone("load")
        self.callback(self._turns.close)
        self.enter_context(takes_turn_by(self._alone))
        return self

    def begin_checking(self) -> None:
        """Be in stage ``check``, after the wait for the turn if it has not begun."""
        if self._waits:
            self._take("check")
        else:
            enter(self._channel, "check")

    def _alone(self) -> contextlib.AbstractContextManager[None]:
        if self._waits:
            self._take("load")
        return contextlib.nullcontext()

    def _take(self, stage: str) -> None:
        """Wait for the turn; raises ChannelClosed if the coordinator is gone."""
        self._waits = False
        self._turns.begin_alone(stage, first=self._await_order)

    def _await_order(self) -> None:
        self._channel.send({"loaded": True})
        order = self._channel.receive()
        if order is None:
            raise ChannelClosed("the coordinator is gone")
        self.abandon_ms = MeasureOrder.from_dict(order).abandon_ms


def _timed(
    answer: MeasureAnswer, candidate: Candidate, model: "CapturedModel", request: MeasureRequest,
    abandon_ms: float | None, channel: Channel,
) -> MeasureAnswer:  # fmt: skip
    """Return the answer with the measurement and the score of a candidate that was accepted."""
    from autotune.execute.meters import score, screening_rule_for
    from autotune.measure.clock import SystemClock
    from autotune.measure.observers import observers_for
    from autotune.measure.screening import screen

    device, objective, clock = request.device, request.objective, SystemClock()
    sets = sets_on_device(request.folder / TIMING, model, device)
    enter(channel, "measure")
    screening = screen(
        candidate, sets, timer_for(device, clock), clock=clock, limit_s=request.limit_s, abandon_ms=abandon_ms,
        conditions={"seed": request.seed}, rule=screening_rule_for(objective, clock, request.limit_s),
        observers=observers_for(device, clock),
    )  # fmt: skip
    measurement = screening.measurement
    scored = score(
        objective, measurement, candidate, device, sets, clock, lambda: Candidate(request.artifact, device),
        model.workload.batch,
    )  # fmt: skip
    return replace(
        answer,
        measurement=replace(measurement, conditions={**measurement.conditions, **scored.conditions}),
        pruned=screening.pruned,
        score=scored.value,
    )


def footprint(request: FootprintRequest, channel: Channel) -> FootprintAnswer:
    """Load an artifact in this fresh process, call it on every set of inputs, and read the peak of its memory.

    Unless ``alone``, it loads under the shared lock, beside others of its round but never beside what another study
    times. The calls are timed, so each process makes them under the exclusive lock, as every timing is made.
    """
    from autotune.measure.clock import SystemClock
    from autotune.measure.memory import PeakMemory
    from autotune.model.source import CapturedModel

    device = request.device
    alone = request.alone or loads_alone(request.artifact)
    with contextlib.ExitStack() as held:
        held.enter_context(loading(channel, device, alone=alone))
        sets = sets_on_device(request.folder / TIMING, CapturedModel(request.folder), device)
        timer, peak = timer_for(device, SystemClock()), PeakMemory(device)
        peak.before()
        candidate = Candidate(request.artifact, device)
        if not alone:
            held.close()
            held.enter_context(holding(channel, device, "measure", exclusive=True))
        else:
            enter(channel, "measure")
        samples_ms = tuple(timer.time_call(candidate, inputs).wall_ms for inputs in sets)
        reading = peak.after()
    return FootprintAnswer(samples_ms=samples_ms, memory=MemoryReading.from_dict({**reading, "alone": alone}))


def deployed(request: DeployedRequest, channel: Channel) -> Done:
    """Call an artifact once as its user will: by named inputs, with its answer put together in the model's form.

    Raises ArtifactError if that is not an answer like the model's own to its example.
    """
    from autotune.errors import ArtifactError
    from autotune.model.form import Form, flatten
    from autotune.model.schema import InputSchema
    from autotune.model.source import ANSWERS, CapturedModel

    device, model = request.device, CapturedModel(request.folder)
    form = Form(node=model.output_schema)
    schema = InputSchema(names=tuple(spec.name for spec in model.workload.inputs))
    with loading(channel, device, alone=loads_alone(request.artifact)):
        candidate = Candidate(request.artifact, device)
        enter(channel, "check")
        inputs = {name: tensor.to(device.torch_name) for name, tensor in model.example().items()}
        answer = form.unflatten(candidate(*schema.flatten((), inputs)))
    tensors, answered = flatten(answer)
    own = read_sets(request.folder / ANSWERS, model, outputs=True)[0]
    shown = [(name, tuple(tensor.shape), tensor.dtype) for name, tensor in zip(answered.names, tensors, strict=True)]
    expected = [(name, tuple(tensor.shape), tensor.dtype) for name, tensor in zip(form.names, own, strict=True)]
    if shown != expected:
        raise ArtifactError("a deployed call answers in another form", found=str(shown), expected=str(expected))
    return Done()
