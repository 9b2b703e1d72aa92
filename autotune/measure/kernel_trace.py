"""A trace of the kernels that a callable launches on a GPU, with time and size: DeviceActivity, KernelTrace, trace."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypedDict

from autotune.errors import DeviceError, WorkError
from autotune.measure.block import InputSets
from autotune.measure.clock import SystemClock
from autotune.measure.timer import Function
from autotune.scratch import ScratchFolder

WorkKind = Literal["kernel", "memcpy", "memset"]

WINDOW_TOLERANCE = 0.05
"""The kernels of a trace may span this much more than the host's own time for the calls: the clocks differ."""

_KINDS: dict[str, WorkKind] = {"kernel": "kernel", "gpu_memcpy": "memcpy", "gpu_memset": "memset"}
_WARM_UP_CALLS = 3


class Event(TypedDict, total=False):
    """One event of a Chrome trace, as far as it is read here."""

    ph: str
    cat: str
    name: str
    ts: float
    dur: float
    args: Mapping[str, object]


class ChromeTrace(TypedDict, total=False):
    """A Chrome trace."""

    traceEvents: Sequence[Event]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceActivity:
    """One activity of the device, in CUPTI's sense; copies and fills (``kind``) have no grid: theirs is (0, 0, 0).

    Times are microseconds on the trace's clock, whose zero is arbitrary. ``occupancy`` is the profiler's estimate from
    launch size and resources, 0 to 1, not a reading of the hardware; ``registers`` are those of one thread and
    ``shared_bytes`` the shared memory of one block.
    """

    name: str
    start_us: float
    end_us: float
    grid: tuple[int, int, int] = (0, 0, 0)
    block: tuple[int, int, int] = (0, 0, 0)
    occupancy: float | None = None
    stream: int | None = None
    registers: int | None = None
    shared_bytes: int | None = None
    kind: WorkKind = "kernel"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.start_us) and math.isfinite(self.end_us) and self.start_us <= self.end_us):
            raise ValueError(f"{self.name!r} ends after it starts, found {self.start_us!r} to {self.end_us!r} us")
        if len(self.grid) != 3 or len(self.block) != 3 or min(*self.grid, *self.block) < 0:
            raise ValueError(f"{self.name!r} has three grid and three block sizes, found {self.grid} and {self.block}")
        if self.kind == "kernel" and min(*self.grid, *self.block) < 1:
            raise ValueError(f"kernel {self.name!r} has at least one block of one thread, found {self.grid}")
        if self.kind != "kernel" and any((*self.grid, *self.block)):
            raise ValueError(f"{self.kind} {self.name!r} has no blocks, found {self.grid}")
        if self.occupancy is not None and not 0 <= self.occupancy <= 1:
            raise ValueError(f"the occupancy of {self.name!r} lies between 0 and 1, found {self.occupancy!r}")

    @property
    def duration_us(self) -> float:
        """The time that it ran."""
        return self.end_us - self.start_us

    @property
    def blocks(self) -> int:
        """Thread blocks of the whole grid; 0 for a copy or a fill."""
        return math.prod(self.grid)


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelTrace:
    """The device's activities during ``calls`` calls; pauses between kernels are longer than without the profiler."""

    activities: tuple[DeviceActivity, ...]
    calls: int

    def __post_init__(self) -> None:
        if self.calls < 1:
            raise ValueError(f"a trace covers at least one call, found {self.calls}")


def trace(function: Function, input_sets: InputSets, *, calls: int = 3, device: str) -> KernelTrace:
    """Trace calls that take turns on the input sets, each waited for, after up to three untraced calls.

    Tracing lengthens each launch, but hardly a kernel. Everything that reaches the device from this process counts:
    kernels replayed by a CUDA graph, those of other libraries and of other threads.

    Raises :class:`DeviceError` if ``device`` is no GPU, :class:`WorkError` if no kernel was launched on it;
    an error of the function passes through.
    """
    import torch
    from torch.profiler import ProfilerActivity, profile

    if not input_sets or calls < 1:
        raise ValueError(f"at least one call on one set of inputs is needed, found {calls} on {len(input_sets)}")
    place = torch.device(device)
    if place.type != "cuda" or not torch.cuda.is_available():
        raise DeviceError(f"kernels cannot be traced on {device}", expected="a CUDA device", run="autotune doctor")

    clock = SystemClock()

    def run(times: int) -> None:
        for number in range(times):
            function(*input_sets[number % len(input_sets)])
            torch.cuda.synchronize(place)

    run(min(_WARM_UP_CALLS, calls))
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        started_ns = clock.now_ns()
        run(calls)
        elapsed_us = (clock.now_ns() - started_ns) / 1e3
    with ScratchFolder("trace") as folder:
        path = folder / "trace.json"
        profiler.export_chrome_trace(str(path))
        document = _load(path)
    index = torch.cuda.current_device() if place.index is None else place.index
    return read_chrome_trace(document, calls=calls, device_index=index, host_window_us=elapsed_us)


