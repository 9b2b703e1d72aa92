import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.measure.canary import DRIFT_LIMIT
from autotune.measure.conditions import BUSY_SHARE, FLAGS, explain, flags, invalid, merge


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


some_flags = st.lists(st.lists(st.sampled_from(FLAGS)), max_size=5)


@given(several=some_flags)
def test_merging_keeps_each_flag_once_in_order(several):
    merged = merge(several)
    assert set(merged) == {flag for some in several for flag in some}
    assert list(merged) == sorted(merged, key=FLAGS.index) and len(merged) == len(set(merged))
    assert merge([merged, *several]) == merged


def test_every_flag_has_a_sentence_and_nothing_else_does():
    assert all(explain(flag).endswith(".") for flag in FLAGS)
    assert len({explain(flag) for flag in FLAGS}) == len(FLAGS)
    with pytest.raises(ValueError, match="noisy"):
        explain("noisy")
    with pytest.raises(ValueError, match="noisy"):
        merge([("throttled",), ("noisy",)])
