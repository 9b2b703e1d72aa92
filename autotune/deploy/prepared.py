"""A module in memory as a request: captured in this process, written down only if a worker needs it."""

import copy
import hashlib
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    """A captured module with the sets of inputs that it is judged and timed on.

    ``module`` is on the CPU. ``treatments`` say by input how other sets were made of what the caller gave.
    ``seconds`` holds what took how long: ``capture`` and ``weights`` (their fingerprint).
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
    def example(self) -> "Inputs":
        """The first set of inputs, by name in the order of the forward's parameters."""
        return self.timing[0]

    def key(self, request: StudyRequest) -> PlanKey:
        """What a plan for this module is found by."""
        return PlanKey(
            structure=self.captured.workload.structure,
            form=self.captured.form.digest,
            device_class=self.device.device_class,
            objective=request.objective,
            serve_as=request.serve_as,
        )

    def write(self, folder: Path, *, factory: str | None = None, seed: int | None = None) -> Path:
        """Write all that workers need into a folder; ``factory`` makes such a module, which then gets these weights."""
        from autotune.execute import input_sets
        from autotune.execute.input_sets import write_sets
        from autotune.model import source

        source.write(
            folder, self.captured, self.example, factory=factory, seed=self.seed if seed is None else seed,
            module=self.module if factory is not None else None, treatments=self.treatments,
        )  # fmt: skip
        write_sets(folder / input_sets.TIMING, list(self.timing))
        write_sets(folder / input_sets.HELD_OUT, list(self.held_out))
        return folder


def in_memory(model: "torch.nn.Module", device: str | None) -> "tuple[torch.nn.Module, Device]":
    """Return the module that a caller handed over, and the device asked for or that it is on.

    Raises ModelError if it is none that can be tuned, DeviceError if the device is not there.
    """
    from autotune.model.factory import usable
    from autotune.runtime import discovery

    module = usable(model, "autotune was given")
    return module, discovery.find(device or _place(module))


def _place(module: "torch.nn.Module") -> str:
    own = next((one.device for one in (*module.parameters(), *module.buffers())), None)
    return "cpu" if own is None or own.type in ("cpu", "meta") else f"cuda:{own.index or 0}"


def prepare(module: "torch.nn.Module", inputs: Any, *, device: Device, name: str | None, seed: int) -> Prepared:
    """Capture a module on the inputs of one call, or on a list of several such sets, and leave both as they were.

    Raises ModelError if it cannot be captured, if the sets do not fit one another, or if there is one set of which no
    input can be varied.
    """
    import torch

    from autotune.model.capture import capture
    from autotune.model.untouched import random_state

    sets = _sets(module, inputs)
    begin = time.perf_counter()
    with random_state(), torch.device("cpu"):  # whatever the caller's default device is
        timing, held_out, treatments = _shared_out(sets, seed)
        on_cpu = module if _place(module) == "cpu" else _copied(module)
        named = name or slug(type(module).__name__) or "model"
        batch = next((tensor.shape[0] for tensor in sets[0].values() if tensor.dim()), 1)
        captured = capture(named, max(1, batch), on_cpu, sets[0], held_out[0])
    for note in captured.notes:
        log.warning("%s: %s", named, note)
    seconds = {"capture": time.perf_counter() - begin - captured.weights_s, "weights": captured.weights_s}
    return Prepared(
        module=on_cpu, captured=captured, device=device, name=named, batch=captured.workload.batch, seed=seed,
        timing=tuple(timing), held_out=tuple(held_out), treatments=treatments, seconds=seconds,
    )  # fmt: skip


def _sets(module: "torch.nn.Module", inputs: Any) -> "list[Inputs]":
    """The sets of inputs by name, on the CPU, as copies of their own."""
    from autotune.model.schema import bind

    given = inputs if isinstance(inputs, list) else [inputs]
    if not given:
        raise ModelError("a model is captured on inputs", found="an empty list", expected="at least one set of inputs")
    try:
        sets = [bind(module.forward, one) for one in given]
    except ModelError as error:
        if not isinstance(inputs, list) or isinstance(inputs[0], Mapping | tuple):
            raise
        raise ModelError(
            f"a list holds several sets of inputs: {error.asked}", found=error.found,
            expected=f"{error.expected}; the arguments of one call as a tuple or a dict",
        ) from error  # fmt: skip
    first = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in sets[0].items()}
    for number, one in enumerate(sets[1:], start=2):
        other = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in one.items()}
        for name in dict.fromkeys((*first, *other)):
            if first.get(name) != other.get(name):
                raise ModelError(
                    f"the sets of inputs differ in input {name}",
                    found=f"{_shown(first.get(name))} in the first, {_shown(other.get(name))} in set {number}",
                    expected="one name, shape and dtype in all of them; a plan is for one shape",
                )
    return [{name: tensor.detach().cpu().clone() for name, tensor in one.items()} for one in sets]


def _shown(found: Any) -> str:
    return "nothing" if found is None else f"{str(found[1]).removeprefix('torch.')}{list(found[0])}"


def _shared_out(sets: "Sequence[Inputs]", seed: int) -> "tuple[list[Inputs], list[Inputs], dict[str, str]]":
    """Sets to time and sets held out for the gate: those given, as they are, and variants if they are few."""
    from autotune.execute.input_sets import HELD_OUT_SETS, TIMING_SETS
    from autotune.model.inputs import perturbed, treatments

    if len(sets) >= HELD_OUT_SETS:
        return list(sets[:TIMING_SETS]), [*sets[1:], sets[0]][-HELD_OUT_SETS:], {}
    done = treatments(sets[0])
    if len(sets) == 1:
        if not any(how.is_varied for how in done.values()):
            raise ModelError(
                "no input of the model can be varied, so no candidate could be told from one that ignores its inputs",
                found="; ".join(f"input {name} is {how.text}" for name, how in done.items()),
                expected="at least one input of several values",
                run="autotune.optimize(model, [inputs, …]) with several sets of inputs that differ",
            )
        timing = [sets[0], *perturbed(sets[0], TIMING_SETS - 1, seed)]
        return timing, perturbed(sets[0], HELD_OUT_SETS, seed + 1), {name: how.text for name, how in done.items()}
    timing = [sets[at % len(sets)] for at in range(TIMING_SETS)]
    more = HELD_OUT_SETS - len(sets)
    variants = [perturbed(sets[at % len(sets)], 1, seed + 1 + at)[0] for at in range(more)]
    noted = {name: f"{len(sets)} sets as given, and {more} variants: {how.text}" for name, how in done.items()}
    return timing, [*sets[1:], sets[0], *variants], noted


def _copied(module: "torch.nn.Module") -> "torch.nn.Module":
    """A copy on the CPU of a module that is on a GPU."""
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
    """What two processes share that need the same plan built again for the same module."""
    workload = prepared.captured.workload
    return hashlib.sha256(f"{plan_uid}/{workload.weights}/{prepared.captured.form.digest}".encode()).hexdigest()
