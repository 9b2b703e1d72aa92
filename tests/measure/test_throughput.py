import heapq
import json
import threading
import time
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.errors import WorkError
from autotune.measure.clock import SystemClock
from autotune.measure.statistics import median, median_interval
from autotune.measure.throughput import (
    Throughput,
    best,
    cuda_lane,
    in_threads,
    run_lanes,
    saturate,
    windows_from,
)
from autotune.testing import FakeClock

SETS = [("a",), ("b",), ("c",)]


class Lanes:
    """Lanes that work at the same time on a fake clock: whichever request is done first runs first."""

    def __init__(self, clock, *durations_ms):
        self.clock, self.calls = clock, [[] for _ in durations_ms]
        self._durations = [iter(durations) for durations in durations_ms]
        self._due = [0.0 for _ in durations_ms]
        self.functions = [self._lane(number) for number in range(len(durations_ms))]

    def _lane(self, number):
        def lane(*inputs):
            self.calls[number].append(inputs)
            self.clock.advance(self._due[number] - self.clock.now_ns() / 1e6)

        return lane

    def together(self, steps):
        queue = [(self._begin(number), number) for number in range(len(steps))]
        heapq.heapify(queue)
        while queue:
            _, number = heapq.heappop(queue)
            if steps[number]():
                heapq.heappush(queue, (self._begin(number), number))

    def _begin(self, number):
        self._due[number] += next(self._durations[number])
        return self._due[number]


def always(duration_ms):
    while True:
        yield duration_ms


def fly(*durations_ms, batch=1, **options):
    clock = FakeClock()
    lanes = Lanes(clock, *durations_ms)
    return run_lanes(lanes.functions, SETS, batch, clock=clock, together=lanes.together, **options), lanes


def at(size, rate, *, spread=0.001, what="concurrency"):
    windows = [rate * (1 + spread * step / 5) for step in range(-5, 6)]
    sizes = {"concurrency": 1, "batch": 1, what: size}
    return Throughput.of(windows=windows, samples_ms=[1.0], window_s=0.25, **sizes)


@given(
    st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=60), min_size=1, max_size=4),
    st.integers(1, 30),
    st.integers(1, 6),
    st.integers(0, 30),
)
def test_windows_count_each_request_by_the_share_that_lies_in_them(durations, window, windows, begin):
    lanes = []
    for lane in durations:
        times = [0]
        for duration in lane:
            times.append(times[-1] + duration)
        if times[-1] < begin + windows * window:
            times.append(begin + windows * window + 7)
        lanes.append(times)
    expected = []
    for number in range(windows):
        low, high = begin + number * window, begin + (number + 1) * window
        expected.append(
            sum(
                Fraction(max(0, min(high, last) - max(low, first)), last - first)
                for times in lanes
                for first, last in pairwise(times)
            )
        )
    assert windows_from(lanes, begin, window, windows) == pytest.approx([float(count) for count in expected])


def test_windows_hold_whole_requests_where_they_end_with_them():
    assert windows_from([[0, 10, 20, 30, 40]], 10, 10, 3) == (1.0, 1.0, 1.0)
    assert windows_from([[0, 10, 20, 30, 40], [5, 45]], 10, 15, 2) == pytest.approx((1.875, 1.875))


def test_a_window_in_which_nothing_ended_counts_its_share():
    assert windows_from([[0, 100]], 10, 30, 3) == pytest.approx((0.3, 0.3, 0.3))


@pytest.mark.parametrize("lane", [[], [0, 5], [6, 40], [0, 20, 20, 40], [0, 30, 20, 40]])
def test_lanes_that_do_not_cover_the_windows_or_run_backwards_are_refused(lane):
    with pytest.raises(ValueError):
        windows_from([[0, 40], lane], 5, 10, 3)


def test_two_lanes_of_known_duration_give_exactly_their_rate():
    measured, _ = fly(always(2.0), always(5.0), batch=4, window_s=0.1, windows=8, warm_up_s=0.05)
    assert measured.windows == pytest.approx([4 * (500 + 200)] * 8)
    assert measured.items_per_s == pytest.approx(2800)
    assert (measured.concurrency, measured.batch, measured.window_s) == (2, 4, 0.1)
    assert set(measured.samples_ms) == {2.0, 5.0} and measured.latency_ms == 2.0


def test_windows_that_are_no_multiple_of_a_request_are_not_biased():
    measured, _ = fly(always(2.0), window_s=0.007, windows=9, warm_up_s=0.0)
    assert measured.items_per_s == pytest.approx(500)


