"""What a measurement saw of other processes on its GPU, in words."""

from collections.abc import Mapping, Sequence
from typing import Any

from autotune.measure.process_owner import owner
from autotune.records.device import Device


def foreign_processes(conditions: Mapping[str, Any], device: Device) -> dict[int, str]:
    """A sentence by process id for each process that was on the device beside the measured ones.

    ``conditions`` are those of a measurement, whose ``readings`` are one set, or one a round.
    Name and user are those of now: of a process that has ended meanwhile the id is all there is.
    """
    readings = conditions.get("readings", ())
    several: Sequence[Mapping[str, Any]] = [readings] if isinstance(readings, Mapping) else readings
    seen: dict[int, dict[str, int]] = {}
    for one in several:
        for process in one.get("gpu", {}).get("other_processes") or ():
            most = seen.setdefault(int(process["pid"]), {})
            for name in ("used_bytes", "sm_percent"):
                if process.get(name) is not None:
                    most[name] = max(most.get(name, 0), int(process[name]))
    return {pid: _sentence(pid, most, device.name) for pid, most in sorted(seen.items())}


def _sentence(pid: int, most: Mapping[str, int], device: str) -> str:
    user, program = owner(pid)
    who = f"process {pid}{f' ({program})' if program else ''}{f' of {user}' if user else ''}"
    uses = []
    if "used_bytes" in most:
        uses.append(f"{most['used_bytes'] / 2**30:.1f} GiB of its memory")
    if "sm_percent" in most:
        uses.append(f"up to {most['sm_percent']}% of its cores")
    much = f" ({', '.join(uses)})" if uses else ""
    return f"{who} is on {device} too{much}: times measured beside it may be longer"
