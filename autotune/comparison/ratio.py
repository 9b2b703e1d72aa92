"""How much a figure has changed, and if that is more than its intervals allow to be chance: FigureRatio, ratio_of."""

from dataclasses import dataclass
from typing import Literal

from autotune.comparison.figures import Figure

THRESHOLD = 0.03
"""The change that counts unless the user names another one."""

RatioJudgement = Literal["slower", "faster", "same", "undecided"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FigureRatio:
    """A figure divided by an earlier one, above 1 if it has become worse.

    ``interval`` holds the least and the largest ratio that the intervals of both allow.
    """

    value: float
    interval: tuple[float, float]
    judgement: RatioJudgement

    def as_dict(self) -> dict[str, object]:
        """Plain data for JSON."""
        return {"judgement": self.judgement, "ratio": self.value, "interval": list(self.interval)}


def ratio_of(now: Figure, before: Figure, threshold: float) -> FigureRatio:
    """Compare two figures whose samples do not pair; ``threshold`` is a share, such as 0.03."""
    low, high = now.ends[0] / before.ends[1], now.ends[1] / before.ends[0]
    judgement: RatioJudgement = "undecided"
    if low > 1 + threshold:
        judgement = "slower"
    elif high < 1 / (1 + threshold):
        judgement = "faster"
    elif low >= 1 / (1 + threshold) and high <= 1 + threshold:
        judgement = "same"
    return FigureRatio(value=(now.value or 0.0) / (before.value or 1.0), interval=(low, high), judgement=judgement)
