"""The most that a step may take from the host: Limits, and how a process puts them on itself."""

import contextlib
import ctypes
import os
import resource
import shutil
import signal
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from autotune.runtime.host_memory import HostMemory

FILE_BYTES = 192 * 2**30
"""More than the memory of any one GPU (B200: 180 GB), so no package that could be loaded is larger."""

SHARE_OF_FREE_DISK = 0.9
"""One file alone may not fill the disk, on which the database may lie too."""

LEAST_FILE_BYTES = 2**30
"""If less is free, the disk itself reports that it is full, and reports it more clearly."""

SHARE_OF_MEMORY = 0.85
"""The part of the memory that this process may use; the rest is for the coordinator and the system."""

PROCESSES_A_CORE, LEAST_PROCESSES = 16, 512
"""A build starts one job a core (ninja two more). A job of nvcc has at most five processes (sh, nvcc, sh, cicc, ptxas).
Inductor keeps up to 64 workers too, each with at most three processes of a compiler. All together stay below."""

DESCRIPTORS = 16384
"""Sixteen times the customary 1024: CUDA, compile workers and sharded weights need hundreds, a leak has no end."""

LOG_BYTES = 2**20
"""The part of a step's output that is kept, from its end."""

LOG_FLOOD_BYTES = 64 * 2**20
"""A step that prints so much prints without end: the most verbose log of a build is a few MiB."""

OOM_SCORE_ADJUSTMENT = 900
"""Of at most 1000: if the kernel runs out of memory, it kills this process rather than the coordinator."""

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


def most_processes(cores: int | None = None) -> int:
    """Return the number of processes that a step may have at once: more than any parallel build on these cores."""
    return max(LEAST_PROCESSES, PROCESSES_A_CORE * (cores or os.cpu_count() or 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits of one step; memory and processes are those of the step and of everything that it started, together."""

    # The kernel limits neither of the two. CUDA reserves ranges of addresses far larger than it ever uses, and the
    # kernel counts the processes of a user in all programs, each thread as one, and does not count root's at all.

    memory_bytes: int
    processes: int = field(default_factory=most_processes)
    file_bytes: int = FILE_BYTES
    descriptors: int = DESCRIPTORS
    log_bytes: int = LOG_FLOOD_BYTES

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value <= 0:
                raise ValueError(f"{name} is a positive number, found {value!r}")

    def as_dict(self) -> dict[str, int]:
        """Plain data for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, int]) -> "Limits":
        """Read what :meth:`as_dict` wrote."""
        return cls(**data)

    def within(self, host: HostMemory) -> "Limits":
        """Return the limits with less memory if the host, or the container that this runs in, has less."""
        return replace(self, memory_bytes=min(self.memory_bytes, int(SHARE_OF_MEMORY * host.total_bytes)))

    def apply(self, folder: Path) -> None:
        """Put the limits that the kernel enforces on this process, for good; it writes to the disk of ``folder``.

        A write past the size raises ``OSError``, because Python ignores the signal that comes with it.
        """
        free = shutil.disk_usage(folder).free
        _lower(resource.RLIMIT_CORE, 0)
        share = max(LEAST_FILE_BYTES, int(SHARE_OF_FREE_DISK * free))
        _lower(resource.RLIMIT_FSIZE, min(self.file_bytes, share))
        _lower(resource.RLIMIT_NOFILE, self.descriptors)


def prefer_to_kill_this() -> None:
    """Let the kernel choose this process first if it runs out of memory."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE_ADJUSTMENT))


def run_before_others() -> None:
    """Have the kernel run this process before all ordinary ones, if permitted: else a fork bomb leaves it no time."""
    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(os.sched_get_priority_min(os.SCHED_RR)))


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent is gone."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)


def end_with_parent(parent: int, number: signal.Signals) -> None:
    """Have the kernel send a signal to this process when ``parent`` is gone; at once if it is gone already."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        os.kill(os.getpid(), number)


def _lower(limit: int, value: int) -> None:
    _, hard = resource.getrlimit(limit)
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(limit, (value, value))