def read_chrome_trace(
    document: "ChromeTrace", *, calls: int, device_index: int | None = None, host_window_us: float | None = None
) -> KernelTrace:
    """Read the device's work from a trace that torch's profiler exported; its ``ts`` and ``dur`` are microseconds.

    ``displayTimeUnit`` is only a label for viewers. With ``device_index`` other devices are left out.
    ``host_window_us`` is the host's time for the traced calls. Raises :class:`WorkError` if no kernel is found, if an
    event cannot be read, and if the work takes no time or spans more than the host's: then the times are not
    microseconds.
    """
    events = [
        event for event in document.get("traceEvents", ()) if event.get("ph") == "X" and event.get("cat") in _KINDS
    ]
    chosen = [event for event in events if device_index is None or _args(event).get("device") == device_index]
    work = sorted((_kernel(event) for event in chosen), key=lambda piece: (piece.start_us, piece.end_us))
    if not any(piece.kind == "kernel" for piece in work):
        elsewhere = sorted({str(_args(event).get("device")) for event in events})
        place = f", work on devices {', '.join(elsewhere)} only" if events and not chosen else ""
        raise WorkError(
            f"the {calls} traced calls launched no kernel"
            + ("" if device_index is None else f" on GPU {device_index}"),
            found=f"{len(work)} copies and fills{place}",
            expected="a callable that does its work on this device, and a profiler that is allowed to see it",
        )
    spanned_us = max(piece.end_us for piece in work) - work[0].start_us
    if host_window_us is not None and spanned_us > host_window_us * (1 + WINDOW_TOLERANCE):
        raise WorkError(
            "the times of a kernel trace cannot be trusted",
            found=f"work on the device that spans {spanned_us:.3f} us in {host_window_us:.3f} us of calls",
            expected="microseconds, and no work outside the traced calls",
        )
    if spanned_us == 0:
        raise WorkError("the kernels of a trace take no time", expected="times in microseconds, down to nanoseconds")
    return KernelTrace(activities=tuple(work), calls=calls)


def _load(path: Path) -> "ChromeTrace":
    try:
        document: ChromeTrace = json.loads(path.read_text(encoding="utf-8", errors="replace"), strict=False)
    except ValueError as error:
        raise WorkError("the profiler's trace cannot be read", found=str(error), expected="JSON") from error
    return document


def _args(event: "Event") -> Mapping[str, object]:
    return event.get("args") or {}


def _kernel(event: "Event") -> DeviceActivity:
    """Read one event of a category in ``_KINDS``; other programs write the file, so any entry may be missing."""
    args, kind = _args(event), _KINDS[event["cat"]]
    try:
        start_us = float(event["ts"])
        return DeviceActivity(
            name=str(event["name"]),
            start_us=start_us,
            end_us=start_us + float(event["dur"]),
            grid=_sizes(args["grid"]) if kind == "kernel" else (0, 0, 0),
            block=_sizes(args["block"]) if kind == "kernel" else (0, 0, 0),
            occupancy=_fraction(args.get("est. achieved occupancy %")),
            stream=_integer(args.get("stream")),
            registers=_integer(args.get("registers per thread")),
            shared_bytes=_integer(args.get("shared memory")),
            kind=kind,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise WorkError(
            f"an event of category {event['cat']!r} in a kernel trace cannot be read",
            found=f"{type(error).__name__}: {error} in {str(dict(event))[:300]}",
            expected="name, ts and dur (microseconds), and for a kernel args with grid and block",
        ) from error


def _sizes(values: object) -> tuple[int, int, int]:
    if not isinstance(values, list | tuple):
        raise TypeError(f"three sizes are needed, found {values!r}")
    x, y, z = values
    return int(x), int(y), int(z)


def _integer(value: object) -> int | None:
    return int(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _fraction(percent: object) -> float | None:
    """Turn a percentage into a fraction; the profiler writes a negative one if it has no estimate."""
    if not isinstance(percent, int | float) or not math.isfinite(percent) or percent < 0:
        return None
    return min(float(percent) / 100, 1.0)