def test_long_requests_stretch_the_windows_to_three_of_the_slowest_lane():
    measured, _ = fly(always(300.0), always(500.0), window_s=0.25, windows=4, warm_up_s=0.1)
    assert measured.window_s == pytest.approx(1.5)
    assert measured.items_per_s == pytest.approx(1 / 0.3 + 1 / 0.5)


def test_a_time_limit_takes_fewer_windows_but_three():
    assert len(fly(always(100.0), windows=12, limit_s=1.6)[0].windows) == 5
    assert len(fly(always(1000.0), windows=12, limit_s=1.0)[0].windows) == 3
    assert len(fly(always(1000.0), windows=12)[0].windows) == 12


def test_no_lane_stops_before_all_have_passed_the_last_window():
    def slow():
        yield from [100.0] * 3
        yield from always(130.0)

    # Windows of 300 ms from 300 ms to 900 ms; the slow lane's last request in them ends at 950 ms.
    measured, lanes = fly(always(1.0), slow(), window_s=0.25, windows=2, warm_up_s=0.0)
    assert measured.window_s == pytest.approx(0.3)
    assert len(lanes.calls[1]) == 8
    assert len(lanes.calls[0]) >= 949
    assert measured.items_per_s == pytest.approx(1000 + 1 / 0.13)


def test_the_warm_up_is_not_counted():
    def slow_then_fast():
        yield from [400.0, 30.0, 30.0]
        yield from always(1.0)

    measured, _ = fly(slow_then_fast(), window_s=0.1, windows=6, warm_up_s=0.6)
    assert measured.items_per_s == pytest.approx(1000)
    assert set(measured.samples_ms) == {1.0}


def test_lanes_that_never_reach_a_window_are_no_measurement():
    with pytest.raises(ValueError):
        run_lanes([lambda *_: None], SETS, 1, clock=FakeClock(), together=lambda steps: None)


def test_inputs_take_turns_and_lanes_begin_on_different_ones():
    _, lanes = fly(always(1.0), always(1.0), window_s=0.01, windows=3, warm_up_s=0.0)
    assert [call[0] for call in lanes.calls[0][:4]] == ["a", "b", "c", "a"]
    assert [call[0] for call in lanes.calls[1][:4]] == ["b", "c", "a", "b"]


@pytest.mark.parametrize("step_ms", [0.0, -1.0])
def test_a_clock_that_stands_still_or_goes_back_is_refused(step_ms):
    clock = FakeClock()
    with pytest.raises(ValueError, match="positive time"):
        run_lanes([lambda *_: clock.advance(step_ms)], SETS, 1, clock=clock)


@pytest.mark.parametrize(
    ("backlog_ms", "late"), [(0.0, False), (0.9, False), (4.0, False), (4.1, True), (3000.0, True)]
)
def test_lanes_that_only_enqueue_are_found_by_what_the_device_has_left_to_do(backlog_ms, late):
    clock = FakeClock()
    lanes = Lanes(clock, always(2.0))
    waits = iter([0.0, backlog_ms])

    def measure():
        return run_lanes(
            lanes.functions,
            SETS,
            1,
            clock=clock,
            synchronize=lambda: clock.advance(next(waits)),
            together=lanes.together,
        )

    if late:
        with pytest.raises(WorkError, match="return before their work is done"):
            measure()
    else:
        assert measure().items_per_s == pytest.approx(500)


@pytest.mark.parametrize(
    "wrong",
    [
        {"lanes": []},
        {"input_sets": []},
        {"batch": 0},
        {"windows": 0},
        {"window_s": 0.0},
        {"window_s": float("nan")},
        {"limit_s": -1.0},
    ],
)
def test_a_request_without_sense_is_refused_before_anything_runs(wrong):
    def untouched(*_):
        raise AssertionError("called")

    options = {"lanes": [untouched], "input_sets": SETS, "batch": 1, "clock": FakeClock()} | wrong
    with pytest.raises(ValueError):
        run_lanes(**options)


def test_what_a_lane_raises_ends_all_lanes_and_passes_through():
    turns = []

    def broken(*_):
        time.sleep(0.001)
        turns.append(1)
        if len(turns) == 5:
            raise RuntimeError("fifth request")

    def steady(*_):
        time.sleep(0.001)

    with pytest.raises(RuntimeError, match="fifth request"):
        run_lanes([broken, steady], SETS, 1, clock=SystemClock(), window_s=1.0, windows=50)
    assert len(turns) == 5
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("lane ")]


def test_threads_repeat_their_steps_until_each_says_stop():
    counts = [0, 0, 0]

    def step(number):
        counts[number] += 1
        return counts[number] < 10 * (number + 1)

    in_threads([lambda number=number: step(number) for number in range(3)])
    assert counts == [10, 20, 30]


