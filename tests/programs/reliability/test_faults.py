from dataclasses import replace

import pytest

from autotune.execute.limits import most_processes
from autotune.programs.reliability import faults
from autotune.programs.reliability.campaign import Campaign
from autotune.programs.reliability.faults import KINDS, Fault
from autotune.testing import misbehaviour


@pytest.fixture
def campaign(tmp_path):
    return Campaign(folder=tmp_path, databases={}, quick=True)


def test_a_short_form_keeps_every_promise(campaign):
    rows = faults.faults(campaign)
    assert [row.passed for row in rows] == [True] * 4, [row.figure for row in rows]
    assert len(KINDS) == 14 and {kind["times"] for kind in rows[0].raw.values()} == {1}
    processes = {name: kind["processes"] for name, kind in rows[0].raw.items() if kind["processes"] > 1}
    assert 1 < processes.pop("fork_bomb") <= most_processes() + misbehaviour.BOMB_MORE + 1
    assert processes == {"stubborn": 2, "orphan": 2, "growth": 2}


def test_nothing_outlives_a_coordinator(campaign):
    (row,) = faults.coordinators(campaign)
    assert row.passed and row.raw["times"] == 1


def good(name):
    kind, words = KINDS[name]
    return Fault(name=name, reported=kind, detail=words, seconds=1.0, clean_s=0.0, processes=1, orphans=0)


@pytest.mark.parametrize(
    ("name", "wrong", "survived", "held"),
    [
        ("hang", {}, True, [True, True, True, True]),
        ("hang", {}, False, [False, True, True, True]),
        ("hang", {"reported": "crash"}, True, [True, False, True, True]),
        ("orphan", {"reported": "crash"}, True, [True, False, True, True]),
        ("segfault", {"detail": "SIGABRT"}, True, [True, False, True, True]),
        ("orphan", {"orphans": 1}, True, [True, True, False, True]),
        ("orphan", {"processes": 0}, True, [True, True, False, True]),
        ("stubborn", {"seconds": 1.2, "clean_s": 0.4}, True, [True, True, True, False]),
    ],
)
def test_a_promise_that_is_not_kept_is_reported(name, wrong, survived, held):
    loose = [replace(good(one), **wrong) if one == name else good(one) for one in KINDS]
    assert [row.passed for row in faults.outcomes(loose, survived)] == held


def test_a_campaign_that_let_nothing_loose_keeps_no_promise():
    assert not faults.outcomes([], True)[0].passed and not faults.outcomes([], True)[3].passed
