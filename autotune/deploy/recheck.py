"""A plan of another device class, judged on this device before it is used: OnMiss, Example, failing."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, get_args

from autotune.deploy.model import SLACK, OptimizedModel
from autotune.errors import RequestError
from autotune.measure.interleaved import interleaved

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from autotune.accuracy import AccuracyResult
    from autotune.records.device import Device
    from autotune.records.objective import Objective
    from autotune.runtime.artifact import ModelAnswer

log = logging.getLogger("autotune")

OnMiss = Literal["error", "fallback", "recheck"]
"""The decision about a request that no plan answers as it stands: an error; the caller's own model, with a warning; or
a plan of another device of the same kind, if it is accurate and faster than the baseline on this one."""

ROUNDS = 9
"""Rounds in which a plan and the model take turns."""


def require_policy(on_miss: str) -> None:
    """Raise RequestError if a policy is none of :data:`OnMiss`."""
    if on_miss not in get_args(OnMiss):
        raise RequestError(
            "on_miss is the policy for a miss", found=repr(on_miss), expected=f"one of {', '.join(get_args(OnMiss))}"
        )


def slower(
    fast: OptimizedModel, example: "Mapping[str, torch.Tensor]", device: "Device",
    baseline: "Callable[[], object] | None" = None,
) -> str:  # fmt: skip
    """Time a plan on this device beside its baseline, alone on the device; returns why it is no gain, or nothing.

    Without ``baseline`` its latency is compared with the one that the baseline had on the device of the plan.
    """
    from autotune.measure.clock import SystemClock
    from autotune.measure.lock import device_lock
    from autotune.measure.paired import RoundFigures
    from autotune.measure.statistics import median
    from autotune.measure.timer import CpuTimer, CudaTimer

    clock = SystemClock()
    timer = CpuTimer(clock) if device.kind == "cpu" else CudaTimer(clock, device.torch_name)
    placed = {name: tensor.to(device.torch_name) for name, tensor in example.items()}
    calls: dict[str, Callable[[], object]] = {"plan": lambda: fast.flat(placed)}
    if baseline is not None:
        calls["baseline"] = baseline
    with device_lock(device.uuid, exclusive=True, purpose="autotune.load"):
        blocks = interleaved(calls, timer, rounds=ROUNDS)
    plan_ms = median([median(block) for block in blocks["plan"]])
    if baseline is None:
        stored_ms = fast.plan.baseline_latency_ms
        log.info("%s: %.4g ms here, the baseline elsewhere %.4g ms", fast.plan.name, plan_ms, stored_ms)
        return "" if plan_ms < stored_ms else f"{plan_ms:.4g} ms here, and its baseline took {stored_ms:.4g} ms"
    log_ratio = RoundFigures(blocks).against("baseline", ["plan"])["plan"].log_ratio
    own_ms = median([median(block) for block in blocks["baseline"]])
    log.info("%s: %.4g ms here, the model itself %.4g ms", fast.plan.name, plan_ms, own_ms)
    return "" if log_ratio < 0 else f"{plan_ms:.4g} ms here, and the model itself takes {own_ms:.4g} ms"


def not_faster(
    fast: OptimizedModel, example: "Mapping[str, torch.Tensor]", device: "Device", module: "torch.nn.Module | None"
) -> str:  # fmt: skip
    """Return why a plan is no gain here over a module, or without one over its stored baseline; empty if it is."""
    return slower(fast, example, device, None if module is None else _baseline(module, example, device))


def failing(
    fast: OptimizedModel, example: "Example", device: "Device", module: "torch.nn.Module | None" = None
) -> str:  # fmt: skip
    """Return why a loaded plan cannot be used on this device: inaccurate, or no faster; empty if it can.

    It is compared with ``module``, or else with the answer that its artifact keeps.
    """
    known = example if module is None else example.answered_by(module)
    verdict = known.verdict(fast.plan.objective, fast.flat(example.inputs))
    return verdict.failure.detail if verdict.failure is not None else not_faster(fast, example.inputs, device, module)


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """The example of an artifact: inputs by name, names of the flat outputs, and the model's answer if it is kept."""

    inputs: "Mapping[str, torch.Tensor]"
    outputs: tuple[str, ...]
    answer: "ModelAnswer | None"

    @classmethod
    def of(cls, artifact: "Path") -> "Example":
        """Read it from the artifact's folder; raises ArtifactError if that is damaged."""
        from autotune.runtime.artifact import read_answer, read_example, read_record

        record = read_record(artifact)
        inputs = zip((spec.name for spec in record.inputs), read_example(artifact), strict=True)
        names = tuple(spec.name for spec in record.outputs)
        return cls(inputs=dict(inputs), outputs=names, answer=read_answer(artifact))

    def verdict(self, objective: "Objective", answered: "Sequence[torch.Tensor]") -> "AccuracyResult":
        """Compare a plan's answer with the model's own, within the objective's limits for one input."""
        from autotune import accuracy
        from autotune.records.trial import Failure

        if self.answer is not None:
            own = self.answer
            return accuracy.judge_one(answered, own.tensors, own.scales, self.outputs, objective, SLACK)
        detail = "the artifact keeps no answer of the model to compare with, because an earlier version made it"
        failure = Failure(stage="check", kind="inaccurate", detail=detail)
        return accuracy.AccuracyResult(accepted=False, failure=failure)

    def answered_by(self, module: "torch.nn.Module") -> "Example":
        """Return the same with the answer of a module itself."""
        from autotune import accuracy
        from autotune.runtime.artifact import ModelAnswer

        tensors = _own(module, self.inputs)
        scales = accuracy.signal_scales([tensors]) if self.answer is None else self.answer.scales
        return replace(self, answer=ModelAnswer(tensors=tensors, scales=scales))


def _own(module: "torch.nn.Module", example: "Mapping[str, torch.Tensor]") -> "tuple[torch.Tensor, ...]":
    """Return the flat answer of a module itself, on its own device."""
    import torch

    from autotune.model.form import flatten

    with torch.no_grad():
        tensors, _ = flatten(_call(module, _on_device_of(module, example)))
    return tuple(tensor.cpu() for tensor in tensors)


def _baseline(
    module: "torch.nn.Module", example: "Mapping[str, torch.Tensor]", device: "Device"
) -> Callable[[], object]:  # fmt: skip
    """Return a call of the module on the device; it is copied if it lies elsewhere."""
    import copy

    import torch

    first = next(iter((*module.parameters(), *module.buffers())), None)
    there = first is None or first.device == torch.device(device.torch_name)
    own = module if there else copy.deepcopy(module).to(device.torch_name)
    inputs = {name: tensor.to(device.torch_name) for name, tensor in example.items()}

    def call() -> object:
        with torch.no_grad():
            return _call(own, inputs)

    return call


def _call(module: "torch.nn.Module", inputs: "Mapping[str, torch.Tensor]") -> object:
    from autotune.model.schema import positional_only

    first = [name for name in positional_only(module.forward) if name in inputs]
    rest = {name: tensor for name, tensor in inputs.items() if name not in first}
    return module(*(inputs[name] for name in first), **rest)


def _on_device_of(
    module: "torch.nn.Module", example: "Mapping[str, torch.Tensor]"
) -> "Mapping[str, torch.Tensor]":  # fmt: skip
    first = next(iter((*module.parameters(), *module.buffers())), None)
    return example if first is None else {name: tensor.to(first.device) for name, tensor in example.items()}
