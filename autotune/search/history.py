"""The outcome of one trial, as the search uses it."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from autotune.records.configuration import Configuration

OutcomeState = Literal["complete", "pruned", "infeasible", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialOutcome:
    """One finished trial as the search sees it.

    ``score`` is the figure that the objective minimises, in its own unit. A complete trial always has one, a pruned one
    if a figure was measured before it was stopped. ``build_s`` is the time of its build. One that failed may be
    ``inaccurate``: the gate refused its answers.
    """

    configuration: Configuration
    state: OutcomeState
    score: float | None = None
    build_s: float | None = None
    inaccurate: bool = False

    def __post_init__(self) -> None:
        if self.state not in get_args(OutcomeState):
            raise ValueError(f"outcome state {self.state!r} is not one of {get_args(OutcomeState)}")
        if self.state == "complete" and self.score is None:
            raise ValueError(f"complete outcome of {self.configuration} needs a score")
        if self.inaccurate and self.state not in ("infeasible", "failed"):
            raise ValueError(f"an inaccurate outcome of {self.configuration} has failed, found {self.state}")
        if self.score is not None and not (math.isfinite(self.score) and self.score > 0):
            raise ValueError(f"the score of {self.configuration} must be positive and finite, found {self.score!r}")
        if self.build_s is not None and not (math.isfinite(self.build_s) and self.build_s >= 0):
            raise ValueError(f"build time of {self.configuration} must be finite, found {self.build_s!r}")
