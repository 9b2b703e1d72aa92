"""The time that a step has for its order: what it says gives it no more."""

from autotune.execute.step_clock import StepClock


def test_time_stands_still_while_a_step_waits():
    clock = StepClock(100.0, 3600.0)
    assert clock.order_s(110.0) == clock.part_s(110.0) == 10.0
    clock.wait(112.0, 113.0)
    assert clock.order_s(150.0) == 12.0 and clock.waited_s(150.0) == 38.0
    clock.wait(140.0, 150.0)  # who waits already waits on
    clock.work(150.0, 151.0)
    assert clock.order_s(160.0) == 22.0 and clock.waited_s(160.0) == 38.0


def test_a_part_begins_anew_within_its_order():
    clock = StepClock(0.0, 3600.0)
    clock.begin_part(50.0)
    clock.wait(60.0, 60.0)
    clock.work(70.0, 70.0)
    assert (clock.part_s(80.0), clock.order_s(80.0)) == (20.0, 70.0)
    clock.begin_order(100.0)
    assert clock.part_s(101.0) == clock.order_s(101.0) == 1.0 and clock.waited_s(101.0) == 0.0


def test_waiting_counts_as_work_past_its_limit_however_often_it_is_said():
    clock = StepClock(0.0, 10.0)
    for now_s in range(0, 100, 5):
        clock.wait(now_s, now_s)
        clock.work(now_s + 4.0, now_s + 4.0)
    assert clock.waited_s(100.0) == 10.0 and clock.order_s(100.0) == 90.0
    clock.wait(100.0, 100.0)
    assert clock.order_s(1000.0) == 990.0


def test_a_step_cannot_have_waited_before_its_order_nor_twice_nor_in_the_future():
    clock = StepClock(100.0, 3600.0)
    clock.wait(0.0, 110.0)
    clock.work(1e9, 112.0)
    assert clock.waited_s(112.0) == 12.0
    clock.wait(100.0, 120.0)
    clock.work(120.0, 120.0)
    assert clock.waited_s(120.0) == 20.0 and clock.order_s(120.0) == 0.0
    clock.work(0.0, 130.0)  # who does not wait ends no waiting
    assert clock.order_s(130.0) == 10.0


def test_who_waits_when_it_is_asked_for_more_has_waited_since_then():
    clock = StepClock(0.0, 10.0)
    clock.wait(0.0, 0.0)
    clock.begin_order(8.0)
    assert clock.order_s(17.0) == 0.0 and clock.order_s(20.0) == 2.0
