"""Sentences about the processes of others that were on the GPU during a measurement."""

from collections.abc import Mapping

from autotune.measure.conditions import all_readings, observed_entries
from autotune.measure.process_owner import owner
from autotune.records.device import Device


def foreign_processes(conditions: Mapping[str, object], device: Device) -> dict[int, str]:
    """Return a sentence by process id for each process that was on the device beside the measured ones.

    ``conditions`` are those of a measurement.
    Name and user are those of now: of a process that has ended meanwhile only the id is left.
    """
    largest: dict[int, dict[str, int]] = {}
    for readings in all_readings(conditions):
        for process in observed_entries(readings, "gpu", "other_processes"):
            pid = process.get("pid")
            if not isinstance(pid, int):
                continue
            values = largest.setdefault(pid, {})
            for name in ("used_bytes", "sm_percent"):
                value = process.get(name)
                if isinstance(value, int | float):
                    values[name] = max(values.get(name, 0), int(value))
    return {pid: _sentence(pid, values, device.name) for pid, values in sorted(largest.items())}


def _sentence(pid: int, largest: Mapping[str, int], device: str) -> str:
    user, program = owner(pid)
    who = f"process {pid}{f' ({program})' if program else ''}{f' of {user}' if user else ''}"
    uses = []
    if "used_bytes" in largest:
        uses.append(f"{largest['used_bytes'] / 2**30:.1f} GiB of its memory")
    if "sm_percent" in largest:
        uses.append(f"up to {largest['sm_percent']}% of its cores")
    share = f" ({', '.join(uses)})" if uses else ""
    return (
        f"{who} is on {device} too{share}: times measured beside it may be longer; "
        "end it or wait for its end, then measure again"
    )
