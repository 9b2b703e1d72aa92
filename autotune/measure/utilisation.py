"""The share of a GPU that a callable uses, from a trace of its kernels: Utilisation, utilisation, measured_utilisation.

With all kernels k of the traced calls, which run over [s, e) with ``blocks`` thread blocks each, N SMs, and the window
|W| = calls * time of an untraced call:

- GPU utilisation = |union of the kernels| / |W|;
- estimated SM efficiency = (1 / |W|) times the integral over time of min(1, sum of blocks of the running kernels / N);
- estimated occupancy = sum(duration * occupancy) / sum(duration), over the kernels whose occupancy is known.

|W| is untraced because tracing lengthens the pauses between kernels, but hardly the kernels: with its own window a
trace showed 0.76 for a call that keeps an H200 busy for 0.95 of its time (ViT-B/16, batch 32, a CUDA graph). If traced
kernels run a little longer than the untraced call, the first two are 1.

Copies and fills are listed among the heaviest, but they are no kernels: they enter none of the three.
"""

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import cycle, pairwise

from autotune.errors import WorkError
from autotune.measure import gpm
from autotune.measure.block import InputSets
from autotune.measure.clock import Clock, SystemClock
from autotune.measure.kernel_trace import KernelTrace, trace
from autotune.measure.rounds import TimedRunner
from autotune.measure.statistics import median
from autotune.records.device import Device

LONGEST_NAME = 120

TRACED_CALLS = 3

UNTRACED_CALLS = 7 * TRACED_CALLS
"""Each traced call's inputs seven times; ten of the calls may be disturbed before the median is.

The median of 21 has its 95% interval between the 6th and the 16th of them: within their middle half.
"""

_MEANINGLESS = re.compile(
    r"(?:const |unsigned |signed )*(?:void|bool|char|short|int|long|long long|float|double|half|unsigned|true|false|"
    r"__half2?|__nv_bfloat16|c10::(?:Half|BFloat16|complex)|\(.*\).*|-?\d.*)?[ *&]*"
)
"""Template arguments that do not describe a kernel's work: numbers, casts and plain types."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeavyKernel:
    """All launches under one shortened name: their number and time in one call, and their share of the device's work.

    The share is of the summed durations of all activities in the trace, copies and fills included.
    """

    name: str
    per_call: float
    ms_per_call: float
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Utilisation:
    """The share of a GPU of ``sm_count`` SMs that is in use during a call; all fractions lie between 0 and 1.

    ``busy_ms_per_call`` is the time with at least one kernel running, from the trace; ``call_ms`` is the host's time
    for an untraced call that is waited for.
    """

    gpu_utilisation: float
    sm_efficiency: float
    occupancy: float | None
    sm_count: int
    calls: int
    kernels_per_call: float
    copies_per_call: float
    busy_ms_per_call: float
    call_ms: float
    heaviest: tuple[HeavyKernel, ...]

    def as_dict(self) -> dict[str, object]:
        """Plain data for JSON."""
        return {**asdict(self), "heaviest": [asdict(kernel) for kernel in self.heaviest]}


def utilisation(trace: KernelTrace, *, call_ms: float, sm_count: int) -> Utilisation:
    """Compute all figures; ``ValueError`` for a device without SMs and for an untraced call that takes no time."""
    kernels = sum(kernel.kind == "kernel" for kernel in trace.activities)
    return Utilisation(
        gpu_utilisation=gpu_utilisation(trace, call_ms=call_ms),
        sm_efficiency=sm_efficiency(trace, call_ms=call_ms, sm_count=sm_count),
        occupancy=occupancy(trace),
        sm_count=sm_count,
        calls=trace.calls,
        kernels_per_call=kernels_per_call(trace),
        copies_per_call=(len(trace.activities) - kernels) / trace.calls,
        busy_ms_per_call=_busy_us(trace) / 1e3 / trace.calls,
        call_ms=call_ms,
        heaviest=heaviest(trace),
    )


def gpu_utilisation(trace: KernelTrace, *, call_ms: float) -> float:
    """Return the share of an untraced call's time in which at least one kernel runs."""
    return min(1.0, _busy_us(trace) / _window_us(trace, call_ms))


