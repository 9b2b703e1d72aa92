"""The timer's figure against durations that are known.

On a GPU a kernel spins on ``%globaltimer``, the device's nanosecond clock, and writes down when it began and ended.
That clock does not depend on the frequency of the SMs, and the kernel's record is the true duration. A spin of a number
of cycles (``torch.cuda._sleep``), by contrast, has to be calibrated by the very events under test, and changes with the
frequency; it is used only if no kernel can be compiled. On a CPU a busy-wait reads the clock itself and reports its own
duration, which stays right if its core is taken away in between.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from typing import TypedDict

from autotune.measure.device_clock import DeviceTime
from autotune.measure.statistics import median
from autotune.measure.timer import CpuTimer
from autotune.programs.check_result import CheckResult, rounded
from autotune.programs.selftest.fake import ManualClock
from autotune.programs.selftest.rig import BusyWait, Rig

CPU_DURATIONS_MS = (1.0, 3.0, 10.0)
CUDA_DURATIONS_MS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
LARGEST_SHARE = 0.01
LARGEST_CUDA_ERROR_MS = 1e-3
_STAMPS = 1 << 11

_SPIN_KERNEL = r"""
extern "C" __global__ void autotune_spin(unsigned long long* stamps, int capacity, int duration_ns) {
    unsigned long long began, now;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(began) :: "memory");
    do {
        asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now) :: "memory");
    } while (now - began < (unsigned long long)duration_ns);
    unsigned long long slot = stamps[0] % (unsigned long long)capacity;
    stamps[1 + 2 * slot] = began;
    stamps[2 + 2 * slot] = now;
    stamps[0] += 1;
}
"""

_log = logging.getLogger(__name__)


def check(rig: Rig) -> list[CheckResult]:
    """Time known durations with the device's timer, and with a fake clock."""
    return [_with_fake_clock(), _on_cpu(rig) if rig.kind == "cpu" else _on_cuda(rig)]


def _with_fake_clock() -> CheckResult:
    timed_ms = {}
    for duration_ms in (1e-6, 0.010001, 1.234567, 86_400_000.0):
        clock = ManualClock()
        timed_ms[duration_ms] = CpuTimer(clock).time_call(clock.call(duration_ms), ()).wall_ms
    clock = ManualClock()
    timed_ms[0.3] = CpuTimer(clock).time_call(clock.call(0.2, 0.4), (), 6).wall_ms
    wrong = {str(duration): rounded(value) for duration, value in timed_ms.items() if value != duration}
    return CheckResult(
        check="known/fake clock",
        figure=f"{len(timed_ms) - len(wrong)} of {len(timed_ms)} exact",
        limit="all exact",
        passed=not wrong,
        raw={"wrong": wrong},
    )


def _on_cpu(rig: Rig) -> CheckResult:
    rows = []
    for duration_ms in CPU_DURATIONS_MS:
        wait = BusyWait(rig.clock, duration_ms)
        pairs = []
        for _ in range(rig.pick(60, 15)):
            timed_ms = rig.timer.time_call(wait, ()).wall_ms
            pairs.append((timed_ms, wait.waited_ms))
        rows.append(
            {
                "asked_ms": duration_ms,
                "timed_ms": rounded(median(timed for timed, _ in pairs)),
                "waited_ms": rounded(median(waited for _, waited in pairs)),
                "error_share": rounded(_typical_error(timed / waited - 1 for timed, waited in pairs)),
            }
        )
    worst = max(abs(row["error_share"]) for row in rows)
    return CheckResult(
        check="known/busy-wait",
        figure=f"{worst:.4%} off at 1 to 10 ms",
        limit=f"{LARGEST_SHARE:.0%}",
        passed=worst <= LARGEST_SHARE,
        raw={"truth": "the busy-wait's own reading", "durations": rows},
    )


