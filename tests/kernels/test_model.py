"""The correction of estimates by what was measured."""

import math

import numpy as np
import pytest

from autotune.kernels.model import NOISE, SPREAD, ResidualModel, expected_gain


def test_before_any_result_every_tile_is_doubted_alike() -> None:
    prediction = ResidualModel(np.empty((0, 2)), []).predict(np.array([[0.0, 0.0], [3.0, 1.0]]))
    assert prediction.mean.tolist() == [0.0, 0.0]
    assert prediction.deviation.tolist() == [SPREAD, SPREAD]


def test_near_a_result_it_follows_it_and_far_away_it_keeps_its_doubt() -> None:
    places = np.array([[0.0], [10.0], [20.0], [30.0]])
    model = ResidualModel(places, [0.3, -0.1, 0.1, 0.1])
    prediction = model.predict(np.array([[0.0], [10.0], [100.0]]))
    mean, deviation = prediction.mean, prediction.deviation
    assert mean[:2] == pytest.approx([0.3, -0.1], abs=0.01)
    assert max(deviation[:2]) < 2 * NOISE
    assert mean[2] == pytest.approx(0.1, abs=0.02)  # what all estimates are off by
    assert deviation[2] > 0.9 * SPREAD


def test_the_same_tile_twice_breaks_nothing() -> None:
    mean = ResidualModel(np.zeros((3, 1)), [0.1, 0.1, 0.13]).predict(np.zeros((1, 1))).mean
    assert mean[0] == pytest.approx(0.11, abs=0.01)


def test_expected_gain_is_that_of_a_normal_draw() -> None:
    draws = np.random.default_rng(0).normal(1.0, 0.5, 200_000)
    found = expected_gain(np.array([1.0]), np.array([0.5]), 0.8)
    assert found[0] == pytest.approx(np.maximum(0.8 - draws, 0).mean(), rel=0.02)
    assert expected_gain(np.array([1.0]), np.array([0.5]), 1.0)[0] == pytest.approx(0.5 / math.sqrt(2 * math.pi))


def test_a_belief_lowers_the_doubt_as_a_result_would_and_changes_no_mean() -> None:
    places = np.random.default_rng(1).normal(size=(12, 3))
    model = ResidualModel(places[:4], [0.1, -0.1, 0.2, 0.0])
    prediction = model.predict(places)
    mean = prediction.mean.copy()
    for number in (7, 9):
        prediction.believe(number)
    with_results = ResidualModel(places[[0, 1, 2, 3, 7, 9]], [0.1, -0.1, 0.2, 0.0, mean[7], mean[9]]).predict(places)
    assert prediction.deviation == pytest.approx(with_results.deviation, abs=1e-6)
    assert prediction.mean.tolist() == mean.tolist() == pytest.approx(with_results.mean.tolist(), abs=1e-3)
    nothing = ResidualModel(np.empty((0, 3)), []).predict(places)
    nothing.believe(0)
    assert nothing.deviation[0] < SPREAD / 2
