"""A module in memory, captured in this process and written only if a worker needs it: Prepared."""

import copy
import hashlib
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from autotune.errors import ModelError
from autotune.records.device import Device, slug
from autotune.records.identity import PlanKey
from autotune.study.request import StudyRequest

if TYPE_CHECKING:
    import torch

    from autotune.model.capture import Captured

    Inputs = dict[str, torch.Tensor]

log = logging.getLogger("autotune")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A captured module with the sets of inputs for the gate and for timing.

    ``module`` is on the CPU. ``treatments`` describes for each input how further sets were made from the caller's.
    ``seconds`` has the time of each step: ``capture`` and ``weights`` (their fingerprint).
    """

    module: "torch.nn.Module"
    captured: "Captured"
    device: Device
    name: str
    batch: int
    seed: int
    timing: "tuple[Inputs, ...]"
    held_out: "tuple[Inputs, ...]"
    treatments: Mapping[str, str] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def own_file(self) -> bool:
        """True if the module itself can be written as a model file: it is compiled TorchScript."""
        from autotune.model import torchscript

        return torchscript.is_scripted(self.module)

    @property
    def example(self) -> "Inputs":
        """The first set of inputs, by name in the order of the forward's parameters."""
        return self.timing[0]

    def key(self, request: StudyRequest) -> PlanKey:
        """Return the key of plans for this module."""
        return PlanKey(
            structure=self.captured.workload.structure,
            form=self.captured.form.digest,
            device_class=self.device.device_class,
            objective=request.objective,
            serve_as=request.serve_as,
        )

    def write(self, folder: Path, *, factory: str | None = None, seed: int | None = None) -> Path:
        """Write the files for workers into a folder; a ``factory`` makes the module there, which gets these weights."""
        from autotune.execute import input_sets
        from autotune.execute.input_sets import write_sets
        from autotune.model import source

        own = self.module if factory is not None or self.own_file else None
        source.write(
            folder, self.captured, self.example, factory=None if self.own_file else factory,
            seed=self.seed if seed is None else seed, module=own, treatments=self.treatments,
        )  # fmt: skip
        write_sets(folder / input_sets.TIMING, list(self.timing))
        write_sets(folder / input_sets.HELD_OUT, list(self.held_out))
        return folder


def in_memory(model: object, device: str | None) -> "tuple[torch.nn.Module, Device]":
    """Return the caller's module, and the device of this name, by default that of the module.

    Raises ModelError if it is no module that can be tuned, DeviceError if the device is not there.
    """
    from autotune.model.factory import usable
    from autotune.runtime import discovery

    module = usable(model, "autotune was given")
    return module, discovery.find(device or _place(module))


def _place(module: "torch.nn.Module") -> str:
    device = next((tensor.device for tensor in (*module.parameters(), *module.buffers())), None)
    return "cpu" if device is None or device.type in ("cpu", "meta") else f"cuda:{device.index or 0}"


def prepare(module: "torch.nn.Module", inputs: object, *, device: Device, name: str | None, seed: int) -> Prepared:
    """Capture a module on the inputs of one call, or on a list of several such sets, and leave both as they were.

    Raises ModelError if it cannot be captured, if the sets do not fit one another, or if there is a single set in which
    no input can be varied.
    """
    import torch

    from autotune.model.capture import capture
    from autotune.model.untouched import random_state

    sets = _sets(module, inputs)
    begin = time.perf_counter()
    with random_state(), torch.device("cpu"):  # whatever the caller's default device is
        timing, held_out, treatments = _shares(sets, seed)
        on_cpu = module if _place(module) == "cpu" else _copied(module)
        kind = getattr(module, "original_name", type(module).__name__)  # of a compiled module, the class it was
        own_name = name or slug(kind) or "model"
        batch = next((tensor.shape[0] for tensor in sets[0].values() if tensor.dim()), 1)
        captured = capture(own_name, max(1, batch), on_cpu, sets[0], held_out[0])
    for note in captured.notes:
        log.warning("%s: %s", own_name, note)
    seconds = {"capture": time.perf_counter() - begin - captured.weights_s, "weights": captured.weights_s}
    return Prepared(
        module=on_cpu, captured=captured, device=device, name=own_name, batch=captured.workload.batch, seed=seed,
        timing=tuple(timing), held_out=tuple(held_out), treatments=treatments, seconds=seconds,
    )  # fmt: skip


