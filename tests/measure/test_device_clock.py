import contextlib
from types import SimpleNamespace

import pytest

from autotune.measure.device_clock import LONGEST_LEAD_MS, SHORTEST_MS, DeviceClock, DeviceTime

CYCLES_PER_MS = 1.5e6
EVENT_MS = 0.002


class FakeCuda:
    """One stream on a clock of its own: the host queues, the device works what was queued in its order."""

    def __init__(self):
        self.now_ms = 0.0  # the host's time
        self.free_ms = 0.0  # when the device will have worked everything that is queued
        self.flushes = 0

    @contextlib.contextmanager
    def device(self, device):
        yield

    def current_stream(self, device):
        return None

    def synchronize(self, device):
        self.now_ms = max(self.now_ms, self.free_ms)

    def queue(self, device_ms, host_ms=0.0):
        self.now_ms += host_ms
        self.free_ms = max(self.free_ms, self.now_ms) + device_ms

    def _sleep(self, cycles):
        self.queue(cycles / CYCLES_PER_MS)

    def flush(self):
        self.flushes += 1
        self.queue(0.05)

    def Event(self, enable_timing):
        event = SimpleNamespace(at_ms=None)

        def record(stream):
            self.queue(EVENT_MS)
            event.at_ms = self.free_ms

        event.record = record
        event.query = lambda: event.at_ms <= self.now_ms
        event.elapsed_time = lambda later: later.at_ms - event.at_ms
        return event


@pytest.fixture
def cuda():
    return FakeCuda()


def test_neither_launching_nor_the_events_are_in_the_time_of_a_kernel(cuda):
    told = DeviceClock("cuda:0", cuda).time(lambda: cuda.queue(0.3, host_ms=0.12), (), queue_ms=0.12)
    assert told.ms == pytest.approx(0.3, abs=1e-6) and told.unrolled == 1 and told.queued


@pytest.mark.parametrize("call_ms", [0.003, 0.01, 0.1])
def test_short_calls_are_unrolled_until_the_events_weigh_little(cuda, call_ms):
    clock = DeviceClock("cuda:0", cuda)
    assert clock.event_pair_ms == pytest.approx(EVENT_MS)
    told = clock.time(lambda: cuda.queue(call_ms, host_ms=0.02), (), queue_ms=0.02)
    assert told.queued and told.unrolled >= 2
    assert told.ms == pytest.approx(call_ms, abs=1e-5)
    assert told.unrolled == pytest.approx(max(2, 20 * EVENT_MS / call_ms), abs=1.01)
    again = clock.time(lambda: cuda.queue(call_ms, host_ms=0.02), (), queue_ms=0.02, previous=told)
    assert again.unrolled == told.unrolled


def test_a_spin_that_was_too_short_becomes_longer(cuda):
    calls = []
    clock = DeviceClock("cuda:0", cuda)
    told = clock.time(lambda: calls.append(cuda.queue(0.3, host_ms=0.12)), (), queue_ms=0.03)
    assert told.queued and told.ms == pytest.approx(0.3, abs=1e-6) and len(calls) == 2


def test_a_call_without_work_takes_next_to_nothing(cuda):
    assert 0 < DeviceClock("cuda:0", cuda).time(lambda: None, (), queue_ms=0.001).ms < 1e-3


def test_no_more_calls_are_unrolled_than_a_spin_can_hide(cuda):
    told = DeviceClock("cuda:0", cuda).time(lambda: cuda.queue(0.003, host_ms=2.0), (), queue_ms=2.0)
    assert told.queued and told.unrolled == int(LONGEST_LEAD_MS / (1.5 * 2.0))


def test_a_call_that_waits_says_that_launching_is_in_its_time(cuda):
    def waits():
        cuda.queue(0.3, host_ms=0.1)
        cuda.synchronize(None)
        cuda.queue(0.2, host_ms=0.1)

    clock = DeviceClock("cuda:0", cuda)
    told = clock.time(waits, (), queue_ms=0.7)
    assert not told.queued and told.ms == pytest.approx(0.6, abs=2 * EVENT_MS)
    begun_ms = cuda.now_ms
    again = clock.time(waits, (), queue_ms=0.7, previous=told)
    assert not again.queued and cuda.now_ms - begun_ms < 0.75  # no spin where it hides nothing


def test_a_flushed_cache_stays_cold(cuda):
    told = DeviceClock("cuda:0", cuda).time(lambda: cuda.queue(0.01, host_ms=0.02), (), queue_ms=0.02, flush=cuda.flush)
    assert told.unrolled == 1 and cuda.flushes == 1 and told.ms < SHORTEST_MS
    assert told.ms == pytest.approx(0.01, abs=1e-6)


@pytest.mark.parametrize("bad", [{"ms": 0.0}, {"ms": float("nan")}, {"ms": 1.0, "unrolled": 0}])
def test_impossible_times_are_refused(bad):
    with pytest.raises(ValueError):
        DeviceTime(**bad)
