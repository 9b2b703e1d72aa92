from dataclasses import replace

import pytest

from autotune.measure.timer import CpuTimer
from autotune.programs.selftest import costs, summaries
from autotune.programs.selftest.fake import ManualClock
from autotune.programs.selftest.rig import Rig


class FakeSpin:
    """A spin of one nanosecond for each unit of its amount."""

    def __init__(self, clock, amount):
        self.clock, self.amount = clock, amount

    def prepare(self):
        pass

    def __call__(self, *inputs):
        self.clock.advance(self.amount / 1e6)


class LookingClock(ManualClock):
    """A look at the time takes a nanosecond, one at the CPU time as long as it is told."""

    look_ms = 0.0

    def now_ns(self):
        self.advance(1e-6)
        return super().now_ns()

    def cpu_ns(self):
        self.advance(self.look_ms)
        return super().cpu_ns()


class FakeRig(Rig):
    def __init__(self):
        super().__init__("cpu", quick=True)
        self.clock = LookingClock()
        self.timer = CpuTimer(self.clock)

    def spin(self, amount):
        return FakeSpin(self.clock, amount)


@pytest.fixture
def rig():
    return FakeRig()


def test_what_a_sample_costs_is_what_the_recorder_adds(rig):
    rig.clock.look_ms = 0.004
    row = costs.check_overhead(rig)[0]
    assert row.passed and row.raw["recorded_us"] - row.raw["bare_us"] == pytest.approx(8.0, abs=0.01)
    rig.clock.look_ms = 0.006
    assert not costs.check_overhead(rig)[0].passed


def test_the_share_that_is_not_timed_is_reported(rig):
    rig.clock.look_ms = 0.01
    _, short, typical = costs.check_overhead(rig)
    assert short.passed and short.raw["share"] > typical.raw["share"] == pytest.approx(0.02 / 1.22, abs=1e-3)
    rig.clock.look_ms = 0.05
    assert not costs.check_overhead(rig)[1].passed


def test_a_watched_timer_counts_every_call_behind_a_sample(rig):
    watched = costs._Watched(rig.timer)
    spin = rig.spin(200_000)
    watched.time_call(spin, ())
    watched.time_call(spin, (), 5)
    assert watched.timed_ms == pytest.approx(6 * 0.2, rel=1e-5)
    assert watched.kind == "cpu"


def test_screenings_and_finals_are_timed_and_summaries_recomputed(rig):
    screening, finals = costs.check_duration(rig)
    assert screening.passed and screening.raw["ended"] == "interval reached"
    assert finals.passed and finals.raw["rounds"] == 20
    (row,) = summaries.check(rig)
    assert row.passed, row.raw["wrong"]
    assert row.raw["verdict"]["baseline"] == "candidate 7"


def test_a_figure_that_does_not_follow_from_the_samples_is_named(rig, monkeypatch):
    finals, verdict, seconds = costs.eight_finalists(rig)
    first = verdict.finalists[0]
    wrong = replace(verdict, finalists=(replace(first, figure=first.figure * 1.0001), *verdict.finalists[1:]))
    monkeypatch.setattr(summaries, "eight_finalists", lambda rig: (finals, wrong, seconds))
    (row,) = summaries.check(rig)
    path = f"/finalists/{first.name}/figure"
    assert not row.passed and row.raw["wrong"] == [path, f"numpy: {path}"]
