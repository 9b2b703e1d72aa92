"""Measured roofs survive JSON, and refuse what cannot be."""

import json
from dataclasses import replace

import pytest

from autotune.records.roofs import Roofs
from autotune.testing.sample_records import sample_roof, sample_roofs


def test_roofs_survive_a_trip_through_json() -> None:
    roofs = sample_roofs()
    read = Roofs.from_dict(json.loads(json.dumps(roofs.as_dict())))
    assert read.as_dict() == roofs.as_dict() and read.copy_gb_s.samples == 3
    assert list(read.all) == ["copy", "fp32", "bf16", "launch"] and read.absent == {"fp16": "no such product"}


def test_the_flags_of_all_measurements_are_those_of_the_roofs() -> None:
    roofs = replace(
        sample_roofs(), copy_gb_s=sample_roof(flags=("throttled",)), launch_us=sample_roof(flags=("busy_host",))
    )
    assert roofs.flags == ("throttled", "busy_host") and sample_roofs().flags == ()


def test_what_cannot_be_is_refused() -> None:
    roof = sample_roof()
    for value in (0.0, -1.0, float("inf"), float("nan"), 1000.0):
        with pytest.raises(ValueError, match="positive number within its interval"):
            replace(roof, value=value)
    with pytest.raises(ValueError, match="whole number"):
        replace(roof, size=0)
    with pytest.raises(ValueError, match="samples of a roof"):
        replace(roof, samples=True)
    with pytest.raises(ValueError, match="fp32, tf32, bf16, fp16, found fp8"):
        replace(sample_roofs(), matrix_tflops={"fp8": roof})
    with pytest.raises(ValueError, match="device class"):
        replace(sample_roofs(), device_class="")
    with pytest.raises(ValueError, match="a later version of autotune"):
        Roofs.from_dict({**sample_roofs().as_dict(), "schema": 2})
