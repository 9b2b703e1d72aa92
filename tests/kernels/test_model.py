"""The correction of estimates by what was measured."""

import math

import numpy as np
import pytest

from autotune.kernels.model import NOISE, SPREAD, ResidualModel, expected_gain


def test_before_any_result_every_tile_is_doubted_alike() -> None:
    mean, deviation = ResidualModel(np.empty((0, 2)), []).predict(np.array([[0.0, 0.0], [3.0, 1.0]]))
    assert mean.tolist() == [0.0, 0.0]
    assert deviation.tolist() == [SPREAD, SPREAD]


def test_near_a_result_it_follows_it_and_far_away_it_keeps_its_doubt() -> None:
    places = np.array([[0.0], [10.0], [20.0], [30.0]])
    model = ResidualModel(places, [0.3, -0.1, 0.1, 0.1])
    mean, deviation = model.predict(np.array([[0.0], [10.0], [100.0]]))
    assert mean[:2] == pytest.approx([0.3, -0.1], abs=0.01)
    assert max(deviation[:2]) < 2 * NOISE
    assert mean[2] == pytest.approx(0.1, abs=0.02)  # what all estimates are off by
    assert deviation[2] > 0.9 * SPREAD


def test_the_same_tile_twice_breaks_nothing() -> None:
    mean, _ = ResidualModel(np.zeros((3, 1)), [0.1, 0.1, 0.13]).predict(np.zeros((1, 1)))
    assert mean[0] == pytest.approx(0.11, abs=0.01)


def test_expected_gain_is_that_of_a_normal_draw() -> None:
    draws = np.random.default_rng(0).normal(1.0, 0.5, 200_000)
    found = expected_gain(np.array([1.0]), np.array([0.5]), 0.8)
    assert found[0] == pytest.approx(np.maximum(0.8 - draws, 0).mean(), rel=0.02)
    assert expected_gain(np.array([1.0]), np.array([0.5]), 1.0)[0] == pytest.approx(0.5 / math.sqrt(2 * math.pi))