def _sets(module: "torch.nn.Module", inputs: object) -> "list[Inputs]":
    """Return copies of the sets of inputs, by name and on the CPU."""
    from autotune.model.schema import bind

    several: list[object] = inputs if isinstance(inputs, list) else [inputs]
    if not several:
        raise ModelError("a model is captured on inputs", found="an empty list", expected="at least one set of inputs")
    try:
        sets = [bind(module.forward, arguments) for arguments in several]
    except ModelError as error:
        if not isinstance(inputs, list) or isinstance(inputs[0], Mapping | tuple):
            raise
        raise ModelError(
            f"a list holds several sets of inputs: {error.asked}", found=error.found,
            expected=f"{error.expected}; the arguments of one call as a tuple or a dict",
        ) from error  # fmt: skip
    first = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in sets[0].items()}
    for number, tensors in enumerate(sets[1:], start=2):
        other = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
        for name in dict.fromkeys((*first, *other)):
            if first.get(name) != other.get(name):
                raise ModelError(
                    f"the sets of inputs differ in input {name}",
                    found=f"{_shown(first.get(name))} in the first, {_shown(other.get(name))} in set {number}",
                    expected="one name, shape and dtype in all of them; a plan is for one shape",
                )
    return [{name: tensor.detach().cpu().clone() for name, tensor in tensors.items()} for tensors in sets]


def _shown(kind: "tuple[tuple[int, ...], torch.dtype] | None") -> str:
    return "nothing" if kind is None else f"{str(kind[1]).removeprefix('torch.')}{list(kind[0])}"


def _shares(sets: "Sequence[Inputs]", seed: int) -> "tuple[list[Inputs], list[Inputs], dict[str, str]]":
    """Return the sets to time, the sets held out for the gate, and how each input was varied if the sets were few."""
    from autotune.execute.input_sets import HELD_OUT_SETS, TIMING_SETS
    from autotune.model.inputs import perturbed, treatments

    if len(sets) >= HELD_OUT_SETS:
        return list(sets[:TIMING_SETS]), [*sets[1:], sets[0]][-HELD_OUT_SETS:], {}
    by_input = treatments(sets[0])
    if len(sets) == 1:
        if not any(treatment.is_varied for treatment in by_input.values()):
            raise ModelError(
                "no input of the model can be varied, so a candidate that ignores its inputs would not be noticed",
                found="; ".join(f"input {name} is {treatment.text}" for name, treatment in by_input.items()),
                expected="at least one input of several values",
                run="autotune.optimize(model, [inputs, …]) with several sets of inputs that differ",
            )
        timing = [sets[0], *perturbed(sets[0], TIMING_SETS - 1, seed)]
        texts = {name: treatment.text for name, treatment in by_input.items()}
        return timing, perturbed(sets[0], HELD_OUT_SETS, seed + 1), texts
    timing = [sets[index % len(sets)] for index in range(TIMING_SETS)]
    missing = HELD_OUT_SETS - len(sets)
    variants = [perturbed(sets[index % len(sets)], 1, seed + 1 + index)[0] for index in range(missing)]
    share = f"{len(sets)} sets as given, and {missing} variants"
    texts = {name: f"{share}: {treatment.text}" for name, treatment in by_input.items()}
    return timing, [*sets[1:], sets[0], *variants], texts


def _copied(module: "torch.nn.Module") -> "torch.nn.Module":
    """Return a copy on the CPU of a module that is on a GPU."""
    from autotune.model import torchscript

    if torchscript.is_scripted(module):
        return torchscript.copied(module)
    try:
        return copy.deepcopy(module).cpu()
    except Exception as error:
        raise ModelError(
            "the model is on a GPU, is captured on the CPU, and cannot be copied there",
            found=f"{type(error).__name__}: {error}".splitlines()[0],
            expected="a module that copy.deepcopy copies; one whose weights are computed from others in a hook (weight "
            "norm) does not after a training step",
            run="torch.nn.utils.remove_weight_norm or parametrize.remove_parametrizations, or model.cpu()",
        ) from error


def rebuild_key(prepared: Prepared, plan_uid: str) -> str:
    """Return a key that is the same for processes that need the same plan built again for the same module."""
    workload = prepared.captured.workload
    return hashlib.sha256(f"{plan_uid}/{workload.weights}/{prepared.captured.form.digest}".encode()).hexdigest()
