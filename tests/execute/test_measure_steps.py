"""A candidate that loads early holds its GPU only while it computes, until it has its turn to be alone there."""

import threading
from pathlib import Path

import pytest

from autotune.execute import measure_steps
from autotune.execute.channel import ChannelClosed
from autotune.execute.measure_steps import _Turn
from autotune.execute.requests import MeasureOrder, MeasureRequest
from autotune.measure.lock import device_lock
from autotune.records.device import Device
from autotune.records.objective import Objective
from autotune.runtime.turn import alone, computing, shared_turn

DEVICE = Device(kind="cuda", name="GPU", uuid="gpu-of-test-measure-steps", capability=(9, 0))
CPU = Device(kind="cpu", name="CPU", uuid="cpu-of-test-measure-steps", cores=2)
ORDER = MeasureOrder(abandon_ms=2.5).as_dict()


class Reports:
    """The channel of a step: keeps what it sends, and which locks others could have had as it waited for its order."""

    purpose = "a test"

    def __init__(self, order=ORDER):
        self.sent, self.order, self.was_free = [], order, None

    def send(self, message):
        self.sent.append(message.get("stage", "loaded"))

    def receive(self):
        self.was_free = is_free(exclusive=True)
        return self.order


def is_free(exclusive, device=DEVICE):
    """Return whether another holder gets the device's lock within a while; otherwise it has it for a moment later."""
    got, done = threading.Event(), threading.Event()

    def take():
        with device_lock(device.uuid, exclusive):
            got.set()
            done.wait()

    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    free = got.wait(0.3)
    done.set()
    if free:
        thread.join()
    return free


def request(early=True, device=DEVICE):
    return MeasureRequest(
        folder=Path(), artifact=Path(), device=device, objective=Objective(), limit_s=1.0, seed=0, early=early
    )


@pytest.fixture(params=[True])
def in_turn(request, monkeypatch):
    """Whether the backend of the artifact loads in turn."""
    monkeypatch.setattr(measure_steps, "loads_in_turn", lambda artifact: request.param)
    return request.param


def test_a_load_in_turn_holds_the_gpu_only_while_it_computes_until_it_is_checked(in_turn):
    channel = Reports()
    with _Turn(channel, request()) as turn:
        assert is_free(exclusive=True)
        with computing():
            assert is_free(exclusive=False)
            assert not is_free(exclusive=True)
        assert channel.sent == ["load", "load"] and turn.abandon_ms is None
        turn.begin_checking()
        assert channel.was_free and turn.abandon_ms == 2.5
        assert channel.sent[2] == "loaded" and channel.sent[-1] == "check"
        with computing(), alone(), shared_turn()():
            assert not is_free(exclusive=False)
        assert not is_free(exclusive=False), "what is loaded again in its turn does not end it"
    assert is_free(exclusive=True)


@pytest.mark.parametrize("within", [False, True])
def test_a_load_in_turn_that_times_kernels_has_its_turn_from_then_on(in_turn, within):
    """Also if it is within a part that computes: its shared lock goes first."""
    channel = Reports()
    with _Turn(channel, request()) as turn:
        if within:
            with computing():
                with alone():
                    assert not is_free(exclusive=False)
                assert not is_free(exclusive=False)
        else:
            with alone():
                assert not is_free(exclusive=False)
        assert channel.was_free and not is_free(exclusive=False)
        with computing():
            assert not is_free(exclusive=False)
        turn.begin_checking()
        assert channel.sent.count("loaded") == 1 and channel.sent[-1] == "check"
        assert not is_free(exclusive=False)
    assert is_free(exclusive=True)


@pytest.mark.parametrize(("in_turn", "device"), [(False, DEVICE), (True, CPU)], indirect=["in_turn"])
def test_every_other_early_load_is_beside_no_timing(in_turn, device):
    """One of a plug-in that does not say when it computes, and every one on a CPU."""
    with _Turn(Reports(), request(device=device)) as turn:
        with computing():
            pass
        assert shared_turn() is None
        assert is_free(exclusive=False, device=device)
        assert not is_free(exclusive=True, device=device)
        turn.begin_checking()
        assert not is_free(exclusive=False, device=device)
    assert is_free(exclusive=True, device=device)


def test_one_that_does_not_load_early_is_alone_from_its_start():
    channel = Reports()
    with _Turn(channel, request(early=False)) as turn:
        with computing(), alone():
            assert not is_free(exclusive=False)
        turn.begin_checking()
        assert not is_free(exclusive=False)
    assert channel.sent == ["load", "check"] and is_free(exclusive=True)


def test_a_load_whose_coordinator_is_gone_gives_the_gpu_back(in_turn):
    with pytest.raises(ChannelClosed), _Turn(Reports(order=None), request()), computing(), alone():
        pytest.fail("nobody has ordered it")
    assert is_free(exclusive=True)


def test_a_load_that_fails_while_it_computes_gives_the_gpu_back(in_turn):
    with pytest.raises(ValueError, match="no kernel"), _Turn(Reports(), request()), computing():
        raise ValueError("no kernel")
    assert is_free(exclusive=True)
