"""A build holds its GPU as its backend declares, and its seconds are those that it worked."""

import contextlib
import threading
import time

import pytest

from autotune import registry
from autotune.execute.build_steps import build
from autotune.execute.message import WAIT
from autotune.execute.requests import BuildRequest
from autotune.measure.lock import device_lock
from autotune.records.configuration import Configuration
from autotune.records.device import Device
from autotune.runtime.switches import Switches
from autotune.runtime.turn import computing
from autotune.testing.toy_models import toy_source

DEVICE = Device(kind="cuda", name="GPU", uuid="gpu-of-test-build-steps", capability=(9, 0))
WAITS_S = 0.5


class Plugin:
    """A backend that does something, and then the same again where it computes on the device."""

    name = "toy"
    toolchain = ()
    build_uses_device = True

    def __init__(self, work):
        self.work = work

    def times_kernels_at_build(self, configuration):
        return False

    def build(self, model, configuration, device, folder):
        self.work()
        with computing():
            self.work()


class PluginInTurn(Plugin):
    builds_in_turn = True


class Reports:
    """The channel of a step; ``waits`` is set when the step waits for the device."""

    purpose = "a test"

    def __init__(self):
        self.waits = threading.Event()

    def send(self, message):
        if message["stage"] == WAIT:
            self.waits.set()


@contextlib.contextmanager
def timing(channel):
    """Have the device alone until a step has waited for a while; yields a function that returns whether that lasts."""
    held = threading.Event()

    def take():
        with device_lock(DEVICE.uuid, True):
            held.set()
            channel.waits.wait(30)
            time.sleep(WAITS_S)
            held.clear()

    thread = threading.Thread(target=take)
    thread.start()
    assert held.wait(10)
    yield held.is_set
    thread.join()


@pytest.mark.parametrize("plugin", [Plugin, PluginInTurn])
def test_a_backend_that_builds_in_turn_waits_when_it_computes_and_any_other_before_it_begins(
    plugin, tmp_path, monkeypatch
):
    beside = []
    source = toy_source("tokens", tmp_path)
    target = tmp_path / "target"
    target.mkdir()
    configuration = Configuration.of("toy", {"precision": "fp32"})
    request = BuildRequest(folder=source.folder, configuration=configuration, device=DEVICE, target=target)
    monkeypatch.setattr(Switches, "apply", lambda self: None)
    channel = Reports()
    with timing(channel) as lasts:
        monkeypatch.setattr(registry, "backend", lambda name: plugin(lambda: beside.append(lasts())))
        begin = time.monotonic()
        answer = build(request, channel)
        whole_s = time.monotonic() - begin
    assert beside == [plugin is PluginInTurn, False]
    assert 0 < answer.build_s < whole_s - WAITS_S, "waiting is no work"
