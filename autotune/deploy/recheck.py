"""A plan of another device class, judged on this device before it is used: OnMiss, failing."""

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Literal, get_args

from autotune.deploy.model import SLACK, OptimizedModel
from autotune.errors import RequestError
from autotune.measure.interleaved import interleaved

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from autotune.records.device import Device
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


def inaccurate(
    fast: OptimizedModel, example: "Mapping[str, torch.Tensor]", answer: "ModelAnswer | None",
    module: "torch.nn.Module | None" = None,
) -> str:  # fmt: skip
    """Compare a plan's answer to its example with the model's; returns the difference, empty if it is accurate.

    The model's answer is computed by ``module``, or else the one that the artifact keeps.
    """
    from autotune import accuracy

    tensors, scales, names = None if answer is None else answer.tensors, None if answer is None else answer.scales, None
    if module is not None:
        tensors, names = _own(module, example)
        scales = scales or accuracy.signal_scales([tuple(tensors)])
    if tensors is None or scales is None:
        return "its artifact keeps no answer of the model to compare with, because an earlier version made it"
    answered = fast.flat(example)
    labels = names or tuple(str(at) for at in range(len(tensors)))
    verdict = accuracy.judge_one(answered, tensors, scales, labels, fast.plan.objective, SLACK)
    return "" if verdict.failure is None else verdict.failure.detail


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
    fast: OptimizedModel, example: "Mapping[str, torch.Tensor]", answer: "ModelAnswer | None", device: "Device",
    module: "torch.nn.Module | None" = None,
) -> str:  # fmt: skip
    """Return why a loaded plan cannot be used on this device: inaccurate, or no faster; empty if it can."""
    return inaccurate(fast, example, answer, module) or not_faster(fast, example, device, module)


def example_and_answer(artifact: "Path") -> "tuple[Mapping[str, torch.Tensor], ModelAnswer | None]":
    """Return the example inputs of an artifact by name, and the model's own answer if the artifact keeps it."""
    from autotune.runtime.artifact import read_answer, read_example, read_record

    names = [spec.name for spec in read_record(artifact).inputs]
    return dict(zip(names, read_example(artifact), strict=True)), read_answer(artifact)


def _own(
    module: "torch.nn.Module", example: "Mapping[str, torch.Tensor]"
) -> "tuple[tuple[torch.Tensor, ...], tuple[str, ...]]":  # fmt: skip
    """Return the answer of a module itself on its own device, with the names of its tensors."""
    import torch

    from autotune.model.form import flatten

    with torch.no_grad():
        tensors, form = flatten(_call(module, _on_device_of(module, example)))
    return tuple(tensor.cpu() for tensor in tensors), form.names


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
