"""The steps of a comparison: those of every worker, and rounds of kernels that are timed against each other."""

from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from autotune import registry
from autotune.execute.channel import Channel
from autotune.execute.stages import enter, holding
from autotune.kernels import steps
from autotune.records.configuration import Configuration
from autotune.records.device import Device
from autotune.records.kernel_problem import GemmProblem


def kernel_rounds(request: Mapping[str, Any], channel: Channel) -> dict[str, Any]:
    """Check and time the finalists of problem after problem, alone on the device, telling of each as it is done.

    All samples of a finalist are told in one list, round after round. A finalist that fails takes its problem with it:
    when it was tuned, it passed.
    """
    from autotune.execute.child import explain
    from autotune.kernels.timing import KernelTimer, TimingLimits

    device, folder = Device.from_dict(request["device"]), Path(request["folder"])
    provider = registry.kernels(request["backend"])
    with holding(channel, device, "load", exclusive=True):
        for work in request["work"]:
            problem = GemmProblem.from_dict(work["problem"])
            finalists = [Configuration.from_dict(each) for each in work["finalists"]]
            channel.send({"turn": problem.digest})
            enter(channel, "load")
            try:
                bed = KernelTimer(device, problem, provider.compute, seed=request["seed"], limits=TimingLimits())
                kernels = {each.digest: provider.load(device, problem, each, folder) for each in finalists}
                enter(channel, "check")
                judged = {name: bed.judge(kernel) for name, kernel in kernels.items()}
                failed = {name: failure.as_dict() for name, (_, failure) in judged.items() if failure is not None}
                if not failed:
                    enter(channel, "measure")
                    found, around = bed.rounds(kernels, rounds=request["rounds"], samples=request["samples"])
                    for name, blocks in found.items():
                        told = {"samples_us": list(chain(*blocks)), "conditions": around, "error": judged[name][0]}
                        channel.send({"kernel": {"candidate": f"{problem.digest}/{name}", **told}})
            except Exception as error:  # the worker's border: it is told, and the next problem begins
                explained = explain(error)
                if explained["kind"] == steps.CRASH:
                    raise
                failure = {"stage": "load", "kind": explained["kind"], "detail": explained["detail"]}
                failed = {"": failure}
            for name, failure in failed.items():
                channel.send({"kernel": {"candidate": f"{problem.digest}/{name}", "failure": failure}})
    return {"compared": len(request["work"])}


STEPS = {**steps.STEPS, "kernel_rounds": kernel_rounds}
