"""The problem that the device times next."""

from dataclasses import replace

from autotune.kernels.portfolio import ENOUGH
from autotune.kernels.schedule import Standing, next_session

NEW = Standing(share=0.1, timed=0, ready=0, calls=9, outstanding=True, gain=0.0)
FULL = replace(NEW, ready=ENOUGH)
DONE = replace(NEW, timed=ENOUGH, calls=0, outstanding=False)


def test_a_problem_with_all_its_first_builds_comes_first_the_one_with_the_largest_share() -> None:
    promising = replace(DONE, ready=4, gain=0.1, share=0.5)
    assert next_session([promising, FULL, replace(FULL, share=0.2), replace(NEW, share=0.9)]) == 2


def test_other_launches_that_promise_more_than_first_builds_come_before_them() -> None:
    split, other = replace(DONE, gain=0.4, share=0.2), replace(FULL, share=0.2)
    assert next_session([other, split]) == 1
    assert next_session([other, replace(split, share=0.1)]) == 0
    assert next_session([replace(other, calls=0, ready=0), replace(split, gain=0.01)]) == 1


def test_a_problem_that_gets_no_more_builds_counts_as_one_with_all() -> None:
    few = replace(NEW, ready=2, outstanding=False, share=0.05)
    assert next_session([few, replace(few, outstanding=True, share=0.9)]) == 0
    assert next_session([replace(few, ready=0), NEW]) == 0, "its libraries' calls are all that it has"


def test_while_builds_are_compiled_a_problem_that_promises_more_is_timed_again() -> None:
    some = replace(NEW, ready=3)
    assert next_session([some, replace(DONE, ready=4, gain=0.01), replace(DONE, ready=4, gain=0.02)]) == 2


def test_before_the_device_waits_it_times_libraries_of_the_problem_whose_builds_come_last() -> None:
    assert next_session([replace(NEW, share=0.5), replace(NEW, share=0.2), replace(NEW, share=0.1, ready=2)]) == 1
    called = replace(NEW, calls=0, ready=2)
    assert next_session([called, replace(called, ready=3), replace(called, ready=0)]) == 1


def test_nothing_is_timed_that_promises_nothing() -> None:
    assert next_session([]) is None
    assert next_session([DONE, replace(DONE, ready=4, gain=1e-4), replace(NEW, calls=0)]) is None