def sm_efficiency(trace: KernelTrace, *, call_ms: float, sm_count: int) -> float:
    """Return the estimated share of SMs that have a thread block, averaged over an untraced call's time.

    A kernel counts with its whole grid as long as it runs, so the tail of a last, partly filled wave is not seen.
    """
    if sm_count < 1:
        raise ValueError(f"a GPU has at least one SM, found {sm_count}")
    used_us = math.fsum(length_us * min(1.0, blocks / sm_count) for length_us, blocks in _segments(trace))
    return min(1.0, used_us / _window_us(trace, call_ms))


def occupancy(trace: KernelTrace) -> float | None:
    """Return the estimated occupancy of a typical moment of kernel time; None if the profiler estimated none."""
    estimates = [
        (kernel.duration_us, kernel.occupancy)
        for kernel in trace.activities
        if kernel.kind == "kernel" and kernel.occupancy is not None
    ]
    total_us = math.fsum(duration_us for duration_us, _ in estimates)
    if total_us == 0:
        return None
    return min(1.0, math.fsum(duration_us * value for duration_us, value in estimates) / total_us)


def kernels_per_call(trace: KernelTrace) -> float:
    """Return the number of kernels that one call launches; copies and fills are not counted."""
    return sum(kernel.kind == "kernel" for kernel in trace.activities) / trace.calls


def heaviest(trace: KernelTrace, count: int = 10) -> tuple[HeavyKernel, ...]:
    """Return the activities that take most of the device's time, heaviest first, grouped by shortened name."""
    durations_us: dict[str, list[float]] = defaultdict(list)
    for kernel in trace.activities:
        durations_us[short_name(kernel.name)].append(kernel.duration_us)
    whole_us = math.fsum(kernel.duration_us for kernel in trace.activities)
    totals = ((math.fsum(durations), len(durations), name) for name, durations in durations_us.items())
    ranked = sorted(totals, key=_heavy_first)
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
    """Cut a C++ kernel's return type, parameters and template arguments, except the first argument with a meaning.

    ``void at::native::elementwise_kernel<4, at::native::AddFunctor<float>>(int)`` becomes
    ``at::native::elementwise_kernel<AddFunctor>``, and so does a long name that profilers leave mangled. Names that are
    not C++ stay as they are, up to 120 characters.
    """
    if mangled := _demangled(name):
        return mangled[:LONGEST_NAME]
    plain = re.sub(r"(?:\(anonymous namespace\)|<unnamed>)::", "", name.strip()).removeprefix("void ")
    opening = plain.find("<")
    base = re.split(r"[<(]", plain, maxsplit=1)[0].strip()
    if not base or (opening < 0 and "::" not in plain and not plain.endswith(")")):
        return plain[:LONGEST_NAME] or "unnamed"
    if opening == len(base):
        meaning = next((word for word in map(_bare_name, _arguments(plain[opening + 1 :])) if word), "")
        base += f"<{meaning}>" if meaning else ""
    return base[:LONGEST_NAME]


def _demangled(name: str) -> str:
    """Return the words of a mangled name and the last word of its first template argument; empty for other names."""
    words, rest = _words(name.removeprefix("_ZN")) if name.startswith("_ZN") else ([], "")
    argument, _ = _words(re.sub(r"^IN?(?:S[0-9A-Z]*_)?", "", rest)) if rest.startswith("I") else ([], "")
    return "::".join(words) + (f"<{argument[-1]}>" if words and argument else "")


def _words(mangled: str) -> tuple[list[str], str]:
    """Split identifiers, each after its length, from the rest."""
    words = []
    while (length := re.match(r"[1-9]\d{0,3}", mangled)) and len(mangled) >= length.end() + int(length[0]):
        end = length.end() + int(length[0])
        words.append(mangled[length.end() : end])
        mangled = mangled[end:]
    return words, mangled


