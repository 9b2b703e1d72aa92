"""Which problem gets the next builds, under a clock of our own."""

import pytest

from autotune.kernels.schedule import KernelSchedule
from autotune.records.kernel_problem import GemmProblem

LARGE, MIDDLE, SMALL = (GemmProblem(m=m, n=768, k=768) for m in (4096, 512, 64))


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_every_problem_comes_first_once_those_with_most_work_before() -> None:
    schedule = KernelSchedule({SMALL: 1.0, LARGE: 1.0, MIDDLE: 100.0}, budget_s=60, clock=Clock())
    assert [schedule.next(4) for _ in range(3)] == [(MIDDLE, 4), (LARGE, 4), (SMALL, 4)]


def test_then_the_one_that_takes_most_of_the_model() -> None:
    schedule = KernelSchedule({SMALL: 1.0, LARGE: 1.0}, budget_s=60, clock=Clock())
    schedule.next(4), schedule.next(4)
    schedule.tell(SMALL, requested=4, built=4, best_us=5.0)
    schedule.tell(LARGE, requested=4, built=4, best_us=50.0)
    assert schedule.next(4) == (LARGE, 4)


def test_weights_count() -> None:
    schedule = KernelSchedule({SMALL: 24.0, LARGE: 1.0}, budget_s=60, clock=Clock())
    schedule.next(4), schedule.next(4)
    schedule.tell(SMALL, requested=4, built=4, best_us=5.0)
    schedule.tell(LARGE, requested=4, built=4, best_us=50.0)
    assert schedule.next(4) == (SMALL, 4)


def test_a_problem_that_still_improves_goes_before_one_that_stands() -> None:
    known = {LARGE: (4, 20.0), MIDDLE: (4, 20.0)}
    schedule = KernelSchedule({LARGE: 1.0, MIDDLE: 1.0}, budget_s=60, earlier=known, clock=Clock())
    schedule.next(4), schedule.next(4)
    schedule.tell(LARGE, requested=4, built=4, best_us=19.0)
    schedule.tell(MIDDLE, requested=4, built=4, best_us=10.0)
    # 0.2 · 10 / 4 + 0.8 · 10 / 9 = 1.39 against 0.2 · 1 / 4 + 0.8 · 19 / 9 = 1.74: what is left decides as well
    assert schedule.next(4) == (LARGE, 4)
    schedule.tell(LARGE, requested=4, built=4, best_us=19.0)
    # now 1.39 against 0.8 · 19 / 13 = 1.17
    assert schedule.next(4) == (MIDDLE, 4)


def test_what_is_under_way_counts_as_done() -> None:
    known = {LARGE: (4, 30.0), MIDDLE: (4, 20.0)}
    schedule = KernelSchedule({LARGE: 1.0, MIDDLE: 1.0}, budget_s=60, earlier=known, clock=Clock())
    assert [schedule.next(4) for _ in range(3)] == [(LARGE, 4), (MIDDLE, 4), (LARGE, 4)]


def test_the_budget_begins_with_the_first_batch_and_ends_it() -> None:
    clock = Clock()
    schedule = KernelSchedule({LARGE: 1.0}, budget_s=60, clock=clock)
    clock.now_s += 1000
    assert schedule.next(4) == (LARGE, 4)
    clock.now_s += 59.9
    assert schedule.next(4) == (LARGE, 4)
    clock.now_s += 0.1
    assert schedule.next(4) is None
    assert schedule.ended == "budget"
    assert schedule.elapsed_s == pytest.approx(60.0)


def test_it_ends_where_nothing_promises_enough() -> None:
    known = {LARGE: (15, 100.0), SMALL: (4, 0.1)}
    schedule = KernelSchedule({LARGE: 1.0, SMALL: 1.0}, budget_s=60, earlier=known, least_gain=0.002, clock=Clock())
    assert schedule.next(4) == (LARGE, 1)  # 0.8 · 100 / 16 is 5% of all
    schedule.tell(LARGE, requested=1, built=1, best_us=100.0)
    assert schedule.next(4) is None  # 0.8 · 0.1 / 5 is 0.016%
    assert schedule.ended == "gain"


def test_it_ends_when_every_problem_had_its_builds() -> None:
    schedule = KernelSchedule({LARGE: 1.0}, budget_s=60, most_builds=6, clock=Clock())
    assert schedule.next(4) == (LARGE, 4)
    assert schedule.next(4) == (LARGE, 2)
    assert schedule.next(4) is None
    assert schedule.ended == "builds"


def test_a_problem_with_too_few_builds_left_or_finished_gets_no_more() -> None:
    schedule = KernelSchedule({LARGE: 1.0, SMALL: 1.0}, budget_s=60, clock=Clock())
    schedule.next(4), schedule.next(4)
    schedule.tell(LARGE, requested=4, built=3, best_us=50.0)
    assert schedule.next(4) == (SMALL, 4)
    schedule.finish(SMALL)
    assert schedule.next(4) is None
    assert schedule.ended == "builds"


def test_a_problem_of_which_no_build_works_does_not_hold_the_others_up() -> None:
    schedule = KernelSchedule({LARGE: 1.0, SMALL: 1.0}, budget_s=60, clock=Clock())
    schedule.next(4), schedule.next(4)
    schedule.tell(LARGE, requested=4, built=4, best_us=None)
    schedule.tell(SMALL, requested=4, built=4, best_us=5.0)
    served = set()
    while (batch := schedule.next(4)) is not None:
        served.add(batch[0])
        schedule.tell(batch[0], requested=batch[1], built=batch[1], best_us=5.0 if batch[0] is SMALL else None)
    assert served == {LARGE, SMALL}


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="positive number of calls"):
        KernelSchedule({LARGE: 0.0}, budget_s=60)
    with pytest.raises(ValueError, match="at least one build"):
        KernelSchedule({LARGE: 1.0}, budget_s=60, most_builds=0)
    schedule = KernelSchedule({LARGE: 1.0}, budget_s=60, clock=Clock())
    schedule.next(4)
    with pytest.raises(ValueError, match="5 of 5 builds were reported, and 4 are unfinished"):
        schedule.tell(LARGE, requested=5, built=5, best_us=1.0)
