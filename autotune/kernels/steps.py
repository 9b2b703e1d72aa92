"""Steps of tuned kernels: compile some, check and time others one by one, and time the best against each other.

A kernel that crashes may destroy the process's context on the device. So each result is sent as soon as it is there,
and each candidate is announced before it runs: the coordinator knows which one was running, and continues with the
rest.
"""

import math
import time
from collections.abc import Mapping
from dataclasses import asdict
from itertools import chain

from autotune import registry
from autotune.execute import steps
from autotune.execute.channel import Channel
from autotune.execute.stages import building, enter, holding
from autotune.kernels.requests import CompileRequest, ProblemFinalists, RatesRequest, RoundsRequest, TimeRequest

CRASH = "crash"

COOLS_S = 1.0
"""A device that has been idle for longer is brought to speed again."""

TURN_S = 1.0
"""After so long a turn on the device ends with its session, which takes about a second: candidates wait meanwhile."""

NEXT_S = 0.3
"""So long a turn is kept for the next order: the coordinator chooses it by the results of the last one."""


def device_rates(request: Mapping[str, object], channel: Channel) -> dict[str, object]:
    """Read the rates of a GPU (:class:`RatesRequest`); ``None`` if its architecture is not known."""
    from autotune.errors import WorkError
    from autotune.kernels.rates import DeviceRates

    enter(channel, "load")
    try:
        return {"rates": DeviceRates.read(RatesRequest.from_dict(request).device.torch_name).as_dict()}
    except WorkError as error:
        return {"rates": None, "reason": str(error)}


def compile_kernels(request: Mapping[str, object], channel: Channel) -> dict[str, object]:
    """Compile builds into a cache (:class:`CompileRequest`); returns their results in order.

    A GPU's kernels are compiled without a lock, beside timings; on a CPU nothing is timed meanwhile.
    """
    order = CompileRequest.from_dict(request)
    with building(channel, order.device):
        provider = registry.kernels(order.backend)
        results = provider.compile(order.device, order.problem, order.builds, order.folder)
    return {"made": [asdict(result) for result in results]}


def time_kernels(request: Mapping[str, object], channel: Channel) -> dict[str, object]:
    """Load, check and time candidates (:class:`TimeRequest`), alone on the device; sends each result at once.

    Then it waits for the next request or the order to end: importing, and waking a device, take longer than most
    problems. Requests that follow at once share a turn of :data:`TURN_S`: a study times its models in turns as well. An
    exception of a candidate is its own failure, and the next candidate begins, unless the context on the device is
    lost.
    """
    order: TimeRequest | None = TimeRequest.from_dict(request)
    timed, last_s = 0, -math.inf
    while order is not None:
        device = order.device
        with holding(channel, device, "load", exclusive=True):
            begin_s, answer = time.monotonic(), None
            while order is not None:
                _time(order, channel, warm=time.monotonic() - last_s < COOLS_S)
                timed, last_s = timed + len(order.candidates), time.monotonic()
                channel.send({"ready": True})
                answer = channel.receive(NEXT_S) if last_s - begin_s < TURN_S else None
                order = _next_order(answer)
                if order is not None:
                    enter(channel, "load")
            if device.kind == "cuda":
                _release_memory()
        order = _next_order(channel.receive()) if answer is None else None
    return {"timed": timed}


def _next_order(answer: Mapping[str, object] | None) -> TimeRequest | None:
    """Return the request of an answer, ``None`` if it has none."""
    request = (answer or {}).get("request")
    return TimeRequest.from_dict(request) if isinstance(request, Mapping) else None


def _time(order: TimeRequest, channel: Channel, *, warm: bool) -> None:
    from autotune.execute.child import explain
    from autotune.kernels.timing import KernelTimer

    device, problem, best_us = order.device, order.problem, order.best_us
    provider = registry.kernels(order.backend)
    timer = KernelTimer(device, problem, provider.compute, seed=order.seed, limits=order.limits, warm=warm)
    for candidate in order.candidates:
        channel.send({"turn": candidate.digest})
        enter(channel, "load")
        stage = "load"

        def going(to: str) -> None:
            nonlocal stage
            stage = to
            enter(channel, to)

        message: dict[str, object] = {"candidate": candidate.digest}
        try:
            kernel = provider.load(device, problem, candidate, order.folder)
            result = timer.judge_and_time(kernel, best_us, going)
            message |= result.as_dict()
            if result.failure is None:
                best_us = min(filter(None, (best_us, result.median_us)))
        except Exception as error:  # the worker's border: it is sent, and recorded as the candidate's failure
            explained = explain(error)
            if explained["kind"] == CRASH:
                raise
            message["failure"] = {"stage": stage, "kind": explained["kind"], "detail": explained["detail"]}
        channel.send({"kernel": message})


def kernel_rounds(request: Mapping[str, object], channel: Channel) -> dict[str, object]:
    """Check and time finalists, problem by problem, alone on the device; sends each result at once.

    A finalist's samples of all rounds are sent as one list, round by round. If a finalist fails, its problem fails: it
    passed when it was tuned.
    """
    from autotune.execute.child import explain

    order = RoundsRequest.from_dict(request)
    with holding(channel, order.device, "load", exclusive=True):
        for work in order.work:
            channel.send({"turn": work.problem.digest})
            enter(channel, "load")
            try:
                failed = _compare(order, work, channel)
            except Exception as error:  # the worker's border: it is sent, and the next problem begins
                explained = explain(error)
                if explained["kind"] == CRASH:
                    raise
                failed = {"": {"stage": "load", "kind": explained["kind"], "detail": explained["detail"]}}
            for name, failure in failed.items():
                channel.send({"kernel": {"candidate": f"{work.problem.digest}/{name}", "failure": failure}})
    return {"compared": len(order.work)}


def _compare(order: RoundsRequest, work: ProblemFinalists, channel: Channel) -> dict[str, object]:
    """Check the finalists of a problem and, unless one fails, time them; returns the failures by finalist."""
    from autotune.kernels.timing import KernelTimer, TimingLimits

    problem, provider = work.problem, registry.kernels(order.backend)
    timer = KernelTimer(order.device, problem, provider.compute, seed=order.seed, limits=TimingLimits())
    kernels = {
        finalist.digest: provider.load(order.device, problem, finalist, order.folder) for finalist in work.finalists
    }
    enter(channel, "check")
    judged = {name: timer.judge(kernel) for name, kernel in kernels.items()}
    failed: dict[str, object] = {
        name: failure.as_dict() for name, (_, failure) in judged.items() if failure is not None
    }
    if failed:
        return failed
    enter(channel, "measure")
    blocks_us, conditions = timer.rounds(kernels, rounds=order.rounds, samples=order.samples)
    for name, blocks in blocks_us.items():
        result = {"samples_us": list(chain(*blocks)), "conditions": conditions, "error": judged[name][0]}
        channel.send({"kernel": {"candidate": f"{problem.digest}/{name}", **result}})
    return {}


def _release_memory() -> None:
    """Free the device's memory for the next process that holds the device."""
    import torch

    torch.cuda.empty_cache()


STEPS = {
    **steps.STEPS,
    "compile_kernels": compile_kernels,
    "time_kernels": time_kernels,
    "kernel_rounds": kernel_rounds,
    "device_rates": device_rates,
}
"""The steps of every worker, and those of tuned kernels."""
