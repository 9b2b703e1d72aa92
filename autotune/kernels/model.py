"""A Gaussian process over tiles for the difference between measured and estimated times: ResidualModel.

It models the logarithm of measured over estimated time. Its mean is one unknown offset, which the first results
determine, and its covariance decreases with the distance of two tiles, each feature in units of its own length scale: a
tile near a measured one gets a similar correction, a distant one keeps its estimate and its deviation.
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.linalg import cho_factor, cho_solve
from scipy.special import erfc

Floats = npt.NDArray[np.float64]

OFFSET = 0.5
"""Standard deviation of the common error of all estimates, in log time."""

SPREAD = 0.2
"""Standard deviation of single tiles from the offset."""

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
        """Return mean and standard deviation of the residual at each place.

        Before any result the offset's deviation is left out: it is the same for all tiles and decides nothing.
        """
        if not len(self._residuals):
            return np.zeros(len(places)), np.full(len(places), SPREAD)
        across = _covariance(places, self._places)
        mean = across @ self._weights
        explained = np.einsum("ij,ji->i", across, cho_solve(self._factor, across.T))
        variance = OFFSET**2 + SPREAD**2 - explained
        return mean, np.sqrt(np.maximum(variance, NOISE**2))


def expected_gain(mean: Floats, deviation: Floats, best: float) -> Floats:
    """Return the expected improvement: the mean amount by which a normal draw is below ``best``."""
    z = (best - mean) / deviation
    density = np.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    gain: Floats = deviation * (z * 0.5 * erfc(-z / math.sqrt(2)) + density)
    return gain


def _covariance(left: Floats, right: Floats) -> Floats:
    squares = (left**2).sum(1)[:, None] + (right**2).sum(1)[None, :] - 2 * left @ right.T
    covariance: Floats = OFFSET**2 + SPREAD**2 * np.exp(-np.maximum(squares, 0) / 2)
    return covariance
