import pytest

from autotune.programs.selftest import faults
from autotune.programs.selftest.rig import Rig


@pytest.mark.parametrize("name", faults.FAULTS)
def test_each_fault_is_refused_or_reported(name):
    assert faults.FAULTS[name]()


def test_a_fault_that_passes_unnoticed_fails_and_is_named(monkeypatch):
    monkeypatch.setitem(faults.FAULTS, "zero time", lambda: False)
    (outcome,) = faults.check(Rig("cpu", quick=True))
    assert not outcome.passed and "not: zero time" in outcome.figure


def test_refusing_means_raising_the_right_error():
    def wrong():
        raise ValueError("something else")

    assert not faults._refused(lambda: None)
    assert not faults._refused(wrong, "negative")
    assert faults._refused(wrong, "something")
