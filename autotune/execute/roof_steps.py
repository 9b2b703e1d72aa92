"""The step that measures the roofs of a device: copies, matrix products by precision, and a call that does nothing."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

from autotune.execute.answers import RoofsAnswer
from autotune.execute.candidate import timer_for
from autotune.execute.channel import Channel
from autotune.execute.requests import RoofsRequest
from autotune.execute.stages import enter, holding
from autotune.measure.statistics import median, median_interval
from autotune.records.device import Device
from autotune.records.roofs import PRECISIONS, Roof
from autotune.records.trial import Measurement

if TYPE_CHECKING:
    import torch

    from autotune.measure.clock import Clock
    from autotune.measure.observers import Observers
    from autotune.measure.timer import Timer

Call = Callable[[], object]

MEMORY_SHARE = 4
"""A buffer of the copy takes at most this part of the available memory; there are two of them."""
SLOWEST_CALL_S = 0.25
"""The largest matrix whose product is expected to take longer is not tried: some CPUs emulate half precision."""
FIRST_ROWS, PROBES = 256, 3
FEWEST_SAMPLES = 6
"""The least number of samples whose interval has 95%."""
TENSOR_CORES = {"tf32": (8, 0), "bf16": (8, 0), "fp16": (7, 0)}
"""The compute capability from which a GPU has fast products of a precision."""
_DTYPES = {"fp32": "float32", "tf32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def roofs(request: RoofsRequest, channel: Channel) -> RoofsAnswer:
    """Measure all roofs of a device, alone on it; a precision that has no product is left out, with the reason."""
    import torch

    from autotune.measure.screening import WAIT_S

    with holding(channel, request.device, "load", exclusive=True):
        bench = _Bench(request)
        enter(channel, "measure")
        with torch.inference_mode():
            copy = bench.copy(wait_s=WAIT_S)  # the only one that waits for a quiet device: a minute is enough for all
            rates: dict[str, Roof] = {}
            absent: dict[str, str] = {}
            for precision in PRECISIONS:
                reason = _unavailable(precision, request.device)
                try:
                    if not reason:
                        rates[precision] = bench.matrix(precision)
                except RuntimeError as error:  # a type that this build of torch cannot multiply, or no memory
                    reason = str(error).split("\n")[0]
                if reason:
                    absent[precision] = reason
            return RoofsAnswer(copy=copy, matrix=rates, launch=bench.launch(), absent=absent)


def _unavailable(precision: str, device: Device) -> str:
    """Return why a device has no products of a precision; empty if it may have them."""
    if device.kind == "cpu":
        return "only GPUs have it" if precision == "tf32" else ""
    needed = TENSOR_CORES.get(precision, (0, 0))
    if device.capability is not None and device.capability < needed:
        return f"it needs the compute capability {needed[0]}.{needed[1]}"
    return ""


class _Bench:
    """Random data on a device and the timer of studies; the caller holds the device's lock."""

    def __init__(self, request: RoofsRequest) -> None:
        import torch

        from autotune.measure.clock import SystemClock
        from autotune.measure.observers import observers_for

        self._request, self._device = request, request.device
        self._threads = request.device.cores if request.device.kind == "cpu" else None
        self._switch("fp32")
        if request.device.kind == "cuda":
            torch.cuda.set_device(request.device.torch_name)
        self._clock: Clock = SystemClock()
        self._timer: Timer = timer_for(request.device, self._clock)
        self._observers: Observers = observers_for(request.device, self._clock)
        self._generator = torch.Generator(device=request.device.torch_name).manual_seed(request.seed)

    def copy(self, *, wait_s: float) -> Roof:
        """Measure the rate of a copy, in GB/s: each byte is read once and written once."""
        import torch

        words = min(self._request.buffer_bytes, _available_bytes(self._device) // MEMORY_SHARE) // 4
        source = self._drawn((words,), torch.float32)
        target = torch.empty_like(source)
        measurement = self._timed(partial(target.copy_, source), wait_s)
        return _rate(2 * 4 * words / 1e9, 4 * words, measurement)

    def matrix(self, precision: str) -> Roof:
        """Measure the rate of a square product in TFLOP/s; two operations for a multiplication with its addition."""
        import torch

        self._switch(precision)
        dtype: torch.dtype = getattr(torch, _DTYPES[precision])
        for rows in self._sizes():
            a, b = (self._drawn((rows, rows), dtype) for _ in range(2))
            call = partial(torch.mm, a, b, out=torch.empty_like(a))
            call()  # the first one chooses its kernel
            self._timer.settle()
            fastest_ms = min(self._timer.time_call(call, ()).wall_ms for _ in range(PROBES))
            if 8 * fastest_ms > 1e3 * SLOWEST_CALL_S:
                break  # twice as many rows take eight times as long
        measurement = self._timed(call)
        return _rate(2 * rows**3 / 1e12, rows, measurement)

    def launch(self) -> Roof:
        """Measure the time of a call that adds to one number, in microseconds."""
        import torch

        number = self._drawn((1,), torch.float32)
        measurement = self._timed(partial(torch.add, number, 1.0, out=torch.empty_like(number)))
        samples_ms = _undisturbed_ms(measurement)
        low, high = median_interval(samples_ms)
        return Roof(
            value=1e3 * median(samples_ms), interval=(1e3 * low, 1e3 * high), size=1, samples=len(samples_ms),
            measurement=measurement,
        )  # fmt: skip

    def _sizes(self) -> Iterator[int]:
        rows = min(FIRST_ROWS, self._request.matrix_rows)
        while rows < self._request.matrix_rows:
            yield rows
            rows = min(2 * rows, self._request.matrix_rows)
        yield rows

    def _switch(self, precision: str) -> None:
        from autotune.runtime.switches import Switches, tf32_of

        Switches(tf32=tf32_of(precision), threads=self._threads).apply()

    def _drawn(self, shape: tuple[int, ...], dtype: "torch.dtype") -> "torch.Tensor":
        """Draw normal numbers; zeros would take less power, so clocks would be higher than those of real work."""
        import torch

        return torch.randn(shape, generator=self._generator, device=self._device.torch_name).to(dtype)

    def _timed(self, call: Call, wait_s: float = 0.0) -> Measurement:
        from autotune.measure.screening import screen

        return screen(
            call, [()], self._timer, clock=self._clock, limit_s=self._request.limit_s, wait_s=wait_s,
            conditions={"seed": self._request.seed}, observers=self._observers,
        ).measurement  # fmt: skip


def _available_bytes(device: Device) -> int:
    import torch

    from autotune.runtime.host_memory import HostMemory

    return torch.cuda.mem_get_info()[0] if device.kind == "cuda" else HostMemory.read().available_bytes


def _rate(work: float, size: int, measurement: Measurement) -> Roof:
    """Return work per second; the device's own clock counts if it has one, since launching is another roof."""
    on_device = tuple(sample for block in measurement.device_samples_ms for sample in block)
    samples_ms = on_device if len(on_device) >= FEWEST_SAMPLES else _undisturbed_ms(measurement)
    ms, (low, high) = median(samples_ms), median_interval(samples_ms)
    return Roof(
        value=1e3 * work / ms, interval=(1e3 * work / high, 1e3 * work / low), size=size, samples=len(samples_ms),
        measurement=measurement,
    )  # fmt: skip


def _undisturbed_ms(measurement: Measurement) -> tuple[float, ...]:
    """Return the samples that others did not disturb, or all if these are too few."""
    from autotune.measure.block import undisturbed_of

    undisturbed = undisturbed_of(measurement)
    return undisturbed if len(undisturbed) >= FEWEST_SAMPLES else measurement.flat_ms
