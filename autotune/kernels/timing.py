"""Checking and timing kernels of one problem on the device: KernelTimer."""

import math
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeAlias

from autotune.errors import WorkError
from autotune.kernel import LoadedKernel, resource_usage_of
from autotune.measure.statistics import median
from autotune.records.device import Device
from autotune.records.kernel_problem import BYTES, GemmProblem
from autotune.records.trial import Failure

if TYPE_CHECKING:
    from torch import Tensor

    from autotune.measure.timer import CpuTimer, CudaTimer

    Operands: TypeAlias = tuple[Tensor, Tensor, Tensor | None, Tensor | None]

UNIT_ROUNDOFF = {"fp16": 2.0**-11, "bf16": 2.0**-8, "fp32": 2.0**-24}
"""Half the distance from 1 to the next number of each type."""

ROUNDINGS = 4
"""The most roundings to the result's type: after the product, the bias, the residual and the activation."""

SPREAD = 8.0
"""The number of times 1/√k the sum of k products of independent normal numbers may be of the sum of their sizes: the
largest of 10⁸ such sums has 5.7 standard deviations, and the mean size of a product is 0.64."""

CERTAIN = 16
"""Consecutive roundings in the same direction, as far as they are visible in a sum of many normal numbers."""

GUARD = 4096
"""Elements before and after a result that no kernel may write."""

ABANDON_FACTOR = 4.0
"""A candidate whose first calls all take longer than this multiple of the best median is not timed to the end."""

FEWEST = 3
"""The least samples of a candidate."""

SETS, STRIDE = 4, 1_000_003
"""Sets of operands that the calls of rounds use in turn, and the distance of their seeds."""

HALF_WIDTH = 0.005
WARM_MS, WARM_LIMIT_S = 200.0, 0.5
"""The warm-up of the device by the first candidate of a process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TimingLimits:
    """The limits of sampling: until the median is known to 0.5%, and no longer than ``sampling_s``.

    A hopeless candidate ends after ``first_samples``.
    """

    sampling_s: float = 0.05
    least_samples: int = 20
    first_samples: int = 3

    def __post_init__(self) -> None:
        if not self.sampling_s > 0 or min(self.least_samples, self.first_samples) < FEWEST:
            raise ValueError(f"sampling takes time and at least {FEWEST} samples, found {self}")


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelResult:
    """The result of checking and timing a kernel; with a ``failure`` if its answer is wrong."""

    error: float | None
    samples_us: tuple[float, ...] = ()
    resource_usage: Mapping[str, float] = field(default_factory=dict)
    conditions: Mapping[str, object] = field(default_factory=dict)
    failure: Failure | None = None

    @property
    def median_us(self) -> float:
        """The median of the samples."""
        return median(self.samples_us)

    def as_dict(self) -> dict[str, object]:
        """Return plain data for JSON."""
        data: dict[str, object] = {"error": self.error, "made": dict(self.resource_usage)}
        if self.failure is not None:
            return {**data, "failure": self.failure.as_dict()}
        return {**data, "samples_us": list(self.samples_us), "conditions": dict(self.conditions)}


def error_bound(problem: GemmProblem) -> float:
    """The largest error of an element that rounding explains, relative to the sum of the sizes of its terms.

    Operands are independent normal numbers, so a result is about 1/√k of that sum, and so is what rounding to its type
    costs. Accumulators are fp32. Those of tensor cores, which take half-precision operands, cut off instead of
    rounding, so that errors add up along k; rounded ones go both ways, and k hardly shows.
    """
    k, accumulator = problem.k, UNIT_ROUNDOFF["fp32"]
    result = ROUNDINGS * UNIT_ROUNDOFF[problem.output] * min(1.0, SPREAD / math.sqrt(k))
    if problem.dtype == "fp32":
        return result + accumulator * min(k, CERTAIN)
    return result + 2 * accumulator * min(k, SPREAD * math.sqrt(k))


def needed_bytes(problem: GemmProblem) -> int:
    """Return the memory for a check: operands, also in fp64, results, the expected result and its terms' sizes."""
    operands = math.prod(problem.a_shape) + problem.n * problem.k
    results = problem.m * problem.n
    return operands * (BYTES[problem.dtype] + 2 * 8) + results * (3 * BYTES[problem.output] + 4 * 8)


