"""A Gaussian process over tiles: by how much the times measured differ from those estimated.

It models the logarithm of measured over estimated time. Its mean is one unknown offset, which the first results settle,
and its covariance falls with the distance of two tiles, each feature in units of its own length scale: a tile near a
measured one is corrected like it, one far away keeps its estimate and its doubt.
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.linalg import cho_factor, cho_solve
from scipy.special import erfc

Floats = npt.NDArray[np.float64]

OFFSET = 0.5
"""Standard deviation of what all estimates are wrong by together, in log time."""

SPREAD = 0.2
"""Standard deviation of what single tiles differ by from the offset."""

NOISE = 0.01
"""Standard deviation of a measured median."""


class ResidualModel:
    """Predicts residuals at ``places`` (one row of scaled features each) from those observed."""

    def __init__(self, places: Floats, residuals: Sequence[float]) -> None:
        self._places = places
        self._residuals = np.asarray(residuals, dtype=float)
        if len(self._residuals):
            covariance = _covariance(places, places) + NOISE**2 * np.eye(len(places))
            self._factor = cho_factor(covariance)
            self._weights = cho_solve(self._factor, self._residuals)

    def predict(self, places: Floats) -> tuple[Floats, Floats]:
        """Mean and standard deviation of the residual at each place.

        Before any result the offset's doubt is left out: it is all tiles' alike and decides nothing between them.
        """
        if not len(self._residuals):
            return np.zeros(len(places)), np.full(len(places), SPREAD)
        across = _covariance(places, self._places)
        mean = across @ self._weights
        explained = np.einsum("ij,ji->i", across, cho_solve(self._factor, across.T))
        variance = OFFSET**2 + SPREAD**2 - explained
        return mean, np.sqrt(np.maximum(variance, NOISE**2))


def expected_gain(mean: Floats, deviation: Floats, best: float) -> Floats:
    """How far below ``best`` a normal draw is expected to fall (expected improvement)."""
    z = (best - mean) / deviation
    density = np.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    gain: Floats = deviation * (z * 0.5 * erfc(-z / math.sqrt(2)) + density)
    return gain


def _covariance(left: Floats, right: Floats) -> Floats:
    squares = (left**2).sum(1)[:, None] + (right**2).sum(1)[None, :] - 2 * left @ right.T
    covariance: Floats = OFFSET**2 + SPREAD**2 * np.exp(-np.maximum(squares, 0) / 2)
    return covariance
