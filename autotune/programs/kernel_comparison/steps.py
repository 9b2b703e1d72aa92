"""The steps of a comparison: those of every worker, and rounds of kernels that are timed against each other."""

from collections.abc import Mapping
from itertools import chain

from autotune import registry
from autotune.execute.channel import Channel
from autotune.execute.stages import enter, holding
from autotune.kernels import steps
from autotune.kernels.requests import ProblemFinalists, RoundsRequest


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
                failed = _run(order, work, channel)
            except Exception as error:  # the worker's border: it is sent, and the next problem begins
                explained = explain(error)
                if explained["kind"] == steps.CRASH:
                    raise
                failed = {"": {"stage": "load", "kind": explained["kind"], "detail": explained["detail"]}}
            for name, failure in failed.items():
                channel.send({"kernel": {"candidate": f"{work.problem.digest}/{name}", "failure": failure}})
    return {"compared": len(order.work)}


def _run(order: RoundsRequest, work: ProblemFinalists, channel: Channel) -> dict[str, object]:
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


STEPS = {**steps.STEPS, "kernel_rounds": kernel_rounds}
