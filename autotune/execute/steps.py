"""The steps that a worker runs: prepare, reference, build, measure, finals, footprint and prove; others beside this.

Each takes a request of plain data and a channel on which it tells the stage it is in, and returns plain data. Folders
hold everything larger. This module composes model, runtime, accuracy and measure. A step reads artifacts from their
store, which lies beside the tuning database; no step opens the database itself.
"""

import contextlib
import json
import random
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from autotune.execute import graph_steps, metric_steps
from autotune.execute.channel import Channel
from autotune.execute.input_sets import (
    HELD_OUT,
    HELD_OUT_SETS,
    REFERENCE,
    TIMING,
    TIMING_SETS,
    read_sets,
    write_sets,
)
from autotune.execute.stages import building, enter, holding
from autotune.records.configuration import Configuration
from autotune.records.device import Device
from autotune.records.objective import Objective

UTILISATION_S = 0.5
"""How long the device's own counters of its activity are watched, for each finalist."""


def prepare(request: Mapping[str, Any], channel: Channel) -> dict[str, Any]:
    """Make the module by its factory, draw the study's inputs, capture it, and write all of it into a folder.

    Answers with the workload, the third-party modules that the factory imported (so that later steps need not pay for
    them), what was read meanwhile (so that an unchanged model is known without making it), and what the user ought to
    know of the capture.
    """
    from autotune.model import capture, factory, inputs, reading, source

    enter(channel, "build")
    before = set(sys.modules)
    folder, seed, batch = Path(request["folder"]), request["seed"], request["batch"]
    with reading.watching() as seen, factory.folder_of(request["factory"]):
        module = factory.make_module(request["factory"], seed)
        specs = [inputs.InputSpec(**{**spec, "shape": tuple(spec["shape"])}) for spec in request["inputs"]]
        example, other = inputs.generate(specs, batch, seed, 2, "example")
        captured = capture.capture(request["name"], batch, module, example, other)
        timing = inputs.generate(specs, batch, seed, TIMING_SETS, "timing")
        held_out = inputs.generate(specs, batch, seed, HELD_OUT_SETS, "heldout")
    drawn = {spec.name: spec.drawn_from for spec in specs if spec.file is None}
    constant = {name: values for name, values in drawn.items() if values in ("ones", "zeros")}
    source.write(
        folder, captured, example, factory=request["factory"], seed=seed, module=module,
        treatments={name: f"all {values}, as the study says" for name, values in constant.items()},
    )  # fmt: skip
    write_sets(folder / TIMING, timing)
    write_sets(folder / HELD_OUT, held_out)
    loaded = set(sys.modules) - before
    return {
        "workload": captured.workload.as_dict(),
        "imported": [name for name in sys.modules if name in loaded and reading.is_third_party(name)],
        "read": seen.record(),
        "notes": list(captured.notes),
    }


def reference(request: Mapping[str, Any], channel: Channel) -> dict[str, Any]:
    """Answer the held-out inputs by the fp32 eager graph on the device with TF32 off; refuse what cannot judge.

    It computes on the device, so it holds the shared lock: it runs beside builds, never beside a timing.
    """
    import torch

    from autotune import accuracy
    from autotune.model import source
    from autotune.model.precision import flat_module
    from autotune.runtime.switches import Switches

    folder, device = Path(request["folder"]), Device.from_dict(request["device"])
    with holding(channel, device, "check", exclusive=False):
        Switches(tf32="off", threads=None).apply()
        model = source.CapturedModel(folder)
        module = flat_module(model.program("fp32", device))
        with torch.inference_mode():
            answers = [module(*_to(device, inputs)) for inputs in read_sets(folder / HELD_OUT, model)]
        references = [tuple(tensor.cpu() for tensor in answer) for answer in answers]
    names = [spec.name for spec in model.workload.outputs]
    accuracy.check_reference(references, names, model.treatments)
    objective = Objective.from_dict(request["objective"])
    metrics = [(metric, metric_steps.called_in_place(metric.function)) for metric in objective.metrics]
    accuracy.check_metrics(references, names, metrics)
    write_sets(folder / REFERENCE, [dict(zip(names, answer, strict=True)) for answer in references])
    return {}


