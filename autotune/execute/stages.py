"""The stages of a step, reported as it enters them, and its turn on the device."""

import contextlib
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
def holding(channel: Channel, device: Device, stage: str, *, exclusive: bool) -> Iterator[None]:
    """Wait until the device is free, reporting which processes have it, and be in a stage from then on."""
    from autotune.measure.lock import device_lock

    def on_wait(holders: "Holders") -> None:
        text = f"waiting for {device.name}: {holders.text}"
        channel.send({"stage": WAIT, "at": time.monotonic(), "holder": text, "pids": list(holders.pids)})

    with device_lock(device.uuid, exclusive, purpose=channel.purpose, on_wait=on_wait):
        enter(channel, stage)
        yield


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


@contextlib.contextmanager
def building(channel: Channel, device: Device, *, uses_device: bool = False, alone: bool = False) -> Iterator[None]:
    """Be in stage ``build``: alone on the device, or beside other builds if it uses the device, or without any lock.

    A build for a CPU always uses it: no build runs beside a timing there.
    """
    if not (alone or uses_device or device.kind == "cpu"):
        enter(channel, "build")
        yield
        return
    with holding(channel, device, "build", exclusive=alone):
        yield
