import pytest

from autotune.measure.canary import DRIFT_LIMIT
from autotune.measure.conditions import OBSERVED
from autotune.measure.flags import ALL_FLAGS, BUSY_SHARE, FLAGS, explain, flags, invalid, stored_flags


def gpu(**values):
    return {"gpu": {"available": True, **values}}


def canary(drift, **values):
    return {"canary": {"available": True, "drift": drift, **values}}


def host(share, device="cpu"):
    return {"host": {"available": True, "device": device, "competing_share": share}}


def stranger(sm_percent):
    return gpu(other_processes=[{"pid": 7, "used_bytes": None, "sm_percent": sm_percent}])


@pytest.mark.parametrize(
    ("readings", "raised", "discard"),
    [
        ({}, (), False),
        (gpu(), (), False),
        (gpu(throttle_reasons=[], power_violation_ns=0, thermal_violation_ns=0, other_processes=[]), (), False),
        (gpu(throttle_reasons=["sw_power_cap"]), ("throttled",), False),
        (gpu(power_violation_ns=1), ("throttled",), False),
        (gpu(thermal_violation_ns=1), ("throttled",), False),
        (stranger(None), ("shared_device",), True),
        (stranger(1), ("shared_device",), True),
        (stranger(0), ("shared_device",), False),
        (canary(DRIFT_LIMIT), (), False),
        (canary(DRIFT_LIMIT * 1.01), ("canary_drift",), True),
        (canary(0.3, limit=0.5), (), False),
        (canary(0.6, limit=0.5), ("canary_drift",), True),
        (canary(None), (), False),
        (host(BUSY_SHARE), (), False),
        (host(BUSY_SHARE + 0.01), ("busy_host",), False),
        (host(1.0, "cuda"), (), False),
        (host(None), (), False),
        (
            {**host(0.5), **canary(0.5), **gpu(other_processes=[{"pid": 1}])},
            ("shared_device", "canary_drift", "busy_host"),
            True,
        ),
        ({**canary(0.5), **gpu(throttle_reasons=["sw_power_cap"])}, ("throttled",), False),
        ({**canary(0.5), **gpu(power_violation_ns=5)}, ("throttled",), False),
        ({**canary(0.5), **gpu(throttle_reasons=[], power_violation_ns=0)}, ("canary_drift",), True),
        ({**gpu(other_processes=[{"pid": 1}], throttle_reasons=["hw_slowdown"])}, ("throttled", "shared_device"), True),
    ],
)
def test_what_readings_mean(readings, raised, discard):
    assert flags(readings) == raised
    assert invalid(readings) is discard


@pytest.mark.parametrize("name", ["gpu", "canary", "host"])
def test_what_was_not_seen_raises_no_flag(name):
    alarming = {
        "available": False,
        "reason": "it broke",
        "throttle_reasons": ["hw_slowdown"],
        "other_processes": [{"pid": 1}],
        "drift": 9.0,
        "device": "cpu",
        "competing_share": 1.0,
    }
    assert flags({name: alarming}) == () and not invalid({name: alarming})


def test_every_flag_follows_from_registered_conditions_and_says_what_to_do():
    registered = {f"{observer}.{entry.name}" for observer, entries in OBSERVED.items() for entry in entries}
    for flag in ALL_FLAGS:
        assert flag.conditions and set(flag.conditions) <= registered
        assert flag.meaning.endswith(".") and flag.remedy.endswith("measure again.")
        assert explain(flag.name) == f"{flag.meaning} {flag.remedy}"
    assert len(set(FLAGS)) == len({explain(name) for name in FLAGS}) == len(ALL_FLAGS)
    with pytest.raises(ValueError, match="noisy"):
        explain("noisy")


@pytest.mark.parametrize("conditions", [{}, {"flags": None}, {"flags": []}])
def test_a_measurement_without_flags_has_none(conditions):
    assert stored_flags(conditions) == ()


def test_stored_flags_keep_their_order():
    assert stored_flags({"flags": ["throttled", "busy_host"]}) == ("throttled", "busy_host")