def build(request: Mapping[str, Any], channel: Channel) -> dict[str, Any]:
    """Build a configuration into a folder, alone on the device if the build times kernels there.

    Otherwise it holds the shared lock if it uses the device, as every build for a CPU does: no build runs beside a
    timing of another study.
    ``kernels`` names the file of the tuned kernels that this build may choose from, if it is handed any; the answer
    holds their digest.
    """
    from autotune import registry
    from autotune.kernel import KnownKernels
    from autotune.model.source import CapturedModel
    from autotune.runtime import artifact
    from autotune.runtime.switches import Switches

    configuration = Configuration.from_dict(request["configuration"])
    device = Device.from_dict(request["device"])
    backend = registry.backend(configuration.backend)
    handed = request["kernels"]
    known = KnownKernels.from_dict(json.loads(Path(handed).read_text())) if handed is not None else None
    digest = known.digest if known is not None else ""
    model = CapturedModel(Path(request["folder"]), known)
    target = Path(request["target"])
    alone = registry.builds_alone(configuration)
    with building(channel, device, uses_device=backend.build_uses_device, alone=alone):
        Switches.of(configuration).apply()
        begin = time.monotonic()
        backend.build(model, configuration, device, target)
        artifact.describe(
            target, configuration, model.workload, model.output_schema, example=model.example(), kernels=digest
        )
        return {"build_s": time.monotonic() - begin, "kernels": digest}


def measure(request: Mapping[str, Any], channel: Channel) -> dict[str, Any]:
    """Load an artifact as a deployment does, judge it on the held-out inputs, and time it; alone on the device.

    With ``early`` it loads beside others, says so, and is judged and timed when told to (``{"abandon_ms": …}``).
    """
    from autotune.execute.meters import score, screening_rule_for
    from autotune.measure.clock import SystemClock
    from autotune.measure.observers import observers_for
    from autotune.measure.screening import screen
    from autotune.model.source import CapturedModel

    device, objective = Device.from_dict(request["device"]), Objective.from_dict(request["objective"])
    folder, target = Path(request["folder"]), Path(request["artifact"])
    model = CapturedModel(folder)

    def load_another() -> _Candidate:
        return _Candidate(target, device)

    runner, turn = None, request
    if request["early"]:
        with holding(channel, device, "load", exclusive=False):
            runner = _Candidate(target, device)
        channel.send({"loaded": True})
        order = channel.receive()
        if order is None:
            return {}  # nobody waits for it any more
        turn = order
    with holding(channel, device, "load" if runner is None else "check", exclusive=True):
        if runner is None:
            runner = _Candidate(target, device)
            enter(channel, "check")
        verdict = _judge(runner, model, folder, device, objective)
        checked = {"signal_error": verdict.signal_error}
        if verdict.failure is not None:
            return {**checked, "failure": verdict.failure.as_dict()}
        if request["check_only"]:
            return checked
        sets = [_to(device, inputs) for inputs in read_sets(folder / TIMING, model)]
        enter(channel, "measure")
        clock = SystemClock()
        screening = screen(
            runner, sets, _timer(device, clock), clock=clock, limit_s=request["limit_s"],
            abandon_ms=turn["abandon_ms"], conditions={"seed": request["seed"]},
            rule=screening_rule_for(objective, clock, request["limit_s"]),
            observers=observers_for(device, clock),
        )  # fmt: skip
        scored = score(
            objective, screening.measurement, runner, device, sets, clock, load_another, model.workload.batch
        )
    measurement = screening.measurement.as_dict()
    measurement["conditions"] = {**measurement["conditions"], **scored.conditions}
    return {**checked, "measurement": measurement, "pruned": screening.pruned, "score": scored.value}


