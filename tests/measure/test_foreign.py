import os
from pathlib import Path

from autotune.measure.foreign import foreign_processes
from autotune.measure.process_owner import owner, user_name
from autotune.records.device import Device

GPU = Device(kind="cuda", name="NVIDIA H200", uuid="GPU-1", capability=(9, 0))
ABSENT = 2**22 + 1
ADVICE = "times measured beside it may be longer; end it or wait for its end, then measure again"


def readings(*others):
    return {"gpu": {"available": True, "other_processes": list(others)}, "host": {"available": False}}


def test_each_process_beside_a_measurement_is_named_with_its_user_and_what_it_took():
    own = {"pid": os.getpid(), "used_bytes": 3 * 2**30, "sm_percent": 40}
    later = {"pid": os.getpid(), "used_bytes": None, "sm_percent": 70}
    unknown = {"pid": ABSENT, "used_bytes": None, "sm_percent": None}
    several = {"readings": [readings(own), readings(), readings(later, unknown)]}
    told = foreign_processes(several, GPU)
    program = Path("/proc/self/comm").read_text().strip()
    assert told == {
        os.getpid(): f"process {os.getpid()} ({program}) of {user_name(os.geteuid())} is on {GPU.name} too "
        "(3.0 GiB of its memory, up to 70% of its cores): " + ADVICE,
        ABSENT: f"process {ABSENT} is on {GPU.name} too: " + ADVICE,
    }
    assert foreign_processes({"readings": readings(own)}, GPU).keys() == {os.getpid()}


def test_where_nothing_was_seen_nobody_is_named():
    for conditions in ({}, {"readings": {}}, {"readings": [{"gpu": {"available": False, "reason": "none"}}]},
                       {"readings": readings()}):  # fmt: skip
        assert foreign_processes(conditions, GPU) == {}


def test_a_process_that_is_not_there_has_no_owner_and_a_user_without_a_name_has_a_number():
    assert owner(ABSENT) == (None, None)
    assert user_name(54321) == "user 54321"
