"""Where a step is, told as it goes there, and its turn on the device."""

import contextlib
import time
from collections.abc import Iterator

from autotune.device import Device
from autotune.execute.channel import Channel
from autotune.execute.message import WAIT


def enter(channel: Channel, stage: str) -> None:
    """Tell the coordinator that the step is in a stage from now on."""
    channel.send({"stage": stage, "at": time.monotonic()})


@contextlib.contextmanager
def holding(channel: Channel, device: Device, stage: str, *, exclusive: bool) -> Iterator[None]:
    """Wait until the device is free, and be in a stage from then on."""
    from autotune.measure.lock import device_lock

    with device_lock(device.uuid, exclusive, on_wait=lambda: enter(channel, WAIT)):
        enter(channel, stage)
        yield
