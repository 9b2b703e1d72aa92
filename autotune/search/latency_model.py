"""Predicts which configurations are too slow to be worth a trial, from the trials so far: LatencyModel."""

import math
from collections.abc import Iterable

import numpy as np

from autotune.records.configuration import Configuration
from autotune.search.history import TrialOutcome

EFFECT = 0.3
"""Standard deviation of the effect of a backend or of a parameter's value on log latency, before any trial."""

NOISE = 0.1
"""Standard deviation of the part of log latency that a sum of effects does not explain."""

FACTOR, DEVIATIONS = 1.5, 0.5
"""A configuration is hopeless if even a latency that is lower by DEVIATIONS is above FACTOR times the best so far.

Of 178 proposals of samplers in 15 recorded studies, 162 were slower than 1.5 times the best so far, or failed. The
model refuses 119 of these and none of the others. They took 716 s of the 1,271 s that all 178 took.
"""

FEWEST = 3
"""Nothing is hopeless before this number of trials."""

PRECISION = "precision"

Feature = tuple[str, str, str]
"""The name of a parameter, the type of its value, and the value."""


class LatencyModel:
    """A Bayesian linear regression of log latency on the backend, its precision, and the values of all parameters.

    A parameter has one effect in all backends, so that a backend that has not tried ``fp32`` or a CUDA graph yet is
    judged by the others. The effect of a value that no trial had is zero and uncertain, which makes the prediction
    uncertain. A precision that no trial had is never hopeless, because its effect is often the largest of all. A
    prediction depends on the set of outcomes alone.
    """

    def __init__(self, outcomes: Iterable[TrialOutcome]) -> None:
        scores = {
            outcome.configuration: outcome.score
            for outcome in sorted(outcomes, key=lambda outcome: outcome.configuration.digest)
            if outcome.score is not None and outcome.state in ("complete", "pruned")
        }
        self._ready = len(scores) >= FEWEST
        if not self._ready:
            return
        rows = [_features(configuration) for configuration in scores]
        self._columns = {feature: place for place, feature in enumerate(sorted(set().union(*rows)))}
        logs = np.array([math.log(score) for score in scores.values()])
        self._points = np.array([self._vector(row) for row in rows])
        covariance = EFFECT**2 * self._points @ self._points.T + NOISE**2 * np.eye(len(rows))
        self._precision = np.linalg.inv(covariance)
        self._mean = float(logs.mean())
        self._weights = self._precision @ (logs - self._mean)
        self._limit = float(logs.min()) + math.log(FACTOR)

    def hopeless(self, configuration: Configuration) -> bool:
        """Return whether a configuration is very probably much slower than the best so far."""
        if not self._ready:
            return False
        features = _features(configuration)
        if any(name == PRECISION and (name, kind, value) not in self._columns for name, kind, value in features):
            return False
        similarity = EFFECT**2 * self._points @ self._vector(features)
        mean = self._mean + float(similarity @ self._weights)
        variance = EFFECT**2 * len(features) - float(similarity @ self._precision @ similarity)
        return mean - DEVIATIONS * math.sqrt(max(0.0, variance)) > self._limit

    def hopeless_as_known(self, configuration: Configuration) -> bool:
        """Return whether a configuration is hopeless, and every value of it was in a trial."""
        return self._ready and _features(configuration) <= self._columns.keys() and self.hopeless(configuration)

    def _vector(self, features: set[Feature]) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
        vector = np.zeros(len(self._columns))
        vector[[self._columns[feature] for feature in features if feature in self._columns]] = 1.0
        return vector


def _features(configuration: Configuration) -> set[Feature]:
    """Return the effects that a configuration has: its backend, each value, and its precision in this backend.

    Values of different types are different: 1 thread is not ``True``.
    """
    values = {(name, type(value).__name__, str(value)) for name, value in configuration.values}
    own = (configuration.backend, PRECISION, str(configuration.get(PRECISION, "")))
    return {("backend", "", configuration.backend), own, *values}
