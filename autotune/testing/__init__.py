"""Fakes of autotune's seams, and the promises of each seam as test classes; importing this package loads nothing heavy.

The test classes lie in modules of their own, which need pytest and torch: a plug-in's tests inherit those of
``autotune.testing.backend_conformance``.
"""

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
