from __future__ import annotations

import math

import numpy as np
import pytest
import tensorflow as tf

from models.contract import Optimizer
from models.towers import tower, tower_weights


def test_weights_are_declared_layer_by_layer_with_glorot_bounds() -> None:
    declared = tower_weights("query", [10, 6, 4], optimizer=Optimizer())
    assert [(each.name, each.shape) for each in declared] == [
        ("query/0/kernel", (10, 6)),
        ("query/0/bias", (6,)),
        ("query/1/kernel", (6, 4)),
        ("query/1/bias", (4,)),
    ]
    # The root of 6 / (inputs + outputs).
    assert declared[0].initial_bound == pytest.approx(math.sqrt(0.375))
    assert declared[2].initial_bound == pytest.approx(math.sqrt(0.6))
    assert declared[1].initial_bound == declared[3].initial_bound == 0


def test_relu_between_layers_and_none_at_the_end() -> None:
    weights = {
        "t/0/kernel": tf.constant([[1.0, -1.0]]),
        "t/0/bias": tf.constant([0.0, 1.0]),
        "t/1/kernel": tf.constant([[-3.0, 0.0], [0.0, 4.0]]),
        "t/1/bias": tf.constant([0.0, 0.0]),
    }
    # x = 1: hidden relu(1, 0) = (1, 0), last (-3, 0), normalised (-1, 0): not rectified.
    # x = -1: hidden relu(-1, 2) = (0, 2), last (0, 8), normalised (0, 1).
    # x = .5: hidden (.5, .5), last (-1.5, 2), of length 2.5: (-.6, .8).
    inputs = tf.constant([[1.0], [-1.0], [0.5]])
    found = tower("t", inputs, weights=weights, num_layers=2)
    np.testing.assert_allclose(found, [[-1, 0], [0, 1], [-0.6, 0.8]], atol=1e-6)


def test_zero_vector_stays_finite() -> None:
    weights = {"t/0/kernel": tf.zeros([2, 3]), "t/0/bias": tf.zeros([3])}
    found = tower("t", tf.ones([1, 2]), weights=weights, num_layers=1)
    assert found.numpy().tolist() == [[0.0, 0.0, 0.0]]
