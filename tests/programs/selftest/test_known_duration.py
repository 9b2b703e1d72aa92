import pytest

from autotune.measure.timer import CpuTimer, Sample
from autotune.programs.selftest import known_duration
from autotune.programs.selftest.fake import ManualClock
from autotune.programs.selftest.rig import Rig


class TickingClock(ManualClock):
    """Each look at it takes 10 µs."""

    def now_ns(self):
        self.advance(0.01)
        return super().now_ns()


class WrongTimer(CpuTimer):
    """Reports 2% too much."""

    def time_call(self, *arguments):
        sample = super().time_call(*arguments)
        return Sample(wall_ms=sample.wall_ms * 1.02)


def rig_on(timer):
    rig = Rig("cpu", quick=True)
    rig.clock = TickingClock()
    rig.timer = timer(rig.clock)
    return rig


def test_a_busy_wait_is_timed_by_what_it_says_itself():
    fake, waited = known_duration.check(rig_on(CpuTimer))
    assert fake.passed and waited.check == "known/busy-wait"
    assert [row["asked_ms"] for row in waited.raw["durations"]] == [1.0, 3.0, 10.0]
    first, *_, last = waited.raw["durations"]
    assert first["error_share"] == pytest.approx(0.02, abs=1e-3)  # two more looks of 10 µs in a wait of 1 ms
    assert last["error_share"] == pytest.approx(0.002, abs=1e-4)


def test_a_timer_that_reports_too_much_fails():
    _, waited = known_duration.check(rig_on(WrongTimer))
    assert not waited.passed
    assert waited.raw["durations"][2]["error_share"] == pytest.approx(0.022, abs=1e-3)


def test_the_limit_is_a_microsecond_or_a_percent():
    assert known_duration._allowed_ms(0.01) == 1e-3
    assert known_duration._allowed_ms(10.0) == pytest.approx(0.1)
