"""A Gaussian process over tiles for the difference between measured and estimated times: ResidualModel.

It models the logarithm of measured over estimated time. Its mean is one unknown offset, which the first results
determine, and its covariance decreases with the distance of two tiles, each feature in units of its own length scale: a
tile near a measured one gets a similar correction, a distant one keeps its estimate and its deviation.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy.linalg import cho_factor, cho_solve, solve_triangular
from scipy.special import erfc

from autotune.kernels.tile_table import Floats

OFFSET = 0.5
"""Standard deviation of the common error of all estimates, in log time."""

SPREAD = 0.2
"""Standard deviation of single tiles from the offset."""

NOISE = 0.01
"""Standard deviation of a measured median."""


class Prediction:
    """The predicted log time of each place: ``mean``, and ``deviation``, which falls with results to come.

    :meth:`believe` assumes that the result of a place will be the predicted one: the deviations of the places near it
    fall as by a result, and no mean changes.
    """

    def __init__(self, mean: Floats, variance: Floats, column: Callable[[int], Floats]) -> None:
        self.mean = mean
        self._variance, self._column = variance, column
        self._beliefs: list[Floats] = []

    @property
    def deviation(self) -> Floats:
        """The standard deviation of each place."""
        return np.sqrt(np.maximum(self._variance, NOISE**2))

    def believe(self, place: int) -> None:
        """Assume a result of the predicted time: one step of a Cholesky factorisation."""
        column = self._column(place)
        for belief in self._beliefs:
            column = column - belief * belief[place]
        belief = column / math.sqrt(max(column[place], 0.0) + NOISE**2)
        self._beliefs.append(belief)
        self._variance = self._variance - belief**2


class ResidualModel:
    """Predicts residuals at ``places`` (one row of scaled features each) from those observed."""

    def __init__(self, places: Floats, residuals: Sequence[float]) -> None:
        self._places = places
        self._residuals = np.asarray(residuals, dtype=float)
        if len(self._residuals):
            covariance = _covariance(places, places) + NOISE**2 * np.eye(len(places))
            self._factor = cho_factor(covariance, lower=True)
            self._weights = cho_solve(self._factor, self._residuals)

    def predict(self, places: Floats, offset: Floats | float = 0.0) -> Prediction:
        """Predict the residual at each place, and add an offset to its mean.

        Before any result the offset's deviation is left out: it is the same for all tiles and decides nothing.
        """
        if not len(self._residuals):
            return Prediction(
                np.zeros(len(places)) + offset, np.full(len(places), SPREAD**2),
                lambda place: _covariance(places, places[place : place + 1])[:, 0],
            )  # fmt: skip
        across = _covariance(places, self._places)
        mean: Floats = across @ self._weights + offset
        solved = solve_triangular(self._factor[0], across.T, lower=True, check_finite=False)
        variance: Floats = OFFSET**2 + SPREAD**2 - np.einsum("ji,ji->i", solved, solved)
        return Prediction(
            mean, variance,
            lambda place: _covariance(places, places[place : place + 1])[:, 0] - solved.T @ solved[:, place],
        )  # fmt: skip


def expected_gain(mean: Floats, deviation: Floats, best: float) -> Floats:
    """Return the expected improvement: the mean amount by which a normal draw is below ``best``."""
    z = (best - mean) / deviation
    density = np.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    gain: Floats = deviation * (z * 0.5 * erfc(-z / math.sqrt(2)) + density)
    return np.maximum(gain, np.finfo(float).tiny)  # the differences of tails may be below zero


def _covariance(left: Floats, right: Floats) -> Floats:
    squares = (left**2).sum(1)[:, None] + (right**2).sum(1)[None, :] - 2 * left @ right.T
    covariance: Floats = OFFSET**2 + SPREAD**2 * np.exp(-np.maximum(squares, 0) / 2)
    return covariance
