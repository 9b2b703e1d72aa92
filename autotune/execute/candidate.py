"""A loaded artifact in a step, and how it is judged: Candidate."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from autotune.execute import metric_steps
from autotune.execute.input_sets import HELD_OUT, REFERENCE, read_sets
from autotune.records.device import Device
from autotune.records.objective import Objective

if TYPE_CHECKING:
    import torch

    from autotune.accuracy import AccuracyResult
    from autotune.measure.clock import Clock
    from autotune.measure.timer import Timer
    from autotune.model.source import CapturedModel


class Candidate:
    """A runner whose global switches are set already, so that setting them in every call costs little."""

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

    def __call__(self, *inputs: "torch.Tensor") -> "tuple[torch.Tensor, ...]":
        """Answer one call on the device."""
        return self._runner(*inputs)


def loads_alone(folder: Path) -> bool:
    """Return true if an artifact has to be alone on the device during its whole load, because it times kernels."""
    from autotune import registry
    from autotune.runtime.artifact import read_record

    return registry.loads_alone(read_record(folder).configuration)


def loads_in_turn(folder: Path) -> bool:
    """Return true if an artifact's load needs its GPU only for the parts that compute, for which it waits itself."""
    from autotune import registry
    from autotune.runtime.artifact import read_record

    return registry.loads_in_turn(read_record(folder).configuration.backend)


def timer_for(device: Device, clock: "Clock") -> "Timer":
    """Return the timer of a kind of device."""
    from autotune.measure.timer import CpuTimer, CudaTimer

    return CpuTimer(clock) if device.kind == "cpu" else CudaTimer(clock, device.torch_name)


def on_device(device: Device, tensors: "Sequence[torch.Tensor]") -> "tuple[torch.Tensor, ...]":
    """Return tensors on a device."""
    return tuple(tensor.to(device.torch_name) for tensor in tensors)


def sets_on_device(path: Path, model: "CapturedModel", device: Device) -> "list[tuple[torch.Tensor, ...]]":
    """Read sets of inputs and put them on a device."""
    return [on_device(device, inputs) for inputs in read_sets(path, model)]


def judged(
    candidate: Candidate, model: "CapturedModel", folder: Path, device: Device, objective: Objective
) -> "AccuracyResult":
    """Hold a candidate's answers to the held-out inputs against the reference in ``folder``."""
    from autotune import accuracy

    answers = [
        tuple(tensor.cpu() for tensor in candidate(*on_device(device, inputs)))
        for inputs in read_sets(folder / HELD_OUT, model)
    ]
    references = read_sets(folder / REFERENCE, model, outputs=True)
    names = [spec.name for spec in model.workload.outputs]
    return accuracy.judge(answers, references, names, objective, metric_steps.functions_of(objective))
