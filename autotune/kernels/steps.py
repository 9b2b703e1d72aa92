"""Steps of tuned kernels: compile some of them, and check and time others, one after the other on the device.

A kernel may take the process's context on the device with it. So each result is told as soon as it is there, and before
each candidate whose turn it is: the coordinator knows what was at work, and starts again with the rest.
"""

import math
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from autotune import registry
from autotune.execute import steps
from autotune.execute.channel import Channel
from autotune.execute.stages import building, enter, holding
from autotune.records.configuration import Configuration
from autotune.records.device import Device
from autotune.records.kernel_problem import GemmProblem

CRASH = "crash"

COOLS_S = 1.0
"""A device that has been idle for longer is brought to speed again."""


def device_rates(request: Mapping[str, Any], channel: Channel) -> dict[str, Any]:
    """Read how fast a GPU computes and moves bytes; ``None`` if its architecture is not known."""
    from autotune.errors import WorkError
    from autotune.kernels.rates import DeviceRates

    enter(channel, "load")
    try:
        return {"rates": DeviceRates.read(Device.from_dict(request["device"]).torch_name).as_dict()}
    except WorkError as error:
        return {"rates": None, "reason": str(error)}


def compile_kernels(request: Mapping[str, Any], channel: Channel) -> dict[str, Any]:
    """Compile builds into a cache: what became of each, in their order.

    A GPU's kernels are compiled without a lock, beside timings; a CPU that compiles times nothing meanwhile.
    """
    device = Device.from_dict(request["device"])
    with building(channel, device):
        provider = registry.kernels(request["backend"])
        made = provider.compile(
            device, GemmProblem.from_dict(request["problem"]),
            [Configuration.from_dict(build) for build in request["builds"]], Path(request["folder"]),
        )  # fmt: skip
    return {"made": [asdict(one) for one in made]}


def time_kernels(request: Mapping[str, Any], channel: Channel) -> dict[str, Any]:
    """Load, check and time candidates of one problem, alone on the device, telling of each as soon as it is done.

    Then it is ready for the next request, until it is told to end: to import, and to wake a device, takes longer than
    most problems do. ``best_us`` is the fastest time so far, ``limits`` are
    :class:`~autotune.kernels.timing.TimingLimits`. What a candidate raises is its own failure, and the next one
    begins, unless it took the context on the device with it.
    """
    device = Device.from_dict(request["device"])
    timed, last_s = 0, -math.inf
    while True:
        with holding(channel, device, "load", exclusive=True):
            _time_one(request, device, channel, warm=time.monotonic() - last_s < COOLS_S)
        timed, last_s = timed + len(request["candidates"]), time.monotonic()
        _leave(device)
        channel.send({"ready": True})
        told = channel.receive()
        if not told or "request" not in told:
            return {"timed": timed}
        request = told["request"]


def _time_one(request: Mapping[str, Any], device: Device, channel: Channel, *, warm: bool) -> None:
    from autotune.execute.child import explain
    from autotune.kernels.timing import KernelTimer, TimingLimits

    problem, limits = GemmProblem.from_dict(request["problem"]), TimingLimits(**request["limits"])
    provider, folder = registry.kernels(request["backend"]), Path(request["folder"])
    best_us: float | None = request["best_us"]
    bed = KernelTimer(device, problem, provider.compute, seed=request["seed"], limits=limits, warm=warm)
    for candidate in map(Configuration.from_dict, request["candidates"]):
        channel.send({"turn": candidate.digest})
        enter(channel, "load")
        stage = "load"

        def going(to: str) -> None:
            nonlocal stage
            stage = to
            enter(channel, to)

        told: dict[str, Any] = {"candidate": candidate.digest}
        try:
            kernel = provider.load(device, problem, candidate, folder)
            result = bed.judge_and_time(kernel, best_us, going)
            told |= result.as_dict()
            if result.failure is None:
                best_us = min(filter(None, (best_us, result.median_us)))
        except Exception as error:  # the worker's border: it is told, and recorded as the candidate's failure
            explained = explain(error)
            if explained["kind"] == CRASH:
                raise
            told["failure"] = {"stage": stage, "kind": explained["kind"], "detail": explained["detail"]}
        channel.send({"kernel": told})


def _leave(device: Device) -> None:
    """Return the device's memory back, for whoever holds the device next."""
    if device.kind == "cuda":
        import torch

        torch.cuda.empty_cache()


STEPS = {
    **steps.STEPS,
    "compile_kernels": compile_kernels,
    "time_kernels": time_kernels,
    "device_rates": device_rates,
}
"""The steps of every worker, and those of tuned kernels."""
