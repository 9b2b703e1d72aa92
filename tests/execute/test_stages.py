"""A load is alone on its device for the part that times kernels, and a build beside no timing while it computes."""

import contextlib
import threading
import time

import pytest

from autotune.execute.stages import building, loading
from autotune.measure.lock import device_lock
from autotune.records.device import Device
from autotune.runtime.turn import alone, computing, shared_turn

CPU = Device(kind="cpu", name="CPU", uuid="cpu-of-test-stages", cores=2)
DEVICE = Device(kind="cuda", name="GPU", uuid="gpu-of-test-stages", capability=(9, 0))


class Reports:
    """The channel of a step: keeps the stages that it sends."""

    purpose = "a test"

    def __init__(self):
        self.stages = []

    def send(self, message):
        self.stages.append(message["stage"])


def is_free(exclusive, patience_s=0.3, device=DEVICE):
    """Return whether another holder gets the device's lock within a while."""
    got, done = threading.Event(), threading.Event()

    def take():
        with device_lock(device.uuid, exclusive):
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


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("load", lambda channel: loading(channel, DEVICE, alone=False, in_turn=True)),
        ("build", lambda channel: building(channel, DEVICE, uses_device=True, in_turn=True)),
    ],
)
def test_a_load_or_build_in_turns_lets_others_be_timed_except_while_it_computes(name, step):
    channel = Reports()
    with step(channel):
        free, thread = is_free(exclusive=True)
        assert free
        thread.join()
        with computing():
            free, thread = is_free(exclusive=False)
            assert free, "they compute beside one another"
            thread.join()
            free, timing = is_free(exclusive=True)
            assert not free
        timing.join(10)  # it is next although the step has not ended
        assert not timing.is_alive()
    assert channel.stages == [name, name]


@pytest.mark.parametrize(("device", "in_turn"), [(DEVICE, False), (CPU, True)])
def test_every_other_load_holds_its_device_as_a_whole(device, in_turn):
    """One of a plug-in that does not say when it computes, and every load for a CPU."""
    with loading(Reports(), device, alone=False, in_turn=in_turn):
        with computing():  # nothing to wait for
            pass
        assert shared_turn() is None
        free, thread = is_free(exclusive=True, device=device)
        assert not free
    thread.join(10)
    assert not thread.is_alive()


def test_a_load_that_is_alone_waits_for_no_shared_turn():
    with loading(Reports(), DEVICE, alone=False, in_turn=True):
        with alone():
            free, timing = is_free(exclusive=True)  # it would be next, before any shared turn
            assert not free
            with alone(), computing():
                free, thread = is_free(exclusive=False)
                assert not free and timing.is_alive()
            with shared_turn()():
                assert timing.is_alive()
        for each in (timing, thread):
            each.join(10)
            assert not each.is_alive()
        free, thread = is_free(exclusive=True)
        assert free, "it holds nothing once it is no longer alone"
        thread.join()


def test_a_part_that_needs_to_be_alone_lets_the_shared_lock_go_first_and_has_it_again_afterwards():
    channel = Reports()
    with loading(channel, DEVICE, alone=False, in_turn=True):
        with computing():
            free, timing = is_free(exclusive=True)  # whoever waits already is next
            assert not free
            with alone():
                assert not timing.is_alive()
                free, beside = is_free(exclusive=False)
                assert not free
            beside.join(10)
            free, timing = is_free(exclusive=True)
            assert not free and not beside.is_alive()
        timing.join(10)
        assert not timing.is_alive()
    assert channel.stages[0] == "load" and [name for name in channel.stages if name != "wait"] == ["load"] * 4


def test_a_part_whose_time_alone_fails_still_computes_beside_no_timing():
    with loading(Reports(), DEVICE, alone=False, in_turn=True), computing():
        with pytest.raises(ValueError, match="no kernel"), alone():
            raise ValueError("no kernel")
        free, thread = is_free(exclusive=True)
        assert not free
    thread.join(10)
    assert not thread.is_alive()


