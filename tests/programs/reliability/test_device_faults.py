from dataclasses import replace

import pytest

from autotune.programs.reliability import device_faults
from autotune.programs.reliability.campaign import Campaign
from autotune.programs.reliability.device_faults import KINDS, DeviceFault
from autotune.runtime import discovery


def fault(name):
    kind, words = KINDS[name]
    return DeviceFault(name=name, reported=kind, detail=f"it said: {words}", seconds=1.0, left_bytes=0, next_right=True)


def test_faults_that_cost_their_candidate_alone_pass():
    assert [row.passed for row in device_faults.outcomes([fault(name) for name in KINDS])] == [True] * 3


@pytest.mark.parametrize(
    ("change", "failed"),
    [
        ({"reported": None}, 0),
        ({"detail": "something else"}, 0),
        ({"next_right": False}, 1),
        ({"left_bytes": 2**30}, 2),
    ],
)
def test_each_way_to_cost_more_fails_its_own_row(change, failed):
    loose = [fault(name) for name in KINDS]
    rows = device_faults.outcomes([*loose[:-1], replace(loose[-1], **change)])
    assert [row.passed for row in rows] == [number != failed for number in range(3)]


@pytest.mark.gpu
def test_faults_on_a_gpu_cost_their_candidate_alone(tmp_path):
    campaign = Campaign(folder=tmp_path, databases={}, quick=True, device=discovery.find("cuda:0"))
    assert [(row.check, row.figure) for row in device_faults.check(campaign) if not row.passed] == []
