"""The kinds of values in a study file; each has a description in words of the values that it accepts."""

import re
from collections import abc
from typing import Annotated, TypeVar

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

NAME = re.compile(r"[a-z0-9]+([._-][a-z0-9]+)*")
PARAMETER = re.compile(r"\w[\w.:/-]*")
"""The name of an input: of a parameter in Python, or as other frameworks write them, such as ``input.1``."""
DEVICE = re.compile(r"auto|cpu|cuda(:[0-9]{1,3})?")
_DURATION = re.compile(r"(?:([0-9]+(?:\.[0-9]+)?)h)?(?:([0-9]+(?:\.[0-9]+)?)m)?(?:([0-9]+(?:\.[0-9]+)?)s)?")
_LONGEST_S = 30 * 24 * 3600.0
_Item = TypeVar("_Item")


def parse_duration(text: str) -> float:
    """Return the seconds of a duration such as ``90s``, ``3m`` or ``1h30m``; ValueError unless it is above zero."""
    match = _DURATION.fullmatch(text.strip()) if len(text) < 40 else None
    if not match or not any(match.groups()):
        raise ValueError(f"{text!r} is not a duration such as 90s, 3m or 1h30m")
    seconds = sum(float(part) * unit for part, unit in zip(match.groups("0"), (3600.0, 60.0, 1.0), strict=True))
    if not 0 < seconds <= _LONGEST_S:
        raise ValueError(f"a duration is more than 0 seconds and at most 30 days, found {text!r}")
    return seconds


def _expect(expected: str) -> PydanticCustomError:
    return PydanticCustomError("expected", "{expected}", {"expected": expected})


def one_of(words: "tuple[str, ...] | abc.Callable[[], tuple[str, ...]]") -> BeforeValidator:
    """Accept one of these words; a function that lists them is called for each value."""

    def check(value: object) -> object:
        accepted = words() if callable(words) else words
        if value not in accepted:
            raise PydanticCustomError("one_of", "one of {accepted}", {"accepted": ", ".join(accepted)})
        return value

    return BeforeValidator(check)


def matches(pattern: "re.Pattern[str]", expected: str, longest: int = 100) -> BeforeValidator:
    """Accept text that the whole pattern matches."""

    def check(value: object) -> object:
        if not isinstance(value, str) or len(value) > longest or not pattern.fullmatch(value):
            raise _expect(expected)
        return value

    return BeforeValidator(check)


def as_many(value: object) -> object:
    """Accept a single value in place of a list with that value."""
    return value if isinstance(value, tuple) else (value,)


AUTO_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""The batches of ``batch: auto``: each doubles the last, until throughput is saturated."""


def batches(value: object) -> object:
    """Accept a list of batches, a single batch, or ``auto``."""
    return AUTO_BATCHES if value == "auto" else as_many(value)


def distinct(values: tuple[_Item, ...]) -> tuple[_Item, ...]:
    """Accept a list that has at least one value, and none of them twice."""
    if not values or len(set(values)) != len(values):
        raise _expect("at least one value, each once")
    return values


def size_or_batch(value: object) -> object:
    """Accept one size of a shape: a positive whole number or ``batch``."""
    if value != "batch" and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise _expect("a positive whole number, or the word batch")
    return value


def budget_seconds(value: object) -> float:
    """Accept a duration; return its seconds."""
    try:
        return parse_duration(value if isinstance(value, str) else f"{value}")
    except ValueError as error:
        raise _expect("a duration above zero, such as 90s, 3m or 1h30m") from error


def limits_by_output(value: object) -> object:
    """Accept one limit for all outputs, or limits by the names of outputs."""
    return value if isinstance(value, dict) else {"default": value}


def all_or_names(value: object) -> object:
    """Accept ``all``, for which ``None`` is returned, or a list of names."""
    if value is None or (isinstance(value, str) and value != "all"):
        raise _expect("all, or a list of names of backends (autotune doctor lists them)")
    return None if value == "all" else value


Positive = Annotated[int, Field(ge=1, le=1_000_000)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
SignalLimit = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]
Text = Annotated[str, Field(min_length=1, max_length=500)]
Callable = Annotated[
    str,
    matches(
        re.compile(r"[^:\n]+:[A-Za-z_]\w*"),
        "path.py:callable (relative to the study file) or package.module:callable",
        longest=500,
    ),
]