def test_a_part_within_a_part_waits_for_nothing_even_if_a_timing_waits():
    channel = Reports()
    with building(channel, DEVICE, uses_device=True, in_turn=True):
        with computing():
            free, thread = is_free(exclusive=True)
            assert not free
            with computing(), computing():
                pass
            assert thread.is_alive(), "the outer part still computes"
        thread.join(10)
        assert not thread.is_alive()
    assert channel.stages.count("build") == 2


def test_the_turn_of_several_threads_ends_with_the_last_of_them():
    channel = Reports()
    entered, leave = threading.Event(), threading.Event()

    def compute(turn):
        with turn():
            entered.set()
            leave.wait()

    with building(channel, DEVICE, uses_device=True, in_turn=True):
        with computing():
            other = threading.Thread(target=compute, args=(shared_turn(),))
            other.start()
            assert entered.wait(10)
        free, timing = is_free(exclusive=True)
        assert not free
        leave.set()
        other.join()
        timing.join(10)
        assert not timing.is_alive()
    assert channel.stages == ["build", "build"], "the threads had one turn"


@contextlib.contextmanager
def timed_for(seconds):
    """Time something on the device for a while; yields an event that is set at its end."""
    held, end = threading.Event(), threading.Event()

    def take():
        with device_lock(DEVICE.uuid, True):
            held.set()
            time.sleep(seconds)
            end.set()

    thread = threading.Thread(target=take)
    thread.start()
    assert held.wait(10)
    yield end
    thread.join()


def test_a_part_that_waits_reports_it_and_the_build_knows_for_how_long():
    channel = Reports()
    with timed_for(0.5) as ended, building(channel, DEVICE, uses_device=True, in_turn=True) as turns:
        assert turns.waited_s == 0 and not ended.is_set()
        with computing():
            assert ended.is_set()
        assert 0.2 < turns.waited_s < 10
    assert channel.stages[:2] == ["build", "wait"] and channel.stages[-1] == "build"


def test_work_that_torch_has_begun_on_the_gpu_is_done_when_the_turn_ends(monkeypatch):
    import torch

    settled = []

    def synchronize(device):
        free, thread = is_free(exclusive=True)
        settled.append((device, free, thread))

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    with building(Reports(), DEVICE, uses_device=True, in_turn=True), computing():
        assert not settled
    ((device, free, thread),) = settled
    thread.join(10)
    assert device == DEVICE.torch_name and not free and not thread.is_alive()


def test_a_part_that_fails_gives_the_device_back():
    with building(Reports(), DEVICE, uses_device=True, in_turn=True):
        with pytest.raises(ValueError, match="no kernel"), computing():
            raise ValueError("no kernel")
        free, thread = is_free(exclusive=True, patience_s=10)
        thread.join()
        assert free


@pytest.mark.parametrize(
    ("device", "how", "beside"),
    [
        (DEVICE, {"uses_device": True}, True),  # a plug-in that does not say when it computes
        (DEVICE, {"uses_device": True, "in_turn": True, "alone": True}, False),
        (CPU, {"uses_device": True, "in_turn": True}, True),
        (CPU, {}, True),
    ],
)
def test_every_other_build_that_uses_its_device_holds_it_as_a_whole(device, how, beside):
    channel = Reports()
    with building(channel, device, **how) as turns:
        with computing():  # nothing to wait for
            pass
        assert shared_turn() is None and turns.waited_s == 0
        free, other = is_free(exclusive=False, device=device)
        assert free is beside
        late, timing = is_free(exclusive=True, device=device)
        assert not late
    for thread in (other, timing):
        thread.join(10)
        assert not thread.is_alive()
    assert channel.stages == ["build"]


def test_a_build_that_does_not_use_the_gpu_holds_nothing():
    with building(Reports(), DEVICE, in_turn=True), computing():
        free, thread = is_free(exclusive=True)
        assert free
        thread.join()
