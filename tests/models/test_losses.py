from __future__ import annotations

import math

import models  # noqa: F401 - before TensorFlow: picks Keras 2

import numpy as np  # isort: skip
import pytest
import tensorflow as tf
import tensorflow_recommenders as tfrs

from models.contract import Candidates
from models.negatives import Sources, mixed_softmax


def batch(size: int, *, seed: int = 0) -> tuple[tf.Tensor, tf.Tensor]:
    random = np.random.default_rng(seed)
    query, candidate = random.normal(size=(2, size, 5)).astype(np.float32)
    return tf.constant(query), tf.constant(candidate)


def in_batch(
    query: tf.Tensor,
    candidate: tf.Tensor,
    *,
    temperature: float,
    reward: tf.Tensor,
    probability: tf.Tensor | None = None,
    ids: tf.Tensor | None = None,
) -> tf.Tensor:
    """What the model trains with, where negatives are the mini-batch's own: Yi et al. 2019."""
    if ids is None:
        ids = tf.range(tf.shape(query)[0])
    return mixed_softmax(
        query / temperature,
        Sources(Candidates(candidate, tf.cast(ids, tf.int64), probability, None)),
        reward=reward,
        logq="none" if probability is None else "all",
        inclusion=probability,
        masked=True,
    )


def numpy_loss(
    query: np.ndarray,
    candidate: np.ndarray,
    *,
    temperature: float,
    reward: np.ndarray,
    probability: np.ndarray,
    ids: np.ndarray,
) -> float:
    """The paper's equation, row by row, in float64."""
    total = 0.0
    for i in range(len(query)):
        scores = candidate.astype(np.float64) @ query[i] / temperature - np.log(probability)
        kept = (ids != ids[i]) | (np.arange(len(ids)) == i)
        total += reward[i] * (np.log(np.exp(scores[kept]).sum()) - scores[i])
    return total / len(query)


def test_two_samples_by_hand() -> None:
    query = tf.constant([[1.0, 0.0], [0.0, 1.0]])
    candidate = tf.constant([[0.5, 0.1], [0.3, 0.7]])
    # Scores / .5: [[1, .6], [.2, 1.4]].
    # Minus log p, p = (1/2, 1/4): [[1.693, 1.986], [.893, 2.786]].
    # -log P: log(1 + e^.293) = .8504, log(1 + e^-1.893) = .1403; rewards 1 and .5.
    found = in_batch(
        query,
        candidate,
        temperature=0.5,
        reward=tf.constant([1.0, 0.5]),
        probability=tf.constant([0.5, 0.25]),
    )
    expected = (math.log(1 + math.exp(math.log(2) - 0.4)) + 0.5 * 0.14034) / 2
    assert float(found) == pytest.approx(expected, abs=1e-4)
    assert float(found) == pytest.approx(0.4603, abs=1e-3)


def test_equal_to_tensorflow_recommenders() -> None:
    query, candidate = batch(16)
    ids = tf.constant(np.random.default_rng(1).integers(0, 6, 16))
    probability = tf.constant(np.random.default_rng(2).uniform(0.01, 1, 16).astype(np.float32))
    reward = tf.constant(np.random.default_rng(3).uniform(0, 1, 16).astype(np.float32))
    theirs = tfrs.tasks.Retrieval(temperature=0.3, remove_accidental_hits=True)(
        query,
        candidate,
        sample_weight=reward,
        candidate_sampling_probability=probability,
        candidate_ids=ids,
    )
    ours = in_batch(
        query,
        candidate,
        temperature=0.3,
        reward=reward,
        probability=probability,
        ids=ids,
    )
    # Theirs is a sum over the batch.
    assert float(ours) == pytest.approx(float(theirs) / 16, rel=1e-5)


def test_gradient_is_that_of_the_equation() -> None:
    query, candidate = batch(6)
    settings = {
        "temperature": 0.7,
        "reward": np.array([1, 0.5, 0, 2, 1, 1], np.float32),
        "ids": np.array([3, 1, 3, 2, 3, 2]),
        "probability": np.array([0.9, 0.1, 0.5, 0.2, 1.0, 0.3], np.float32),
    }
    with tf.GradientTape() as tape:
        tape.watch([query, candidate])
        loss = in_batch(
            query,
            candidate,
            temperature=settings["temperature"],
            reward=tf.constant(settings["reward"]),
            probability=tf.constant(settings["probability"]),
            ids=tf.constant(settings["ids"]),
        )
        scaled = 3.0 * loss  # the upstream gradient counts too
    found = tape.gradient(scaled, [query, candidate])
    values = [query.numpy().astype(np.float64), candidate.numpy().astype(np.float64)]
    assert float(loss) == pytest.approx(numpy_loss(*values, **settings), rel=1e-5)
    step = 1e-6
    for side in (0, 1):
        expected = np.zeros_like(values[side])
        for place in np.ndindex(values[side].shape):
            for sign in (1, -1):
                moved = [value.copy() for value in values]
                moved[side][place] += sign * step
                expected[place] += sign * 3.0 * numpy_loss(*moved, **settings) / (2 * step)
        np.testing.assert_allclose(found[side], expected, atol=1e-4)


def test_accidental_hit_has_no_weight_and_no_gradient() -> None:
    # All candidates of query 0 but its own are the same item: nothing is left to lose against.
    query, candidate = batch(4)
    reward = tf.constant([1.0, 0.0, 0.0, 0.0])
    with tf.GradientTape() as tape:
        tape.watch(candidate)
        loss = in_batch(
            query,
            candidate,
            temperature=0.1,
            reward=reward,
            ids=tf.constant([7, 7, 7, 7]),
        )
    assert float(loss) == 0.0
    assert tape.gradient(loss, candidate).numpy().tolist() == np.zeros((4, 5)).tolist()


def test_without_ids_repeated_candidates_stay_negatives() -> None:
    query, candidate = tf.ones([3, 2]), tf.ones([3, 2])
    loss = in_batch(query, candidate, temperature=1.0, reward=tf.ones(3))
    assert float(loss) == pytest.approx(math.log(3))


def test_one_constant_probability_changes_nothing() -> None:
    query, candidate = batch(8)
    plain = in_batch(query, candidate, temperature=0.2, reward=tf.ones(8))
    corrected = in_batch(
        query,
        candidate,
        temperature=0.2,
        reward=tf.ones(8),
        probability=tf.fill([8], 0.01),
    )
    assert float(corrected) == pytest.approx(float(plain), rel=1e-5)


def test_rarer_negatives_weigh_more() -> None:
    query, candidate = tf.ones([2, 1]), tf.ones([2, 1])
    # Equal scores: -log P_0 = log(1 + p_0 / p_1) = log(1 + .5 / .1) = log 6.
    loss = in_batch(
        query,
        candidate,
        temperature=1.0,
        reward=tf.constant([1.0, 0.0]),
        probability=tf.constant([0.5, 0.1]),
    )
    assert float(loss) == pytest.approx(math.log(6) / 2, rel=1e-6)


def test_stable_at_extreme_logits() -> None:
    query = tf.constant([[1.0, 0.0], [0.0, 1.0]])
    with tf.GradientTape() as tape:
        tape.watch(query)
        # Scores / .001: 1000 on the wrong side, 0 on the right one.
        loss = in_batch(query, query[::-1], temperature=0.001, reward=tf.ones(2))
    assert float(loss) == pytest.approx(1000.0)
    assert np.isfinite(tape.gradient(loss, query).numpy()).all()
