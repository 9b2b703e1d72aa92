"""A load is beside others on its device, and alone for the part that times kernels."""

import threading

import pytest

from autotune.execute.stages import loading
from autotune.measure.lock import device_lock
from autotune.records.device import Device
from autotune.runtime.turn import alone

DEVICE = Device(kind="cuda", name="GPU", uuid="gpu-of-test-stages", capability=(9, 0))


class Reports:
    """The channel of a step: keeps the stages that it sends."""

    purpose = "a test"

    def __init__(self):
        self.stages = []

    def send(self, message):
        self.stages.append(message["stage"])


def is_free(exclusive, patience_s=0.3):
    """Return whether another holder gets the device's lock within a while."""
    got, done = threading.Event(), threading.Event()

    def take():
        with device_lock(DEVICE.uuid, exclusive):
            got.set()
            done.wait()

    thread = threading.Thread(target=take)
    thread.start()
    free = got.wait(patience_s)
    done.set()
    return free, thread


def test_only_the_part_that_times_kernels_is_alone():
    channel = Reports()
    with loading(channel, DEVICE, alone=False):
        free, thread = is_free(exclusive=False)
        assert free
        thread.join()
        with alone():
            free, thread = is_free(exclusive=False)
            assert not free
        thread.join(10)  # it is next, and the rest of the load is beside it
        assert not thread.is_alive()
        free, thread = is_free(exclusive=True)
        assert not free
    thread.join(10)
    assert not thread.is_alive() and channel.stages.count("load") == 3


def test_a_load_that_fails_while_it_is_alone_gives_the_device_back():
    with pytest.raises(ValueError, match="no kernel"), loading(Reports(), DEVICE, alone=False), alone():
        raise ValueError("no kernel")
    free, thread = is_free(exclusive=True, patience_s=10)
    thread.join()
    assert free


def test_a_load_that_is_alone_from_its_start_waits_for_no_second_turn():
    with loading(Reports(), DEVICE, alone=True):
        free, thread = is_free(exclusive=False)
        assert not free
        with alone():
            pass
    thread.join(10)
    assert not thread.is_alive()