def finals(request: Mapping[str, Any], channel: Channel) -> dict[str, Any]:
    """Hold all finalists and run rounds on demand until told to stop; one of several fresh processes.

    After loading it sends ``ready``; each order of ``rounds`` is answered with as many as fit its limits, and
    ``{"utilisation": True}`` with what each finalist makes of the device. A process that has traced times nothing more.
    """
    from autotune.execute.meters import Lanes, meter_for, samples_a_block
    from autotune.measure.clock import SystemClock
    from autotune.measure.finals import run_rounds
    from autotune.measure.observers import observers_for
    from autotune.measure.utilisation import measured_utilisation
    from autotune.model.source import CapturedModel

    device, objective = Device.from_dict(request["device"]), Objective.from_dict(request["objective"])
    model = CapturedModel(Path(request["folder"]))
    enter(channel, "load")
    finalists: dict[str, _Candidate] = {}
    folders = {name: Path(folder) for name, folder in request["artifacts"].items()}
    lanes = Lanes(lambda name: _Candidate(folders[name], device), device, request["concurrency"])
    for name, folder in folders.items():
        channel.send({"turn": name})
        with holding(channel, device, "load", exclusive=_times_kernels_at_load(folder)):
            finalists[name] = _Candidate(folder, device)
            lanes.load(name, finalists[name])
    sets = [_to(device, inputs) for inputs in read_sets(Path(request["folder"]) / TIMING, model)]
    rng, clock = random.Random(request["seed"]), SystemClock()
    timer, observers = _timer(device, clock), observers_for(device, clock, canary=request["canary"])
    meter = meter_for(objective, device, sets, clock, lanes, model.workload.batch)
    channel.send({"ready": True})
    while (order := channel.receive()) is not None and "close" not in order:
        with holding(channel, device, "measure", exclusive=True):
            if "utilisation" in order:
                found = measured_utilisation(finalists, sets, device, seconds=UTILISATION_S)
                channel.send({"utilisation": found})
                continue
            rounds = run_rounds(
                finalists, sets, timer, rng, order["rounds"], clock=clock, frozen=order["frozen"],
                limit_s=order["limit_s"], longest_s=order["longest_s"], least=order["least"],
                announce=lambda name: channel.send({"turn": name}), observers=observers, meter=meter,
                samples=samples_a_block(objective),
            )  # fmt: skip
            enter(channel, "load")
        channel.send({"rounds": [{name: block.as_dict() for name, block in one.items()} for one in rounds]})
    return {}


def footprint(request: Mapping[str, Any], channel: Channel) -> dict[str, Any]:
    """Load an artifact in this fresh process, call it on every set of inputs, and tell the peak of memory it took.

    Unless ``alone``, it loads under the shared lock, beside others of its round but never beside what another study
    times. The calls are timed, so each process makes them under the exclusive lock, as every timing is made.
    """
    from autotune.measure.clock import SystemClock
    from autotune.measure.memory import PeakMemory
    from autotune.model.source import CapturedModel

    device, artifact = Device.from_dict(request["device"]), Path(request["artifact"])
    alone = request["alone"] or _times_kernels_at_load(artifact)
    with contextlib.ExitStack() as held:
        held.enter_context(holding(channel, device, "load", exclusive=alone))
        model = CapturedModel(Path(request["folder"]))
        sets = [_to(device, inputs) for inputs in read_sets(Path(request["folder"]) / TIMING, model)]
        timer, peak = _timer(device, SystemClock()), PeakMemory(device)
        peak.before()
        runner = _Candidate(artifact, device)
        if not alone:
            held.close()
            held.enter_context(holding(channel, device, "measure", exclusive=True))
        else:
            enter(channel, "measure")
        samples_ms = [timer.time_call(runner, inputs).wall_ms for inputs in sets]
        reading = peak.after()
    return {"samples_ms": samples_ms, "memory": {**reading, "alone": alone}}


