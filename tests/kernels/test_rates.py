"""Rates from what CUDA tells of a device."""

from types import SimpleNamespace
from typing import Any

import pytest

from autotune.errors import WorkError
from autotune.kernels.rates import DeviceRates


def properties(**change: Any) -> SimpleNamespace:
    h200 = {
        "name": "NVIDIA H200",
        "major": 9,
        "minor": 0,
        "multi_processor_count": 132,
        "clock_rate": 1980000,
        "memory_clock_rate": 3201000,
        "memory_bus_width": 6144,
        "shared_memory_per_multiprocessor": 233472,
        "L2_cache_size": 62914560,
    }
    return SimpleNamespace(**{**h200, **change})


def test_an_h200_sustains_what_was_measured_on_one() -> None:
    rates = DeviceRates.of(properties())
    assert rates.flops_per_s == pytest.approx(790e12, rel=0.01)
    assert rates.memory_bytes_per_s == pytest.approx(4.3e12, rel=0.01)
    assert (rates.sm_count, rates.clock_hz) == (132, 1.98e9)
    assert DeviceRates.from_dict(rates.as_dict()) == rates


def test_a_slice_computes_less() -> None:
    assert DeviceRates.of(properties(multi_processor_count=60)).flops_per_s == pytest.approx(
        790e12 * 60 / 132, rel=0.01
    )


@pytest.mark.parametrize("change", [{"major": 3}, {"memory_clock_rate": 0}, {"clock_rate": 0}])
def test_what_is_not_known_is_said(change: dict[str, int]) -> None:
    with pytest.raises(WorkError, match=r"rates of NVIDIA H200[\s\S]*found: sm_"):
        DeviceRates.of(properties(**change))


@pytest.mark.parametrize("wrong", [0, -1.0, float("inf"), float("nan"), True, "fast"])
def test_a_rate_is_a_positive_number(wrong: Any) -> None:
    with pytest.raises(ValueError, match="clock_hz must be a positive number"):
        DeviceRates.from_dict({**DeviceRates.of(properties()).as_dict(), "clock_hz": wrong})


@pytest.mark.gpu
def test_the_rates_of_this_gpu_can_be_read() -> None:
    assert DeviceRates.read("cuda:0").sm_count > 0


def test_stored_records_keep_their_key_for_the_number_of_sms():
    rates = DeviceRates.of(properties())
    data = rates.as_dict()
    assert next(iter(data)) == "multiprocessors" and data["multiprocessors"] == rates.sm_count
    assert set(data) == set(DeviceRates.names())
    with pytest.raises(TypeError, match="sm_count"):
        DeviceRates.from_dict({name: value for name, value in data.items() if name != "multiprocessors"})