def test_a_failure_waits_for_the_request_that_another_lane_has_in_hand():
    begun, go_on, finished = threading.Event(), threading.Event(), threading.Event()

    def step():
        begun.set()
        go_on.wait(20)
        finished.set()
        return True

    def failing():
        begun.wait(20)
        threading.Timer(0.05, go_on.set).start()
        raise SystemExit("not even this ends a lane unheard")

    with pytest.raises(SystemExit, match="unheard"):
        in_threads([step, failing])
    assert finished.is_set()


def test_two_lanes_that_sleep_do_about_twice_the_work_of_one():
    def measure(lanes):
        return run_lanes(
            [lambda *_: time.sleep(0.004)] * lanes, SETS, 8, clock=SystemClock(), window_s=0.04, windows=6, warm_up_s=0
        )

    ratios = [measure(2).items_per_s / measure(1).items_per_s for _ in range(3)]
    assert 1.4 < median(ratios) < 2.8


def test_a_throughput_is_derived_from_its_raw_figures_and_survives_json():
    measured, _ = fly(always(2.0), always(3.0), window_s=0.005, windows=11, warm_up_s=0.0)
    assert measured.items_per_s == median(measured.windows)
    assert measured.interval == median_interval(measured.windows)
    assert measured.latency_ms == median(measured.samples_ms)
    stored = json.loads(json.dumps(measured.as_dict()))
    assert Throughput.from_dict(stored) == measured
    for name, wrong in [
        ("items_per_s", 1.0),
        ("latency_ms", 9.0),
        ("interval", [1.0, 2.0]),
        ("windows", []),
        ("samples_ms", [0.0]),
        ("concurrency", 0),
        ("batch", 0),
        ("window_s", -1.0),
    ]:
        with pytest.raises(ValueError):
            Throughput.from_dict(stored | {name: wrong})


@pytest.mark.parametrize(
    ("rates", "measured", "chosen"),
    [
        ({1: 100, 2: 190, 4: 190.2, 8: 400}, [1, 2, 4], 2),
        ({1: 100, 2: 190, 4: 300, 8: 450}, [1, 2, 4, 8], 8),
        ({1: 100, 2: 102}, [1, 2], 2),
        ({1: 100, 2: 100}, [1, 2], 1),
        ({1: 100, 2: 60}, [1, 2], 1),
    ],
)
def test_concurrency_doubles_while_it_pays(rates, measured, chosen):
    points = saturate(lambda size: at(size, rates[size]))
    assert [point.concurrency for point in points] == measured
    assert best(points).concurrency == chosen


def test_a_gain_within_the_noise_does_not_pay_and_is_not_chosen():
    points = saturate(lambda size: at(size, {1: 100, 2: 110}[size], spread=0.3))
    assert [point.concurrency for point in points] == [1, 2]
    assert best(points).concurrency == 1


def test_the_last_step_goes_to_the_most_that_is_allowed():
    points = saturate(lambda size: at(size, 100 * size), most=6)
    assert [point.concurrency for point in points] == [1, 2, 4, 6]
    assert [point.concurrency for point in saturate(lambda size: at(size, 1), most=1)] == [1]


def test_what_a_measurement_raises_passes_through():
    def measure(size):
        if size == 2:
            raise MemoryError("40 GB wanted")
        return at(size, 100)

    with pytest.raises(MemoryError, match="40 GB"):
        saturate(measure)


def test_a_measurement_at_another_concurrency_and_senseless_bounds_are_refused():
    with pytest.raises(ValueError, match="concurrency 2"):
        saturate(lambda size: at(1, 100))
    for wrong in [{"most": 0}, {"gain": -0.1}, {"gain": 1.0}]:
        with pytest.raises(ValueError):
            saturate(lambda size: at(size, 100), **wrong)
    with pytest.raises(ValueError, match="no points"):
        best([])


def test_the_smallest_of_equally_fast_points_has_the_fewest_items_in_flight():
    points = [at(size, rate, what="batch") for size, rate in [(8, 500), (64, 998), (32, 999.5), (128, 1000)]]
    assert best(points).batch == 32


@pytest.mark.gpu
def test_cuda_lanes_run_beside_one_another_and_wait_for_their_own_stream():
    import torch

    def spin(*_):
        torch.cuda._sleep(4_000_000)

    def measure(lanes):
        return run_lanes(
            lanes, [()], 1, clock=SystemClock(), synchronize=torch.cuda.synchronize, windows=6, warm_up_s=0.1
        )

    one = measure([cuda_lane(spin, "cuda:0")])
    two = measure([cuda_lane(spin, "cuda:0") for _ in range(2)])
    assert 1.5 < two.items_per_s / one.items_per_s < 2.5
    with pytest.raises(WorkError, match="return before their work is done"):
        measure([spin])
