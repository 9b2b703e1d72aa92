"""The stages of a step, reported as it enters them, and its turn on the device."""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
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


class Turns:
    """The turns of a build or a load on its device: the shared lock while at least one thread computes, or it alone.

    A call returns the context of a part that computes beside others. ``waited_s`` are the seconds that it has waited
    for its turns so far.
    """

    def __init__(self, channel: Channel, device: Device, stage: str) -> None:
        self._channel, self._device, self._stage = channel, device, stage
        self._mutex, self._parts, self._held = threading.Lock(), 0, contextlib.ExitStack()
        self._is_alone = False
        self.waited_s = 0.0

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        """Hold the lock until the part is done; a part within a part, or while it is alone, waits for nothing."""
        with self._mutex:  # a second thread waits here while the first one waits for the device
            if not self._parts and not self._is_alone:
                self._hold(self._stage, exclusive=False)
            self._parts += 1
        try:
            yield
            self._settle()  # not after an error, which a second one would hide
        finally:
            with self._mutex:
                self._parts -= 1
                if not self._parts and not self._is_alone:
                    self._held.close()

    @contextlib.contextmanager
    def beside(self, *, in_turn: bool) -> Iterator[None]:
        """Be in the stage, beside no timing: as one part, or ``in_turn`` only in the parts that compute on a GPU."""
        from autotune.runtime.turn import computes_by

        if not in_turn or self._device.kind == "cpu":
            with self():
                yield
            return
        enter(self._channel, self._stage)
        with computes_by(self):
            yield

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Be alone on the device; parts around it let their lock go, and hold it again afterwards."""
        if self._is_alone:
            yield
            return
        self.begin_alone(self._stage)
        try:
            yield
            self._settle()
        finally:
            with self._mutex:
                self._held.close()
                self._is_alone = False
                if self._parts:
                    self._hold(self._stage, exclusive=False)

    def begin_alone(self, stage: str, *, first: Callable[[], None] = lambda: None) -> None:
        """Let the shared lock go, call ``first``, and be alone on the device, in a stage, until :meth:`close`.

        No other thread may compute when it begins; one that would begin to waits until the device is theirs.
        """
        self._settle()
        with self._mutex:
            self._held.close()
            first()
            self._hold(stage, exclusive=True)
            self._is_alone = True

    def close(self) -> None:
        """Let the device go."""
        with self._mutex:
            self._held.close()
            self._is_alone = False

    def _hold(self, stage: str, *, exclusive: bool) -> None:
        self.waited_s += self._held.enter_context(holding(self._channel, self._device, stage, exclusive=exclusive))

    def _settle(self) -> None:
        """Wait until the work that torch has begun on the device is done."""
        if self._device.kind == "cuda" and "torch" in sys.modules:
            import torch

            if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
                torch.cuda.synchronize(self._device.torch_name)


@contextlib.contextmanager
def loading(channel: Channel, device: Device, *, alone: bool, in_turn: bool = False) -> Iterator[None]:
    """Be in stage ``load``: alone on the device, or beside others except for the part that times kernels.

    With ``in_turn`` a load onto a GPU beside others holds the lock only in the parts that compute there.
    """
    from autotune.runtime.turn import takes_turn_by

    if alone:
        with holding(channel, device, "load", exclusive=True):
            yield
        return
    turns = Turns(channel, device, "load")
    with turns.beside(in_turn=in_turn), takes_turn_by(turns.alone):
        yield


@contextlib.contextmanager
def building(
    channel: Channel, device: Device, *, uses_device: bool = False, alone: bool = False, in_turn: bool = False
) -> Iterator[Turns]:
    """Be in stage ``build``: alone on the device, or beside other builds if it uses the device, or without any lock.

    With ``in_turn`` a build that uses a GPU beside others holds the lock only in the parts that compute there. A build
    for a CPU always uses it, and as a whole: no build runs beside a timing there. Yields the turns of such parts.
    """
    from autotune.runtime.turn import computes_by

    turns = Turns(channel, device, "build")
    if alone or device.kind == "cpu" or (uses_device and not in_turn):
        with holding(channel, device, "build", exclusive=alone):
            yield turns
        return
    enter(channel, "build")
    with computes_by(turns) if uses_device else contextlib.nullcontext():
        yield turns
