"""The device under test and work of chosen length for it: Rig.

There are two kinds of work. The time of a *spin* is linear in its amount: iterations of a hash that stays in the
core's registers (it also counts time in which the core is taken away, and follows its clock, as a model does), or
cycles of an SM. A *product* is a chain of matrix products, which has the noise that a model has.
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

from autotune.errors import DeviceError
from autotune.measure.clock import Clock, SystemClock
from autotune.measure.statistics import median
from autotune.measure.timer import CpuTimer, CudaTimer, Function, Timer
from autotune.programs.catalogue import command_of

if TYPE_CHECKING:
    import torch

_PRODUCT_SIZE = {"cpu": 128, "cuda": 1024}
_PROBE_AMOUNT = {"cpu": 2_000, "cuda": 20_000_000}
NAME = "selftest"


class Spin:
    """A finalist whose time is proportional to ``amount``: hash iterations on a CPU, clock cycles on a GPU."""

    def __init__(self, kind: Literal["cpu", "cuda"], amount: int) -> None:
        self.amount = max(1, amount)
        if kind == "cuda":
            import torch

            self._run: Callable[[int], object] = torch.cuda._sleep
        else:
            self._run = _hash

    def prepare(self) -> None:
        """Need no switch."""

    def __call__(self, *inputs: object) -> None:
        """Spin; the inputs are ignored."""
        self._run(self.amount)


def _hash(iterations: int) -> None:
    hashlib.pbkdf2_hmac("sha256", b"work", b"salt", iterations)


class Product:
    """A finalist that multiplies its input, a square matrix, ``repeats`` times by another."""

    def __init__(self, factor: "torch.Tensor", repeats: int) -> None:
        self._factor, self._repeats = factor, max(1, repeats)

    def prepare(self) -> None:
        """Need no switch."""

    def __call__(self, *inputs: "torch.Tensor") -> "torch.Tensor":
        """Return the last product."""
        result = inputs[0]
        for _ in range(self._repeats):
            result = result @ self._factor
        return result


class BusyWait:
    """Waits on the clock, however often the core is taken away, and keeps the true duration."""

    def __init__(self, clock: Clock, duration_ms: float) -> None:
        self._now_ns, self._duration_ns = clock.now_ns, round(duration_ms * 1e6)
        self.waited_ms = 0.0

    def __call__(self, *inputs: object) -> None:
        """Wait."""
        began_ns = self._now_ns()
        waited_ns = 0
        while waited_ns < self._duration_ns:
            waited_ns = self._now_ns() - began_ns
        self.waited_ms = waited_ns / 1e6


class Rig:
    """One device with its timer; ``quick`` asks the checks for a short form, ``seed`` fixes every random choice."""

    def __init__(self, device: str, *, quick: bool = False, seed: int = 0) -> None:
        self.device, self.quick, self.seed = device, quick, seed
        self.kind: Literal["cpu", "cuda"] = "cpu" if device == "cpu" else "cuda"
        self.clock: Clock = SystemClock()
        if self.kind == "cuda":
            import torch

            torch.cuda.set_device(device)
            self.timer: Timer = CudaTimer(self.clock, device)
        else:
            self.timer = CpuTimer(self.clock)
        self._per_ms: float | None = None
        self._product: tuple[Product, tuple[tuple[torch.Tensor], ...]] | None = None

    @property
    def typical_ms(self) -> float:
        """The duration of the work of most checks; shorter calls would be grouped or unrolled."""
        return 1.2 if self.kind == "cpu" else 0.25

    def pick(self, whole: int, quick: int) -> int:
        """Return the number for the whole form or for the quick one."""
        return quick if self.quick else whole

    def amount(self, duration_ms: float) -> int:
        """Return the amount of spinning that takes about this long; the rate is measured once."""
        if self._per_ms is None:
            probe = self.spin(_PROBE_AMOUNT[self.kind])
            self._per_ms = probe.amount / self.time_ms(probe, 11)
        return max(1, round(duration_ms * self._per_ms))

    def spin(self, amount: int) -> Spin:
        """Return a spin of an amount."""
        return Spin(self.kind, amount)

    def spin_for(self, duration_ms: float) -> Spin:
        """Return a spin of about this duration."""
        return self.spin(self.amount(duration_ms))

    def product(self) -> "tuple[Product, tuple[tuple[torch.Tensor], ...]]":
        """Return a chain of matrix products of about ``typical_ms``, and two sets of inputs; the same each time."""
        if self._product is None:
            import torch

            if self.kind == "cpu":
                torch.set_num_threads(1)
            size = _PRODUCT_SIZE[self.kind]
            generator = torch.Generator().manual_seed(self.seed)
            drawn = [torch.randn(size, size, generator=generator).to(self.device) for _ in range(3)]
            factor = drawn[0] / size**0.5
            inputs = tuple((matrix,) for matrix in drawn[1:])
            repeats = 32
            once_ms = self.time_ms(Product(factor, repeats), 21, inputs[0]) / repeats
            self._product = (Product(factor, round(self.typical_ms / once_ms)), inputs)
        return self._product

    def time_ms(self, function: Function, times: int, inputs: Sequence[object] = ()) -> float:
        """Return the median time of single calls, on the device's own clock if it has one."""
        self.timer.settle()
        durations_ms = []
        for _ in range(times):
            sample = self.timer.time_call(function, inputs)
            on_device = self.timer.time_on_device(function, inputs, sample)
            durations_ms.append(sample.wall_ms if on_device is None else on_device.ms)
        return median(durations_ms[times // 4 :])


def chosen_device(name: str) -> str:
    """Turn auto, cpu, cuda or cuda:N into ``cpu`` or ``cuda:N``; DeviceError if there is no such device."""
    if name == "cpu":
        return "cpu"
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return "cuda:0" if count else "cpu"
    index = "0" if name == "cuda" else name.removeprefix("cuda:")
    if not (name == "cuda" or name.startswith("cuda:")) or not index.isdecimal() or int(index) >= count:
        raise DeviceError(
            f"device {name!r} was asked for",
            found=f"{count} CUDA devices",
            expected="auto, cpu, cuda or cuda:N",
            run=f"{command_of(NAME)} --device cpu",
        )
    return f"cuda:{int(index)}"