class KernelTimer:
    """Random operands of one problem on a device, its answer in fp64, and a timer; one kernel after the other.

    The caller holds the device's lock. On a GPU the L2 cache is cold before every call and the device's own clock is
    read; a CPU's caches are in the state after the call before, and the clock is the wall clock.
    """

    def __init__(
        self, device: Device, problem: GemmProblem, compute: "Callable[..., Tensor]", *, seed: int,
        limits: TimingLimits, warm: bool = False,
    ) -> None:  # fmt: skip
        """``compute`` is the provider's: the problem in its operands' precision. A ``warm`` device is at full speed."""
        import torch

        from autotune.measure.clock import SystemClock
        from autotune.measure.observers import observers_for
        from autotune.measure.timer import CpuTimer, CudaTimer
        from autotune.runtime.switches import Switches

        Switches(tf32="off", threads=device.cores if device.kind == "cpu" else None).apply()
        if device.kind == "cuda":
            torch.cuda.set_device(device.torch_name)
        self._torch, self._device, self._problem = torch, device, problem
        self._seed, self._limits, self._clock = seed, limits, SystemClock()
        self._operands = self._drawn(seed)
        a, b = (operand.double() for operand in self._operands[:2])
        bias, residual = (None if operand is None else operand.double() for operand in self._operands[2:])
        self._expected = compute(problem, a, b, bias, residual)
        product = replace(problem, bias=False, activation="none", residual=False)
        self._sizes = compute(product, a.abs(), b.abs(), None, None)
        for added in (bias, residual):
            if added is not None:
                self._sizes += added.abs()
        del a, b, bias, residual
        if not bool(torch.isfinite(self._expected).all()):
            raise WorkError(
                f"the expected result of {problem.canonical}",
                found="a reference that is not finite",
                run="autotune doctor",
            )
        self._timer = (
            CpuTimer(self._clock) if device.kind == "cpu" else CudaTimer(self._clock, device.torch_name, l2="cold")
        )
        self._observers = observers_for(device, self._clock, canary=False)
        self._is_warm = warm

    def judge_and_time(self, kernel: LoadedKernel, best_us: float | None, going: Callable[[str], None]) -> KernelResult:
        """Check a kernel and time it; ``going`` gets the stage. Exceptions of the kernel are not caught.

        A kernel that is hopelessly slower than ``best_us`` is not timed to the end; its samples so far count.
        """
        going("check")
        error, failure = self.judge(kernel)
        if failure is not None:
            return KernelResult(error=error, resource_usage=dict(resource_usage_of(kernel)), failure=failure)
        going("measure")
        with self._torch.inference_mode():
            samples_us, conditions = self._timed(kernel, best_us)
        return KernelResult(
            error=error, samples_us=samples_us, resource_usage=dict(resource_usage_of(kernel)), conditions=conditions
        )

    def rounds(
        self, kernels: Mapping[str, LoadedKernel], *, rounds: int, samples: int
    ) -> tuple[dict[str, list[list[float]]], dict[str, object]]:
        """Time checked kernels against each other: in every round each has a block of samples, in random order.

        Each call uses the next of :data:`SETS` sets of operands, so that none stays in a cache that is not flushed.
        Returns by name a list of microseconds for each round, and the conditions.
        """
        from autotune.measure.flags import flags

        sets = [(*drawn, self._fresh()[0]) for drawn in (self._operands, *map(self._drawn, self._seeds(SETS - 1)))]
        order = random.Random(self._seed)
        blocks_us: dict[str, list[list[float]]] = {name: [] for name in sorted(kernels)}
        with self._torch.inference_mode():
            turns = {name: _TimingTurn(kernel, sets, self._timer) for name, kernel in kernels.items()}
            self._observers.before()
            for _ in range(rounds):
                for name in order.sample(sorted(turns), len(turns)):
                    blocks_us[name].append([1e3 * turns[name].ms() for _ in range(samples)])
            readings = self._observers.after()
        conditions = {
            "clock": {name: turn.clock for name, turn in turns.items()}, "seed": self._seed, "process": os.getpid(),
            "queued": {name: turn.queued for name, turn in turns.items()}, "l2": self._timer.l2, "sets": SETS,
            "readings": readings, "flags": list(flags(readings)),
        }  # fmt: skip
        return blocks_us, conditions

    def _seeds(self, count: int) -> Iterator[int]:
        """Yield seeds of more operands; a process with the next seed draws others."""
        return (self._seed + STRIDE * number for number in range(1, count + 1))

    def _drawn(self, seed: int) -> "Operands":
        """Draw normal numbers, as activations and weights are; products of a row and a column stay near 1."""
        problem, torch = self._problem, self._torch
        dtype, result_dtype = (getattr(torch, _TORCH[name]) for name in (problem.dtype, problem.output))
        generator = torch.Generator(device=self._device.torch_name).manual_seed(seed)

        def draw(*shape: int) -> "Tensor":
            drawn: Tensor = torch.randn(*shape, generator=generator, device=self._device.torch_name)
            return drawn

        def matrix(rows: int, major: str) -> "Tensor":
            return draw(rows, problem.k) if major == "k" else draw(problem.k, rows).t()

        a = (draw(*problem.a_shape) if problem.window else matrix(problem.m, problem.a_major)).to(dtype)
        b = (matrix(problem.n, problem.b_major) / math.sqrt(problem.k)).to(dtype)
        bias = draw(problem.n) if problem.bias else None
        return a, b, bias, draw(problem.m, problem.n).to(result_dtype) if problem.residual else None

    def _fresh(self) -> "tuple[Tensor, Tensor]":
        """Return a result full of NaN, and the memory around it, full of NaN too."""
        size = self._problem.m * self._problem.n
        dtype = getattr(self._torch, _TORCH[self._problem.output])
        around = self._torch.full((size + 2 * GUARD,), math.nan, dtype=dtype, device=self._device.torch_name)
        return around[GUARD : GUARD + size].view(self._problem.m, self._problem.n), around

    def judge(self, kernel: LoadedKernel) -> tuple[float | None, Failure | None]:
        """Check a kernel; returns its largest error, and its failure if rounding does not explain that.

        It is called twice, each time into a fresh result: the second call runs in the state after the first one.
        """
        worst = 0.0
        for _ in range(2):
            out, around = self._fresh()
            with self._torch.inference_mode():
                own = kernel(*self._operands, out)
            out = out if own is None else own
            if not bool(self._torch.isfinite(out).all()):
                return None, Failure(stage="check", kind="non_finite", detail="a result is not finite, or not written")
            if not bool(around[:GUARD].isnan().all() and around[-GUARD:].isnan().all()):
                return None, Failure(stage="check", kind="error", detail="it writes outside of its result")
            worst = max(worst, float(((out.double() - self._expected).abs() / self._sizes).max()))
        bound = error_bound(self._problem)
        if worst <= bound:
            return worst, None
        detail = f"an element is off by {worst:.2e} of its terms, and rounding explains {bound:.2e}"
        return worst, Failure(stage="check", kind="inaccurate", detail=detail, figure=worst)

    def _timed(self, kernel: LoadedKernel, best_us: float | None) -> tuple[tuple[float, ...], dict[str, object]]:
        from autotune.measure.flags import flags, invalid
        from autotune.measure.screening import RETAKES, warm_up

        out, _ = self._fresh()
        inputs = (*self._operands, out)
        if not self._is_warm:
            warm_up(kernel, [inputs], self._timer, clock=self._clock, min_ms=WARM_MS, limit_s=WARM_LIMIT_S)
            self._is_warm = True
        retaken = -1
        valid = False
        while not valid and retaken < RETAKES:
            retaken += 1
            self._observers.before()
            samples_us, around = self._sampled(kernel, inputs, best_us)
            readings = self._observers.after()
            valid = not invalid(readings)
        conditions = {
            **around, "seed": self._seed, "process": os.getpid(), "l2": self._timer.l2, "readings": readings,
            "flags": list(flags(readings)), "retaken": retaken,
        }  # fmt: skip
        return samples_us, conditions

    def _sampled(
        self, kernel: LoadedKernel, inputs: "tuple[Tensor | None, ...]", best_us: float | None
    ) -> tuple[tuple[float, ...], dict[str, object]]:
        """Sample single calls until a rule stops it, on the device's clock if it has one, else on the wall clock."""
        from autotune.measure.stopping import FirstOf, Hopeless, IntervalReached, StoppingRule, TimeLimit

        limits = self._limits
        self._timer.settle()
        call = self._timer.time_call(kernel, inputs)
        grouped = self._timer.grouping(call.wall_ms)
        rules: list[StoppingRule] = [
            IntervalReached(HALF_WIDTH, min_samples=limits.least_samples, min_time_ms=0.0),
            TimeLimit(self._clock, limits.sampling_s, min_samples=FEWEST),
        ]
        if best_us is not None:
            rules.insert(0, Hopeless(ABANDON_FACTOR * best_us / 1e3, min_samples=limits.first_samples))
        rule, reason = FirstOf(rules), None
        on_device = self._timer.time_on_device(kernel, inputs, call)
        clock, queued = "device" if on_device is not None else "wall", True
        samples_us: list[float] = []
        while reason is None:
            if clock == "wall":
                ms = self._timer.time_call(kernel, inputs, grouped).wall_ms
            else:
                on_device = self._timer.time_on_device(kernel, inputs, call, on_device)
                if on_device is None:
                    raise WorkError("the device's clock returned no more times", run="autotune doctor")
                ms, queued = on_device.ms, queued and on_device.queued
            samples_us.append(1e3 * ms)
            rule.observe(ms)
            reason = rule.finished()
        return tuple(samples_us), {"clock": clock, "queued": queued, "grouped": grouped, "stopped": reason}