def untraced_call_ms(call: Callable[[], None], clock: Clock) -> float:
    """Time calls, each of which returns when its work on the device is done, and return the median."""
    samples_ms = []
    for _ in range(UNTRACED_CALLS):
        started_ns = clock.now_ns()
        call()
        samples_ms.append((clock.now_ns() - started_ns) / 1e6)
    return median(samples_ms)


def measured_utilisation(
    finalists: Mapping[str, TimedRunner], input_sets: InputSets, device: Device, *, seconds: float = 1.0
) -> dict[str, dict[str, object]]:
    """Read the device's own SM activity over ``seconds`` of calls of each finalist, time it, and trace it.

    No finalist is traced before all are timed: a trace slows down later calls in the same process by 10 to 20%
    (pytorch#144455).

    Returns ``{"available": True, "trace": {...}, "gpm": {...}}`` for each name. A part that cannot be read is
    ``{"available": False, "reason": ...}``; so is the whole on a CPU. ``trace`` holds :meth:`Utilisation.as_dict`,
    ``gpm`` the result of :func:`autotune.measure.gpm.measured`. A finalist that launches no kernel has no trace.
    """
    if device.kind != "cuda":
        return {name: {"available": False, "reason": "a CPU runs no kernels"} for name in finalists}
    sets = input_sets[:TRACED_CALLS]
    untraced = {name: _untraced(finalist, sets, device, seconds) for name, finalist in finalists.items()}
    return {
        name: {"available": True, "trace": _traced(finalists[name], sets, device, call_ms), "gpm": counters}
        for name, (call_ms, counters) in untraced.items()
    }


def _untraced(
    finalist: TimedRunner, input_sets: InputSets, device: Device, seconds: float
) -> tuple[float, dict[str, object]]:
    """Read the device's counters, which lets its clocks rise, and then time a call."""
    import torch

    turns = cycle(input_sets)

    def call() -> None:
        finalist(*next(turns))
        torch.cuda.synchronize(device.index)

    finalist.prepare()
    counters = gpm.measured(call, device, seconds=seconds)
    return untraced_call_ms(call, SystemClock()), counters


def _traced(finalist: TimedRunner, input_sets: InputSets, device: Device, call_ms: float) -> dict[str, object]:
    import torch

    finalist.prepare()
    try:
        kernels = trace(finalist, input_sets, calls=TRACED_CALLS, device=device.torch_name)
    except WorkError as error:
        return {"available": False, "reason": str(error)}
    sm_count = torch.cuda.get_device_properties(device.index).multi_processor_count
    return {"available": True, **utilisation(kernels, call_ms=call_ms, sm_count=sm_count).as_dict()}


def _window_us(trace: KernelTrace, call_ms: float) -> float:
    if not (math.isfinite(call_ms) and call_ms > 0):
        raise ValueError(f"an untraced call takes a positive finite time, found {call_ms!r} ms")
    return trace.calls * call_ms * 1e3


def _busy_us(trace: KernelTrace) -> float:
    return math.fsum(length_us for length_us, _ in _segments(trace))


def _segments(trace: KernelTrace) -> Iterator[tuple[float, int]]:
    """Yield (length, blocks of all running kernels) of each stretch of time between two starts or ends.

    Stretches in which no kernel runs are left out. Sorting makes it O(n log n).
    """
    changes: dict[float, int] = defaultdict(int)
    for kernel in trace.activities:
        changes[kernel.start_us] += kernel.blocks
        changes[kernel.end_us] -= kernel.blocks
    blocks = 0
    for moment, following in pairwise(sorted(changes)):
        blocks += changes[moment]
        if blocks:
            yield following - moment, blocks


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


def _bare_name(argument: str) -> str:
    """Return the bare last name of a template argument; empty if it does not describe the kernel's work."""
    if _MEANINGLESS.fullmatch(argument):
        return ""
    return re.split(r"[<({]", argument, maxsplit=1)[0].rstrip(": ").rsplit("::", 1)[-1]