def deployed(request: Mapping[str, Any], channel: Channel) -> dict[str, Any]:
    """Call an artifact once as its user will: by named inputs, with its answer put together in the model's form.

    Raises ArtifactError if that is not an answer like the model's own to its example.
    """
    from autotune.errors import ArtifactError
    from autotune.model.form import Form, flatten
    from autotune.model.schema import InputSchema
    from autotune.model.source import ANSWERS, CapturedModel

    device, target = Device.from_dict(request["device"]), Path(request["artifact"])
    folder = Path(request["folder"])
    model, form = CapturedModel(folder), Form(node=CapturedModel(folder).output_schema)
    schema = InputSchema(names=tuple(spec.name for spec in model.workload.inputs))
    with holding(channel, device, "load", exclusive=_times_kernels_at_load(target)):
        runner = _Candidate(target, device)
        enter(channel, "check")
        inputs = {name: tensor.to(device.torch_name) for name, tensor in model.example().items()}
        answer = form.unflatten(runner(*schema.flatten((), inputs)))
    tensors, again = flatten(answer)
    expected = read_sets(folder / ANSWERS, model, outputs=True)[0]
    found = [(name, tuple(one.shape), one.dtype) for name, one in zip(again.names, tensors, strict=True)]
    wanted = [(name, tuple(one.shape), one.dtype) for name, one in zip(form.names, expected, strict=True)]
    if found != wanted:
        raise ArtifactError("a deployed call answers in another form", found=str(found), expected=str(wanted))
    return {}


def capture_toy(request: Mapping[str, Any], channel: Channel) -> dict[str, Any]:
    """Capture the toy model that every proof builds."""
    from autotune.execute import proof

    return proof.capture_toy(request, lambda stage: enter(channel, stage))


def prove(request: Mapping[str, Any], channel: Channel) -> dict[str, Any]:
    """Build a toy model by one backend, load it, run it and compare; whoever asks holds the device for all proofs."""
    from autotune.execute.proof import prove_backend

    return prove_backend(request, lambda stage: enter(channel, stage))


class _Candidate:
    """A runner with its global switches set already, so that setting them in every call costs little."""

    def __init__(self, folder: Path, device: Device) -> None:
        from autotune.database.artifacts import stored
        from autotune.runtime.artifact import load_runner, read_record
        from autotune.runtime.switches import Switches

        with stored(folder) as verified:
            self._switches = Switches.of(read_record(verified).configuration)
            self._switches.apply()
            self._runner = load_runner(verified, device)

    def prepare(self) -> None:
        """Set every global switch, so that nothing leaks from one finalist into the next."""
        self._switches.apply()

    def __call__(self, *inputs: Any) -> Any:
        return self._runner(*inputs)


def _times_kernels_at_load(folder: Path) -> bool:
    from autotune import registry
    from autotune.runtime.artifact import read_record

    configuration = read_record(folder).configuration
    return registry.backend(configuration.backend).times_kernels_at_load(configuration)


def _timer(device: Device, clock: Any) -> Any:
    from autotune.measure.timer import CpuTimer, CudaTimer

    return CpuTimer(clock) if device.kind == "cpu" else CudaTimer(clock, device.torch_name)


def _judge(runner: Any, model: Any, folder: Path, device: Device, objective: Objective) -> Any:
    from autotune import accuracy

    outputs = [
        tuple(tensor.cpu() for tensor in runner(*_to(device, inputs))) for inputs in read_sets(folder / HELD_OUT, model)
    ]
    references = read_sets(folder / REFERENCE, model, outputs=True)
    names = [spec.name for spec in model.workload.outputs]
    metrics = [(metric, metric_steps.called_in_place(metric.function)) for metric in objective.metrics]
    return accuracy.judge(outputs, references, names, objective, metrics)


def _to(device: Device, tensors: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(tensor.to(device.torch_name) for tensor in tensors)


STEPS: dict[str, Callable[[Mapping[str, Any], Channel], dict[str, Any]]] = {
    "prepare": prepare,
    "metrics": metric_steps.metrics,
    "reference": reference,
    "build": build,
    "measure": measure,
    "finals": finals,
    "footprint": footprint,
    "deployed": deployed,
    "features": graph_steps.features,
    "problems": graph_steps.problems,
    "capture_toy": capture_toy,
    "prove": prove,
}
