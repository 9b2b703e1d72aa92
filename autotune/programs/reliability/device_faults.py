"""Faults of candidates on a real GPU, each followed by the work of the next candidate.

A candidate that has lost its context, that holds all memory, or that dies while its kernel runs may cost the others
neither memory nor a right result.
"""

import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypedDict

from autotune.execute.channel import Channel
from autotune.execute.device_memory import LEFT_OVER_BYTES
from autotune.execute.server import WorkerServer
from autotune.measure.nvml import open_nvml
from autotune.programs.check_result import CheckResult
from autotune.programs.reliability.campaign import Campaign
from autotune.records.device import Device

TIMES, TIMES_QUICK = 5, 1
TIMEOUT_S = 15.0
"""The limit of the candidate that hangs: it must start CUDA first, which takes some seconds."""
PATIENCE_S = 120.0
GRACE_S = 1.0
"""The time that the driver may take after a candidate's end to free its memory."""
SPIN_CYCLES = 2**40
"""About ten minutes of any GPU."""
SIZE = 512

KINDS: Mapping[str, tuple[str, str]] = {
    "assertion": ("crash", "context on the device"),
    "full": ("out_of_memory", "device memory"),
    "hang": ("timeout", "no answer"),
    "death": ("crash", "SIGSEGV"),
}
"""The kind of failure as which each fault has to be reported, and words of its detail."""


def assertion(device: str) -> None:
    """Fail an assertion in a kernel, after which the context is lost."""
    import torch

    torch.zeros(4, device=device)[torch.full((4,), 1000, device=device)].cpu()


def full(device: str) -> None:
    """Take the device's memory piece by piece until there is none."""
    import torch

    piece = torch.cuda.get_device_properties(device).total_memory // 8
    pieces = []
    while True:
        pieces.append(torch.ones(piece, dtype=torch.uint8, device=device))


def hang(device: str) -> None:
    """Wait for a kernel that does not end."""
    import torch

    torch.cuda._sleep(SPIN_CYCLES)  # type: ignore[no-untyped-call]
    torch.cuda.synchronize(device)


def death(device: str) -> None:
    """Die while a kernel runs."""
    import torch

    torch.ones(2**28, device=device)
    torch.cuda._sleep(SPIN_CYCLES)  # type: ignore[no-untyped-call]
    os.kill(os.getpid(), signal.SIGSEGV)


WAYS: Mapping[str, Callable[[str], None]] = {"assertion": assertion, "full": full, "hang": hang, "death": death}


class FaultRequest(TypedDict):
    """The torch name of the device, and the fault (not used by the step that works)."""

    device: str
    fault: str


def _misbehave(request: FaultRequest, channel: Channel) -> dict[str, object]:
    import torch

    torch.cuda.set_device(request["device"])
    WAYS[request["fault"]](request["device"])
    return {"ended": "well"}


def _work(request: FaultRequest, channel: Channel) -> dict[str, object]:
    """Multiply two matrices of small whole numbers, whose product is the same on a GPU as on a CPU."""
    import torch

    left, right = (torch.randint(-8, 8, (SIZE, SIZE), dtype=torch.float32) for _ in range(2))
    product = (left.to(request["device"]) @ right.to(request["device"])).cpu()
    return {"right": bool(torch.equal(product, left @ right))}


STEPS: Mapping[str, Callable[[FaultRequest, Channel], dict[str, object]]] = {
    "misbehave": _misbehave,
    "work": _work,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceFault:
    """One fault: the kind it was reported as, the memory it left in use, and if the next candidate was correct."""

    name: str
    reported: str | None
    detail: str
    seconds: float
    left_bytes: int
    next_right: bool

    @property
    def right(self) -> bool:
        """Whether it was reported as expected."""
        kind, words = KINDS[self.name]
        return self.reported == kind and words in self.detail


def check(campaign: Campaign) -> list[CheckResult]:
    """Every fault affects its own candidate only."""
    folder = campaign.folder / "device-faults"
    folder.mkdir()
    with WorkerServer(folder, steps=__name__) as server:
        server.preload(["torch"])
        server.run("work", {"device": campaign.device.torch_name}, timeout_s=PATIENCE_S)
        times = campaign.pick(TIMES, TIMES_QUICK)
        return outcomes([let_loose(server, campaign.device, name) for _ in range(times) for name in KINDS])


def let_loose(server: WorkerServer, device: Device, name: str) -> DeviceFault:
    """Run one candidate that misbehaves on the device, and then one that works."""
    nvml = open_nvml(device)
    before, begin = nvml.memory_used_bytes(), time.monotonic()
    request = {"device": device.torch_name, "fault": name}
    result = server.run("misbehave", request, timeout_s=TIMEOUT_S if name == "hang" else PATIENCE_S)
    seconds, deadline = time.monotonic() - begin, time.monotonic() + GRACE_S
    while (left := nvml.memory_used_bytes() - before) > LEFT_OVER_BYTES and time.monotonic() < deadline:
        time.sleep(0.01)
    worked = server.run("work", {"device": device.torch_name}, timeout_s=PATIENCE_S)
    reported, detail = (result.failure.kind, result.failure.detail) if result.failure else (None, "")
    return DeviceFault(
        name=name, reported=reported, detail=detail, seconds=seconds, left_bytes=left,
        next_right=worked.value == {"right": True},
    )  # fmt: skip


def outcomes(loose: list[DeviceFault]) -> list[CheckResult]:
    """Return the rows of the table that follow from the faults."""
    named, working = sum(fault.right for fault in loose), sum(fault.next_right for fault in loose)
    most = max(fault.left_bytes for fault in loose)
    wrong = [f"{fault.name} reported as {fault.reported}: {fault.detail}" for fault in loose if not fault.right]
    slowest = {name: round(max(fault.seconds for fault in loose if fault.name == name), 2) for name in KINDS}
    return [
        CheckResult(
            check="faults on the GPU named right", figure=f"{named} of {len(loose)}", limit="all",
            passed=named == len(loose), raw={"wrong": wrong, "slowest_s": slowest},
        ),
        CheckResult(
            check="right results of the candidate after it", figure=f"{working} of {len(loose)}", limit="all",
            passed=working == len(loose),
        ),
        CheckResult(
            check="device memory taken 1 s after a fault", figure=f"{most / 2**20:.0f} MiB more than before at most",
            limit=f"<= {LEFT_OVER_BYTES // 2**20} MiB", passed=most <= LEFT_OVER_BYTES,
        ),
    ]  # fmt: skip