def _typical_error(errors: Iterable[float]) -> float:
    ordered = sorted(errors)
    return float(ordered[len(ordered) // 2])


def _on_cuda(rig: Rig) -> CheckResult:
    try:
        spin: _GlobalTimerSpin | None = _GlobalTimerSpin(rig.device)
    except (AttributeError, OSError, RuntimeError) as error:
        _log.warning("no kernel that reads %%globaltimer (%s); spinning by clock cycles instead", error)
        spin = None
    durations = CUDA_DURATIONS_MS[:5] if rig.quick else CUDA_DURATIONS_MS
    rows = [
        _by_global_timer(rig, spin, duration) if spin is not None else _by_cycles(rig, duration)
        for duration in durations
    ]
    worst = max(rows, key=lambda row: abs(row["error_ms"]) / _allowed_ms(row["true_ms"]))
    return CheckResult(
        check="known/spin kernel",
        figure=f"{worst['error_ms'] * 1e3:+.2f} µs off at {worst['asked_ms'] * 1e3:.0f} µs, at worst",
        limit="max(1 µs, 1%)",
        passed=all(abs(row["error_ms"]) <= _allowed_ms(row["true_ms"]) for row in rows),
        raw={
            "truth": "%globaltimer" if spin is not None else "clock cycles calibrated by events over 50 ms",
            "durations": rows,
        },
    )


def _allowed_ms(true_ms: float) -> float:
    return max(LARGEST_CUDA_ERROR_MS, LARGEST_SHARE * true_ms)


class _CyclesRow(TypedDict):
    asked_ms: float
    unrolled: int
    queued: bool
    timed_ms: float
    true_ms: float
    error_ms: float
    error_from_asked_ms: float


class DurationRow(_CyclesRow, total=False):
    """The timer's figure of one duration beside the true one; ``spun_ms`` is there if the kernel itself reported it."""

    spun_ms: float


class _GlobalTimerSpin:
    """A kernel that spins for a time by the device's own clock, and writes down when each launch began and ended."""

    def __init__(self, device: str) -> None:
        import torch

        self._kernel = torch.cuda._compile_kernel(_SPIN_KERNEL, "autotune_spin")
        self._stamps = torch.zeros(1 + 2 * _STAMPS, dtype=torch.int64, device=device)
        self._device = device

    def of(self, duration_ms: float) -> Callable[..., None]:
        """Return a callable that launches it once."""
        arguments = [self._stamps, _STAMPS, round(duration_ms * 1e6)]
        return lambda *inputs: self._kernel(grid=(1, 1, 1), block=(1, 1, 1), args=arguments)

    def last(self, launches: int) -> tuple[float, float]:
        """Return the milliseconds from the first beginning to the last end of the last launches, and those spun."""
        stamps = self._stamps.cpu().tolist()
        pairs = []
        for launch in range(stamps[0] - launches, stamps[0]):
            slot = launch % _STAMPS
            pairs.append((stamps[1 + 2 * slot], stamps[2 + 2 * slot]))
        spun_ns = sum(ended - began for began, ended in pairs)
        return (pairs[-1][1] - pairs[0][0]) / 1e6, spun_ns / 1e6


def _by_global_timer(rig: Rig, spin: _GlobalTimerSpin, duration_ms: float) -> DurationRow:
    """Compare the timer's figure with the kernels' own stamps over the very launches that it timed."""
    function = spin.of(duration_ms)
    times, true, spun = [], [], []
    for sample in _on_device(rig, function):
        span_ms, spun_ms = spin.last(sample.unrolled)
        times.append(sample)
        true.append(span_ms / sample.unrolled)
        spun.append(spun_ms / sample.unrolled)
    timed = [sample.ms for sample in times]
    error_ms = _typical_error(a - b for a, b in zip(timed, true, strict=True))
    return {
        "asked_ms": duration_ms,
        "unrolled": times[-1].unrolled,
        "queued": all(sample.queued for sample in times),
        "timed_ms": rounded(median(timed)),
        "true_ms": rounded(median(true)),
        "spun_ms": rounded(median(spun)),
        "error_ms": rounded(error_ms),
        "error_from_asked_ms": rounded(median(timed) - duration_ms),
    }


def _on_device(rig: Rig, function: Callable[..., None]) -> Iterator[DeviceTime]:
    """Time a callable by the device's clock again and again, as a block of samples does."""
    rig.timer.settle()
    sample = [rig.timer.time_call(function, ()) for _ in range(7)][-1]
    timed = None
    for _ in range(rig.pick(41, 9)):
        timed = rig.timer.time_on_device(function, (), sample, timed)
        if timed is None:
            raise TypeError(f"{type(rig.timer).__name__} has no clock of the device's own")
        yield timed


def _by_cycles(rig: Rig, duration_ms: float) -> DurationRow:
    """Compare with a long spin of the same kernel beside it, which events time without a relevant error."""
    long_amount = rig.amount(50.0)
    long_ms = rig.time_ms(rig.spin(long_amount), 3)
    short = rig.spin(rig.amount(duration_ms))
    true_ms = long_ms * short.amount / long_amount
    times = list(_on_device(rig, short))
    timed_ms = median(sample.ms for sample in times)
    return {
        "asked_ms": duration_ms,
        "unrolled": times[-1].unrolled,
        "queued": all(sample.queued for sample in times),
        "timed_ms": rounded(timed_ms),
        "true_ms": rounded(true_ms),
        "error_ms": rounded(timed_ms - true_ms),
        "error_from_asked_ms": rounded(timed_ms - duration_ms),
    }
