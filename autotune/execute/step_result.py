"""The end of a step as its coordinator sees it: StepResult."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

from autotune.errors import AutotuneError
from autotune.execute.step_record import StepRecord
from autotune.records.trial import Failure

Span = tuple[str, float, float]
"""A stage with its begin and end in monotonic seconds."""

Answer = TypeVar("Answer", covariant=True)
Typed = TypeVar("Typed", bound=StepRecord)

PlainAnswer = Mapping[str, Any]
"""The answer of a step as it came over the border."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult(Generic[Answer]):
    """The answer of a step, or how it failed, and when it was in which stage.

    ``raised`` is the project's own error that the step raised, if it raised one. A gate's refusal is a failure beside
    an answer.
    """

    value: Answer | None
    failure: Failure | None
    spans: tuple[Span, ...]
    seconds: float
    raised: AutotuneError | None = None

    @property
    def answer(self) -> Answer:
        """The answer of a step that has one; ``ValueError`` if it failed before it answered."""
        if self.value is None:
            raise ValueError(f"a step without an answer: {self.failure}")
        return self.value

    def typed(self, kind: type[Typed]) -> "StepResult[Typed]":
        """Return the same result with its plain answer as a record."""
        plain = cast("PlainAnswer | None", self.value)
        return StepResult(
            value=None if plain is None else kind.from_dict(plain),
            failure=self.failure, spans=self.spans, seconds=self.seconds, raised=self.raised,
        )  # fmt: skip
