"""Fakes of autotune's seams, for its tests and for those who build on it; imports nothing heavy."""

from autotune.testing.fake_clock import FakeCall, FakeClock
from autotune.testing.misbehaving_backend import FAULTS, MISBEHAVING, MisbehavingBackend
from autotune.testing.wrong_answers import (
    Answer,
    answering_mean,
    ignoring_input,
    rounding_outputs_to_fp8,
    rounding_weights_to_fp8,
    swapping_outputs,
)

__all__ = [
    "FAULTS",
    "MISBEHAVING",
    "Answer",
    "FakeCall",
    "FakeClock",
    "MisbehavingBackend",
    "answering_mean",
    "ignoring_input",
    "rounding_outputs_to_fp8",
    "rounding_weights_to_fp8",
    "swapping_outputs",
]
