"""Faults of candidates that a study must survive: fourteen kinds, many times each, in real workers."""

import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from autotune.execute.limits import most_processes
from autotune.execute.server import WorkerServer
from autotune.programs.check_result import CheckResult
from autotune.programs.reliability.campaign import Campaign
from autotune.testing import misbehaviour

TIMES, TIMES_QUICK = 20, 1
TIMEOUT_S = 0.5
"""The limit of the candidates that hang; all others have enough time."""
PATIENCE_S = 60.0
GRACE_S = 1.0
"""The time after its end in which processes of a candidate may still run; any later one is an orphan."""
MEMORY_BYTES = most_processes() * 2**21
"""A step without libraries uses about 25 MiB; each of its forks, up to the limit, uses less than 1 MiB."""

KINDS: Mapping[str, tuple[str | None, str]] = {
    "error": ("error", "on purpose"),
    "segfault": ("crash", "SIGSEGV"),
    "abort": ("crash", "SIGABRT"),
    "exit": ("protocol", "code 3"),
    "hang": ("timeout", "no answer"),
    "stubborn": ("timeout", "no answer"),
    "orphan": (None, ""),
    "growth": ("out_of_memory", "host memory"),
    "fork_bomb": ("out_of_memory", "host processes"),
    "file": ("error", "File too large"),
    "descriptors": ("error", "Too many open files"),
    "log_flood": ("log_flood", "printed"),
    "garbage": ("protocol", "no message of ours"),
    "forged": ("protocol", "another step"),
}
"""The kind of failure as which each fault has to be reported, and words of its detail; ``None``: the step succeeded."""

_COORDINATOR = """
import sys, time
from pathlib import Path
from autotune.execute.server import WorkerServer
from autotune.testing import misbehaviour

folder = Path(sys.argv[1])
server = WorkerServer(folder, steps=misbehaviour.__name__)
for name in ("stubborn", "stubborn"):
    server.start("misbehave", {"folder": str(folder), "fault": name})
while len(misbehaviour.started(folder)) < 4:
    time.sleep(0.01)
print("ready", flush=True)
time.sleep(600)
"""
"""A coordinator of two candidates that ignore SIGTERM, as does a child of each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One fault: the kind it was reported as, the number of its processes, and the number of those it left behind."""

    name: str
    reported: str | None
    detail: str
    seconds: float
    clean_s: float
    processes: int
    orphans: int

    @property
    def right(self) -> bool:
        """Whether it was reported as expected."""
        kind, words = KINDS[self.name]
        return self.reported == kind and words in self.detail


def faults(campaign: Campaign) -> list[CheckResult]:
    """Run every fault, one after the other in one server."""
    times = campaign.pick(TIMES, TIMES_QUICK)
    folder = campaign.folder / "faults"
    folder.mkdir()
    with WorkerServer(folder, memory_limit_bytes=MEMORY_BYTES, steps=misbehaviour.__name__) as server:
        loose = [let_loose(server, folder / f"{name}-{turn}", name) for turn in range(times) for name in KINDS]
        survived = server.run("misbehave", _request(folder, "orphan"), timeout_s=PATIENCE_S).failure is None
    return outcomes(loose, survived)


def let_loose(server: WorkerServer, folder: Path, name: str) -> Fault:
    """Run one candidate that misbehaves, and wait until nothing of it is left."""
    folder.mkdir()
    timeout_s = TIMEOUT_S if KINDS[name][0] == "timeout" else PATIENCE_S
    begin = time.monotonic()
    result = server.run("misbehave", _request(folder, name), timeout_s=timeout_s)
    end = time.monotonic()
    processes = misbehaviour.started(folder)
    orphans = left_after(processes, GRACE_S)
    reported, detail = (result.failure.kind, result.failure.detail) if result.failure else (None, "")
    return Fault(
        name=name, reported=reported, detail=detail, seconds=end - begin, clean_s=time.monotonic() - end,
        processes=len(processes), orphans=orphans,
    )  # fmt: skip


def left_after(processes: Iterable[int], grace_s: float) -> int:
    """Return the number of these processes that still run after a while; returns at once if none does."""
    deadline = time.monotonic() + grace_s
    while left := sum(_runs(pid) for pid in processes):
        if time.monotonic() > deadline:
            break
        time.sleep(0.005)
    return left


def outcomes(loose: list[Fault], survived: bool) -> list[CheckResult]:
    """Return the rows of the table that follow from the faults."""
    wrong = Counter(f"{fault.name} reported as {fault.reported}: {fault.detail}" for fault in loose if not fault.right)
    orphans, counted = sum(fault.orphans for fault in loose), len(loose)
    stubborn = [fault.seconds + fault.clean_s - TIMEOUT_S for fault in loose if fault.name == "stubborn"]
    slowest = max(stubborn, default=float("inf"))
    raw = {
        name: {
            "times": len(of := [fault for fault in loose if fault.name == name]),
            "right": sum(fault.right for fault in of),
            "processes": sum(fault.processes for fault in of),
            "orphans": sum(fault.orphans for fault in of),
            "worst_s": round(max((fault.seconds for fault in of), default=0.0), 3),
            "worst_clean_s": round(max((fault.clean_s for fault in of), default=0.0), 3),
        }
        for name in KINDS
    }
    worst_clean_s = max((fault.clean_s for fault in loose), default=0.0)
    return [
        CheckResult(
            check="faults survived", figure=f"{counted if survived else 0} of {counted}", limit="all",
            passed=survived and counted >= len(KINDS), raw=raw,
        ),
        CheckResult(
            check="faults named right", figure=f"{sum(fault.right for fault in loose)} of {counted}", limit="all",
            passed=not wrong, raw=dict(wrong),
        ),
        CheckResult(
            check="processes left 1 s after a fault", figure=f"{orphans}, the last gone after {worst_clean_s:.3f} s",
            limit="0", passed=orphans == 0 and all(fault.processes for fault in loose),
        ),
        CheckResult(
            check="a child that ignores SIGTERM", figure=f"gone {slowest:.2f} s after its timeout", limit="1 s",
            passed=slowest <= 1.0,
        ),
    ]  # fmt: skip


def coordinators(campaign: Campaign) -> list[CheckResult]:
    """Kill coordinators whose candidates run, and count the processes that still run afterwards."""
    times = campaign.pick(TIMES, TIMES_QUICK)
    left, worst_s = 0, 0.0
    for turn in range(times):
        folder = campaign.folder / f"coordinator-{turn}"
        folder.mkdir()
        processes, begin = killed_coordinator(folder)
        left += left_after(processes, GRACE_S)
        worst_s = max(worst_s, time.monotonic() - begin)
    return [
        CheckResult(
            check="processes left 1 s after a coordinator was killed",
            figure=f"{left} of {times} coordinators, the last gone after {worst_s:.3f} s", limit="0", passed=left == 0,
            raw={"times": times, "left": left, "worst_s": worst_s},
        )
    ]  # fmt: skip


def killed_coordinator(folder: Path) -> tuple[list[int], float]:
    """Start a coordinator with two candidates, kill it, and return its processes and the time of the kill."""
    command = [sys.executable, "-c", _COORDINATOR, str(folder)]
    coordinator = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        assert coordinator.stdout is not None
        coordinator.stdout.readline()
        below = [child.pid for child in psutil.Process(coordinator.pid).children(recursive=True)]
    finally:
        coordinator.send_signal(signal.SIGKILL)
        begin = time.monotonic()
        coordinator.communicate()
    return [*below, *misbehaviour.started(folder)], begin


def _request(folder: Path, name: str) -> dict[str, str]:
    return {"folder": str(folder), "fault": name}


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
