"""The free memory of a device, and a watch that steps give back what they took of it: DeviceMemory."""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from types import ModuleType

from autotune.measure.nvml import open_nvml
from autotune.records.device import Device
from autotune.runtime.host_memory import HostMemory

log = logging.getLogger(__name__)

LEFT_OVER_BYTES = 64 * 2**20
"""Less than any process with a context on a GPU takes (some hundred MiB); the driver's own share changes by less."""

SETTLE_S = 0.5
"""The driver may take a moment to give back the memory of a killed process; then the figure is read again."""


def free_bytes(device: Device, *, nvml: ModuleType | None = None) -> int | None:
    """Return the bytes of the device's memory that are free now; for a CPU, of the host's or the container's.

    ``None`` if that cannot be read.
    """
    if device.kind == "cpu":
        return HostMemory.read().available_bytes
    try:
        return device.memory_bytes - open_nvml(device, nvml).memory_used_bytes()
    except OSError:
        return None


class DeviceMemory:
    """Reads the used memory of a GPU before the first of several steps and after the last; warns if it has grown.

    A CPU is not watched: the memory of a process ends with it. May be used by several threads at once.
    """

    def __init__(
        self, device: Device, *, nvml: ModuleType | None = None, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._device, self._nvml, self._sleep = device, nvml, sleep
        self._lock, self._running = threading.Lock(), 0
        self._before: int | None = None

    @contextlib.contextmanager
    def around(self, step: str) -> Iterator[None]:
        """Read before and after a step, unless another step runs at that moment."""
        with self._lock:
            if self._running == 0:
                self._before = self._used()
            self._running += 1
        try:
            yield
        finally:
            with self._lock:
                self._running -= 1
                if self._running == 0:
                    self._warn(step)

    def _warn(self, step: str) -> None:
        left = self._left()
        if left > LEFT_OVER_BYTES:
            self._sleep(SETTLE_S)
            left = self._left()
        if left > LEFT_OVER_BYTES:
            log.warning(
                "after step %s, %.0f MiB more of %s's memory are used than before: by another program, or left over",
                step, left / 2**20, self._device.name,
            )  # fmt: skip

    def _left(self) -> int:
        after = None if self._before is None else self._used()
        return 0 if after is None or self._before is None else after - self._before

    def _used(self) -> int | None:
        if self._device.kind != "cuda":
            return None
        try:
            return open_nvml(self._device, self._nvml).memory_used_bytes()
        except OSError as error:
            log.debug("the device's memory cannot be read: %s", error)
            return None
