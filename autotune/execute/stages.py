"""The stages of a step, reported as it enters them, and its turn on the device."""

import contextlib
import sys
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from autotune.execute.channel import Channel
from autotune.execute.message import WAIT
from autotune.records.device import Device

if TYPE_CHECKING:
    from autotune.measure.lock_holders import Holders


def enter(channel: Channel, stage: str) -> None:
    """Report to the coordinator that the step is in a stage from now on."""
    channel.send({"stage": stage, "at": time.monotonic()})


@contextlib.contextmanager
def holding(channel: Channel, device: Device, stage: str, *, exclusive: bool) -> Iterator[float]:
    """Wait until the device is free, reporting which processes have it, and be in a stage from then on.

    Yields the seconds of waiting.
    """
    from autotune.measure.lock import device_lock

    def on_wait(holders: "Holders") -> None:
        text = f"waiting for {device.name}: {holders.text}"
        channel.send({"stage": WAIT, "at": time.monotonic(), "holder": text, "pids": list(holders.pids)})

    with device_lock(device.uuid, exclusive, purpose=channel.purpose, on_wait=on_wait) as waited_s:
        enter(channel, stage)
        yield waited_s


@contextlib.contextmanager
def loading(channel: Channel, device: Device, *, alone: bool) -> Iterator[None]:
    """Be in stage ``load``: alone on the device, or beside others except for the part that times kernels."""
    from autotune.runtime.turn import takes_turn_by

    with contextlib.ExitStack() as held:

        @contextlib.contextmanager
        def turn() -> Iterator[None]:
            held.close()
            with holding(channel, device, "load", exclusive=True):
                yield
            held.enter_context(holding(channel, device, "load", exclusive=False))

        held.enter_context(holding(channel, device, "load", exclusive=alone))
        with contextlib.nullcontext() if alone else takes_turn_by(turn):
            yield


class SharedTurns:
    """The turns of a build on its device: it holds the shared lock while at least one thread computes there.

    A call returns the context of a part that computes. ``waited_s`` are the seconds that parts have waited so far.
    """

    def __init__(self, channel: Channel, device: Device) -> None:
        self._channel, self._device = channel, device
        self._mutex, self._parts, self._held = threading.Lock(), 0, contextlib.ExitStack()
        self.waited_s = 0.0

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        """Hold the lock until the part is done; a part within a part waits for nothing."""
        with self._mutex:  # a second thread waits here while the first one waits for the device
            if not self._parts:
                self.waited_s += self._held.enter_context(
                    holding(self._channel, self._device, "build", exclusive=False)
                )
            self._parts += 1
        try:
            yield
            self._settle()  # not after an error, which a second one would hide
        finally:
            with self._mutex:
                self._parts -= 1
                if not self._parts:
                    self._held.close()

    def _settle(self) -> None:
        """Wait until the work that torch has begun on the device is done."""
        if self._device.kind == "cuda" and "torch" in sys.modules:
            import torch

            if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
                torch.cuda.synchronize(self._device.torch_name)


@contextlib.contextmanager
def building(
    channel: Channel, device: Device, *, uses_device: bool = False, alone: bool = False, in_turn: bool = False
) -> Iterator[SharedTurns]:
    """Be in stage ``build``: alone on the device, or beside other builds if it uses the device, or without any lock.

    With ``in_turn`` a build that uses a GPU beside others holds the lock only in the parts that compute there. A build
    for a CPU always uses it, and as a whole: no build runs beside a timing there. Yields the turns of such parts.
    """
    from autotune.runtime.turn import computes_by

    turns = SharedTurns(channel, device)
    if alone or device.kind == "cpu" or (uses_device and not in_turn):
        with holding(channel, device, "build", exclusive=alone):
            yield turns
        return
    enter(channel, "build")
    with computes_by(turns) if uses_device else contextlib.nullcontext():
        yield turns