class _TimingTurn:
    """One kernel's calls in rounds, each on the next set of operands, on the clock that :class:`KernelTimer` reads."""

    def __init__(
        self, kernel: LoadedKernel, sets: "Sequence[tuple[Tensor | None, ...]]", timer: "CpuTimer | CudaTimer"
    ) -> None:
        self._kernel, self._sets, self._timer, self._next = kernel, sets, timer, 0
        timer.settle()
        for _ in range(FEWEST):
            self._call = timer.time_call(kernel, sets[0])
        self._grouped = timer.grouping(self._call.wall_ms)
        self._device_time = timer.time_on_device(kernel, sets[0], self._call)
        self.clock = "wall" if self._device_time is None else "device"
        self.queued = self._device_time is None or self._device_time.queued

    def ms(self) -> float:
        """Time one call; raises WorkError if the device's clock returns no time."""
        inputs, self._next = self._sets[self._next % len(self._sets)], self._next + 1
        if self.clock == "wall":
            return float(self._timer.time_call(self._kernel, inputs, self._grouped).wall_ms)
        reading = self._timer.time_on_device(self._kernel, inputs, self._call, self._device_time)
        if reading is None:
            raise WorkError("the device's clock returned no more times", run="autotune doctor")
        self._device_time, self.queued = reading, self.queued and reading.queued
        return float(reading.ms)


_TORCH = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}
