"""How much of a GPU a callable uses, from a trace of its kernels: Utilisation, utilisation, measured_utilisation.

With the window W, kernels k that run over [s, e) with ``blocks`` thread blocks each, and N SMs:

- GPU utilisation = |union of the kernels within W| / |W|;
- estimated SM efficiency = (1 / |W|) times the integral over W of min(1, sum of blocks of the running kernels / N);
- estimated occupancy = sum(duration * occupancy) / sum(duration), over the kernels whose occupancy is known.

Copies and fills are listed among the heaviest, but they are no kernels: they enter none of the three.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from autotune.device import Device
from autotune.measure import gpm
from autotune.measure.block import InputSets
from autotune.measure.kernels import KernelTrace, trace
from autotune.measure.timer import Function

LONGEST_NAME = 120

_NOT_TELLING = re.compile(
    r"(?:const |unsigned |signed )*(?:void|bool|char|short|int|long|long long|float|double|half|unsigned|true|false|"
    r"__half2?|__nv_bfloat16|c10::(?:Half|BFloat16|complex)|\(.*\).*|-?\d.*)?[ *&]*"
)
"""Template arguments that say nothing about what a kernel does: numbers, casts and plain types."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeavyKernel:
    """All launches under one shortened name: how many and how long in one call, and their share of the device's work.

    The share is of the summed durations of everything in the trace, copies and fills included.
    """

    name: str
    per_call: float
    ms_per_call: float
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Utilisation:
    """How much of a GPU of ``sm_count`` SMs is in use during a call; all fractions lie between 0 and 1.

    ``busy_ms_per_call`` is the time with at least one kernel running and ``window_ms_per_call`` the traced call's whole
    time; an untraced call is shorter where launches decide, so ``busy_ms_per_call`` over its latency is the better
    figure there.
    """

    gpu_utilisation: float
    sm_efficiency: float
    occupancy: float | None
    sm_count: int
    calls: int
    kernels_per_call: float
    copies_per_call: float
    busy_ms_per_call: float
    window_ms_per_call: float
    heaviest: tuple[HeavyKernel, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**asdict(self), "heaviest": [asdict(kernel) for kernel in self.heaviest]}


def utilisation(trace: KernelTrace, sm_count: int) -> Utilisation:
    """Work all figures out; ``ValueError`` for a device without SMs."""
    kernels = sum(kernel.kind == "kernel" for kernel in trace.kernels)
    return Utilisation(
        gpu_utilisation=gpu_utilisation(trace),
        sm_efficiency=sm_efficiency(trace, sm_count),
        occupancy=occupancy(trace),
        sm_count=sm_count,
        calls=trace.calls,
        kernels_per_call=kernels_per_call(trace),
        copies_per_call=(len(trace.kernels) - kernels) / trace.calls,
        busy_ms_per_call=_busy_us(trace) / 1e3 / trace.calls,
        window_ms_per_call=_length_us(trace) / 1e3 / trace.calls,
        heaviest=heaviest(trace),
    )


def gpu_utilisation(trace: KernelTrace) -> float:
    """The share of the window in which at least one kernel runs."""
    return min(1.0, _busy_us(trace) / _length_us(trace))


def sm_efficiency(trace: KernelTrace, sm_count: int) -> float:
    """The estimated share of SMs that have a thread block, averaged over the window.

    A kernel counts with its whole grid as long as it runs, so the tail of a last, part-filled wave is not seen.
    """
    if sm_count < 1:
        raise ValueError(f"a GPU has at least one SM, found {sm_count}")
    used_us = math.fsum(length_us * min(1.0, blocks / sm_count) for length_us, blocks in _segments(trace))
    return min(1.0, used_us / _length_us(trace))


def occupancy(trace: KernelTrace) -> float | None:
    """The estimated occupancy of a typical moment of kernel time; None where the profiler estimated none."""
    known = [
        (kernel.duration_us, kernel.occupancy)
        for kernel in trace.kernels
        if kernel.kind == "kernel" and kernel.occupancy is not None
    ]
    total_us = math.fsum(duration_us for duration_us, _ in known)
    if total_us == 0:
        return None
    return min(1.0, math.fsum(duration_us * value for duration_us, value in known) / total_us)


def kernels_per_call(trace: KernelTrace) -> float:
    """How many kernels one call launches; copies and fills are not counted."""
    return sum(kernel.kind == "kernel" for kernel in trace.kernels) / trace.calls


