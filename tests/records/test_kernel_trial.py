import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.records.canonical import canonical
from autotune.records.configuration import Configuration
from autotune.records.kernel_problem import GemmProblem
from autotune.records.kernel_trial import KernelTrial
from autotune.records.trial import Failure

BASE: dict[str, Any] = {
    "problem": GemmProblem(m=128, n=768, k=3072),
    "device_class": "nvidia-h200/whole/700w",
    "toolchain": "0" * 64,
    "configuration": Configuration.of("cutlass", {"tile_m": 64}),
}
FAILURE = Failure(stage="measure", kind="inaccurate", detail="an element is off", figure=0.5)
microseconds = st.floats(min_value=0, exclude_min=True, allow_nan=False, allow_infinity=False)
plain = st.one_of(st.text(max_size=9), st.integers(), st.booleans(), st.lists(st.integers(), max_size=3))


@given(
    samples_us=st.lists(microseconds, min_size=1, max_size=9).map(tuple),
    error=st.none() | st.floats(0, 1),
    made=st.dictionaries(st.text(max_size=9), st.integers() | st.floats(allow_nan=False, allow_infinity=False)),
    conditions=st.dictionaries(st.text(max_size=9), plain),
    failure=st.none() | st.just(FAILURE),
)
def test_json_brings_back_the_same_trial(failure: Failure | None, **values: Any) -> None:
    before = KernelTrial(**BASE, **values, failure=failure, state="failed" if failure else "complete")
    assert KernelTrial.from_dict(json.loads(canonical(before.as_dict()))) == before


def test_every_field_is_in_its_json() -> None:
    trial = KernelTrial(**BASE, state="complete", samples_us=(1.0,))
    assert set(trial.as_dict()) == {field.name for field in dataclasses.fields(KernelTrial)}


@pytest.mark.parametrize(
    ("samples_us", "median_us"),
    [((3.0, 1.0, 2.0), 2.0), ((4.0, 1.0, 2.0, 3.0), 2.5), ((7,), 7)],
)
def test_the_median_is_of_the_samples(samples_us: tuple[float, ...], median_us: float) -> None:
    assert KernelTrial(**BASE, state="complete", samples_us=samples_us).median_us == median_us


def test_a_failed_trial_may_have_no_sample_and_so_no_median() -> None:
    assert KernelTrial(**BASE, state="failed", failure=FAILURE).median_us is None
    assert KernelTrial(**BASE, state="failed", failure=FAILURE, samples_us=(2.0,)).median_us == 2.0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"state": "running"}, "state 'running' is not one of"),
        ({"state": "complete"}, "a complete kernel trial needs samples"),
        ({"state": "complete", "samples_us": (1.0,), "failure": FAILURE}, "that is complete has a failure"),
        ({"state": "failed"}, "that is failed lacks a failure"),
        *(
            ({"state": "complete", "samples_us": (1.0, bad)}, "a sample is a positive number of microseconds, found")
            for bad in (0.0, -1.0, float("nan"), float("inf"))
        ),
    ],
)
def test_what_is_no_kernel_trial_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        KernelTrial(**BASE, **values)
