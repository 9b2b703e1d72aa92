"""The host's memory as this process may use it: HostMemory, which a container's limit makes smaller; return_memory."""

import ctypes
import gc
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import psutil

_V2 = ("memory.max", "memory.current", "inactive_file")
_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
"""Of either version of control groups: the limit, what is used, and in ``memory.stat`` the pages of unused files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostMemory:
    """The memory for this process at most, and the part of it that is available now, both in bytes."""

    total_bytes: int
    available_bytes: int

    @classmethod
    def read(cls, process: Path = Path("/proc/self")) -> "HostMemory":
        """Take the smallest of the host's memory and the limits of this process's control groups and those above them.

        ``process`` is the folder in which Linux describes this process. psutil reports only the host, but if a
        container exceeds its own limit the kernel kills a process in it, however much memory the host has. Pages of
        unused files count as available: the kernel drops them first, and container runtimes count them so.
        """
        host = psutil.virtual_memory()
        total, available = int(host.total), int(host.available)
        for group, names in _groups(process):
            limit = _number(group / names[0])
            if limit is None or limit >= host.total:  # version 1 says "none" by a number past all memory
                continue
            used = max(0, (_number(group / names[1]) or 0) - _statistic(group / "memory.stat", names[2]))
            total, available = min(total, limit), min(available, max(0, limit - used))
        return cls(total_bytes=total, available_bytes=available)


def return_memory() -> None:
    """Free what only circles of references hold, and return free memory that the C library keeps to the system (glibc).

    A captured graph refers to itself, so its weights would stay until Python next looks for such circles.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _groups(process: Path) -> Iterator[tuple[Path, tuple[str, str, str]]]:
    """Yield every control group that limits the process's memory, from its own up to the highest visible one."""
    mounts = list(_mounts(process / "mountinfo"))
    for line in _lines(process / "cgroup"):  # 4:memory:/a/b for version 1, 0::/a/b for version 2
        number, controllers, path = line.split(":", 2)
        if number != "0" and "memory" not in controllers.split(","):
            continue
        kind, names = ("cgroup2", _V2) if number == "0" else ("cgroup", _V1)
        for root, top in (mount[1:] for mount in mounts if mount[0] == kind):
            own = PurePosixPath(path)
            visible = own.is_relative_to(root) and ".." not in own.parts  # else a container may see its own at the top
            group = top / own.relative_to(root) if visible else top
            yield from ((folder, names) for folder in (group, *group.parents) if folder.is_relative_to(top))


def _mounts(mountinfo: Path) -> Iterator[tuple[str, PurePosixPath, Path]]:
    """Yield kind, root and place of the mounts of control groups with memory (proc_pid_mountinfo(5))."""
    for line in _lines(mountinfo):
        mounted, _, system = line.partition(" - ")
        kind, _, options = system.partition(" ")
        if kind == "cgroup2" or (kind == "cgroup" and "memory" in options.split(" ")[-1].split(",")):
            root, place = (re.sub(r"\\(\d{3})", _character, word) for word in mounted.split(" ")[3:5])
            yield kind, PurePosixPath(root), Path(place)


def _character(octal: re.Match[str]) -> str:
    return chr(int(octal[1], 8))


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def _number(path: Path) -> int | None:
    """Read a file of one number; ``None`` if there is none, or it says ``max``."""
    text = " ".join(_lines(path))
    return int(text) if text.isdigit() else None


def _statistic(path: Path, name: str) -> int:
    return next((int(line.split()[1]) for line in _lines(path) if line.startswith(f"{name} ")), 0)