def heaviest(trace: KernelTrace, count: int = 10) -> tuple[HeavyKernel, ...]:
    """Name what takes most of the device's time, heaviest first; names that shorten to the same are one."""
    durations_us: dict[str, list[float]] = defaultdict(list)
    for kernel in trace.kernels:
        durations_us[short_name(kernel.name)].append(kernel.duration_us)
    whole_us = math.fsum(kernel.duration_us for kernel in trace.kernels)
    ranked = sorted(((math.fsum(each), len(each), name) for name, each in durations_us.items()), key=_heavy_first)
    return tuple(
        HeavyKernel(
            name=name,
            per_call=launches / trace.calls,
            ms_per_call=total_us / 1e3 / trace.calls,
            share=min(1.0, total_us / whole_us) if whole_us else 0.0,
        )
        for total_us, launches, name in ranked[:count]
    )


def short_name(name: str) -> str:
    """Cut a C++ kernel's return type, parameters and template arguments, but for the first argument that tells.

    ``void at::native::elementwise_kernel<4, at::native::AddFunctor<float>>(int)`` becomes
    ``at::native::elementwise_kernel<AddFunctor>``; names that are not C++ stay as they are, up to 120 characters.
    """
    plain = re.sub(r"(?:\(anonymous namespace\)|<unnamed>)::", "", name.strip()).removeprefix("void ")
    opening = plain.find("<")
    base = re.split(r"[<(]", plain, maxsplit=1)[0].strip()
    if not base or (opening < 0 and "::" not in plain and not plain.endswith(")")):
        return plain[:LONGEST_NAME] or "unnamed"
    if opening == len(base):
        telling = next((word for word in map(_told, _arguments(plain[opening + 1 :])) if word), "")
        base += f"<{telling}>" if telling else ""
    return base[:LONGEST_NAME]


def measured_utilisation(
    function: Function, input_sets: InputSets, device: Device, *, seconds: float = 1.0
) -> dict[str, Any]:
    """Trace a callable, then read the device's own SM activity over ``seconds`` of untraced calls.

    Gives ``{"available": True, "trace": {...}, "gpm": {...}}`` where either part that cannot be had on this device is
    ``{"available": False, "reason": ...}``; on a CPU the whole is. The trace holds :meth:`Utilisation.as_dict`, the
    other part what :func:`autotune.measure.gpm.measured` gives. Raises what :func:`autotune.measure.kernels.trace`
    raises: a callable without work on the device is an error, not a utilisation of zero.
    """
    if device.kind != "cuda":
        return {"available": False, "reason": "a CPU runs no kernels"}
    import torch

    seen = trace(function, input_sets, device=device.torch_name)
    sm_count = torch.cuda.get_device_properties(device.index).multi_processor_count
    number = 0

    def call() -> None:
        nonlocal number
        function(*input_sets[number % len(input_sets)])
        torch.cuda.synchronize(device.index)
        number += 1

    return {
        "available": True,
        "trace": {"available": True, **utilisation(seen, sm_count).as_dict()},
        "gpm": gpm.measured(call, device, seconds=seconds),
    }


def _length_us(trace: KernelTrace) -> float:
    begin, end = trace.window_us
    return end - begin


def _busy_us(trace: KernelTrace) -> float:
    return math.fsum(length_us for length_us, _ in _segments(trace))


def _segments(trace: KernelTrace) -> Iterator[tuple[float, int]]:
    """Yield (length, blocks of all running kernels) of each stretch of the window between two starts or ends.

    Stretches in which no kernel runs are left out. Sorting makes it O(n log n).
    """
    begin, end = trace.window_us
    changes: dict[float, int] = defaultdict(int)
    for kernel in trace.kernels:
        start_us, end_us = max(kernel.start_us, begin), min(kernel.end_us, end)
        if kernel.blocks and start_us < end_us:
            changes[start_us] += kernel.blocks
            changes[end_us] -= kernel.blocks
    blocks, since = 0, begin
    for moment in sorted(changes):
        if blocks:
            yield moment - since, blocks
        blocks += changes[moment]
        since = moment


def _heavy_first(entry: tuple[float, int, str]) -> tuple[float, str]:
    total_us, _, name = entry
    return -total_us, name


def _arguments(text: str) -> Iterator[str]:
    """Split the inside of a template's brackets at its own commas, up to the bracket that closes it."""
    depth, argument = 0, ""
    for character in text:
        if character in "<({[":
            depth += 1
        elif character in ">)}]":
            depth -= 1
        if depth < 0:
            break
        if character == "," and depth == 0:
            yield argument.strip()
            argument = ""
        else:
            argument += character
    yield argument.strip()


def _told(argument: str) -> str:
    """Give the bare last name of a template argument, or nothing where it tells nothing."""
    if _NOT_TELLING.fullmatch(argument):
        return ""
    return re.split(r"[<({]", argument, maxsplit=1)[0].rstrip(": ").rsplit("::", 1)[-1]
