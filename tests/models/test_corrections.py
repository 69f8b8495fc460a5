"""The forms of the correction: numbers by hand, the equality of two forms, and their biases."""

from __future__ import annotations

import math

import models  # noqa: F401 - before TensorFlow: picks Keras 2

import numpy as np  # isort: skip
import pytest
import tensorflow as tf

from models.corrections import draw_probability, log_expected_count
from models.losses import Negatives, Positives, sampled_softmax

LN2, LN3 = math.log(2), math.log(3)


def test_a_draw_is_not_an_appearance() -> None:
    # Two draws at q = 1/2: seen with 1 - 1/4. A rare item: p is nearly B q.
    assert float(draw_probability(tf.constant(0.75), batch_size=2)) == pytest.approx(0.5)
    rare = float(draw_probability(tf.constant(1e-5), batch_size=1000))
    assert rare == pytest.approx(1e-8, rel=1e-3)
    # In every batch: at most 6.9 times (ln 1000) a batch, not certainty.
    certain = float(draw_probability(tf.constant(1.0), batch_size=1000))
    assert certain * 1000 == pytest.approx(math.log(1000), rel=5e-3)


def test_a_mixture_counts_the_draws_of_each_source() -> None:
    # 3 in-batch and 5 bank draws at q = .1, 2 corpus draws at u = .25: .8 + .5 = 1.3 expected.
    found = log_expected_count(
        tf.constant([0.1]), tf.constant([0.25]), num_stream=tf.constant(8), num_corpus=2
    )
    assert float(found[0]) == pytest.approx(math.log(1.3), rel=1e-6)
    alone = log_expected_count(tf.constant([0.1]), None, num_stream=tf.constant(8))
    assert float(alone[0]) == pytest.approx(math.log(0.8), rel=1e-6)


def one_query(form: str, *, scores, counts, positive_count, hits=0, num_draws=4.0) -> float:
    """One query [1]; the positive scores 0; the first `hits` negatives are its own item."""
    identity = [7] * hits + list(range(100, 100 + len(scores) - hits))
    uncorrected = form == "none"
    return float(
        sampled_softmax(
            tf.constant([[1.0]]),
            Positives(
                tf.constant([[0.0]]),
                tf.constant([7], tf.int64),
                None if uncorrected else tf.math.log([positive_count]),
                tf.constant([1.0]),
            ),
            [
                Negatives(
                    tf.constant(scores)[:, tf.newaxis],
                    tf.constant(identity, tf.int64),
                    None if uncorrected else tf.math.log(tf.constant(counts)),
                )
            ],
            logq=form,
            num_draws=tf.constant(num_draws),
        )
    )


def test_the_four_forms_by_hand() -> None:
    # Four draws, the first hits the positive. exp of the others' scores: 1, 2, 3. Expected counts
    # 1/2, 1, 3/2, the positive's 2 (a share of 2/4 of the draws).
    world = {
        "scores": [9.0, 0.0, LN2, LN3],
        "counts": [2.0, 0.5, 1.0, 1.5],
        "positive_count": 2.0,
        "hits": 1,
    }
    # none: the positive and 6, so 7.
    assert one_query("none", **world) == pytest.approx(math.log(7), rel=1e-6)
    # all: the positive is 1/2, the negatives 2 each, so 6.5 / .5 = 13.
    assert one_query("all", **world) == pytest.approx(math.log(13), rel=1e-6)
    # negatives: 1 + 6 = 7, by the expected counts.
    assert one_query("negatives", **world) == pytest.approx(math.log(7), rel=1e-6)
    # positive-excluded: n' = 3 of n = 4 are left; times 4 (1 - 2/4) / 3: 1 + 6 x 2/3 = 5.
    assert one_query("positive-excluded", **world) == pytest.approx(math.log(5), rel=1e-6)


def test_forms_agree_where_they_should() -> None:
    # A positive that is never drawn, no hits: nothing to exclude. Counts of 1 correct nothing.
    world = {"scores": [0.3, -1.0, 0.1], "counts": [1.0, 1.0, 1.0], "num_draws": 3.0}
    negatives = one_query("negatives", positive_count=1e-9, **world)
    assert one_query("positive-excluded", positive_count=1e-9, **world) == pytest.approx(negatives)
    assert one_query("none", positive_count=1e-9, **world) == pytest.approx(negatives)
    assert one_query("all", positive_count=1.0, **world) == pytest.approx(negatives)
    # A popular one tells them apart: by log(1 - 1.5/3) = -log 2 on the negatives.
    excluded = one_query("positive-excluded", positive_count=1.5, **world)
    assert math.expm1(excluded) == pytest.approx(math.expm1(negatives) / 2, rel=1e-5)


def test_one_cross_entropy_has_the_gradient_of_the_two_form_loss() -> None:
    """Khrylchenko et al.: L = -sg(1 - P^) log( e^f_p / sum_d e^(f_d - log Q'(d)) )."""
    random = np.random.default_rng(5)
    batch, num, dim = 6, 40, 8
    share = random.dirichlet(np.ones(12))  # Q* of twelve items
    drawn, own = random.integers(0, 12, num), random.integers(0, 12, batch)
    values = [random.normal(size=shape) for shape in ((batch, dim), (batch, dim), (num, dim))]
    query, positive, negative = (tf.Variable(each, dtype=tf.float32) for each in values)

    with tf.GradientTape() as tape:
        loss = sampled_softmax(
            query,
            Positives(
                positive,
                tf.constant(own),
                tf.constant(np.log(num * share[own]), tf.float32),
                tf.ones(batch),
            ),
            [
                Negatives(
                    negative,
                    tf.constant(drawn),
                    tf.constant(np.log(num * share[drawn]), tf.float32),
                )
            ],
            logq="positive-excluded",
            num_draws=tf.constant(float(num)),
        )
    ours = tape.gradient(loss, [query, positive, negative])

    query, positive, negative = (tf.Variable(each, dtype=tf.float64) for each in values)
    with tf.GradientTape() as tape:
        kept = tf.constant((drawn[None] != own[:, None]).astype(float))
        f_positive = tf.reduce_sum(query * positive, axis=1)
        excluded = np.log(share[drawn][None] / (1 - share[own][:, None]))
        weighed = kept * tf.exp(tf.matmul(query, negative, transpose_b=True) - excluded)
        total = tf.reduce_sum(weighed, axis=1)
        estimate = tf.exp(f_positive)
        estimate /= estimate + total / tf.reduce_sum(kept, axis=1)
        rows = -tf.stop_gradient(1 - estimate) * (f_positive - tf.math.log(total))
        theirs = tape.gradient(tf.reduce_mean(rows), [query, positive, negative])
    assert (kept.numpy() == 0).any()  # there were hits
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-4, atol=1e-6)
    assert float(loss) != pytest.approx(float(tf.reduce_mean(rows)), rel=0.05)  # values differ


def test_the_mixture_makes_the_sum_over_draws_unbiased() -> None:
    # form `negatives`, sums averaged over many samples of 2 stream and 3 corpus draws.
    random = np.random.default_rng(6)
    scores, stream, corpus = [0.0, 1.0, 2.0], [0.7, 0.2, 0.1], [0.1, 0.1, 0.8]
    drawn = np.concatenate(
        [
            random.choice(3, (20_000, 2), p=stream),
            random.choice(3, (20_000, 3), p=corpus),
        ],
        axis=1,
    )
    log_count = log_expected_count(
        tf.constant(stream), tf.constant(corpus), num_stream=tf.constant(2), num_corpus=3
    ).numpy()
    found = np.exp(np.array(scores) - log_count)[drawn].sum(axis=1).mean()
    assert found == pytest.approx(np.exp(scores).sum(), rel=0.02)


def _mean_gradient(form: str, *, scores: np.ndarray, share: np.ndarray, own: int) -> np.ndarray:
    """The gradient by the items' scores, averaged over samples of 64 draws from `share`."""
    items, draws, repeats = len(share), 64, 3000
    random = np.random.default_rng(8)
    samples = tf.constant(random.choice(items, (repeats, draws), p=share))
    log_count = tf.constant(np.log(draws * share), tf.float32)
    query = tf.constant(scores[None], tf.float32)
    corrected = form != "none"

    @tf.function(autograph=False)
    def mean_gradient() -> tf.Tensor:
        def add(number: tf.Tensor, total: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            drawn = samples[number]
            with tf.GradientTape() as tape:
                tape.watch(query)
                loss = sampled_softmax(
                    query,
                    Positives(
                        tf.one_hot([own], items),
                        tf.constant([own], tf.int64),
                        log_count[own : own + 1] if corrected else None,
                        tf.ones(1),
                    ),
                    [
                        Negatives(
                            tf.one_hot(drawn, items),
                            drawn,
                            tf.gather(log_count, drawn) if corrected else None,
                        )
                    ],
                    logq=form,
                    num_draws=tf.constant(float(draws)),
                )
            return number + 1, total + tape.gradient(loss, query)[0] / repeats

        return tf.while_loop(lambda n, _: n < repeats, add, [0, tf.zeros(items)])[1]

    return mean_gradient().numpy()


@pytest.mark.parametrize("own", [0, 150], ids=["head", "tail"])
def test_bias_of_the_gradient_against_the_full_softmax(own: int) -> None:
    """200 items, Zipf draws, 64 of them, P(positive) = .9: algorithms' directions, our numbers."""
    random = np.random.default_rng(9)
    share = 1 / np.arange(1, 201)
    share /= share.sum()
    scores = random.normal(size=200)
    others = np.exp(np.delete(scores, own)).sum()
    scores[own] = math.log(9 * others)  # P = .9
    full = np.exp(scores) / np.exp(scores).sum()
    full[own] -= 1
    bias = {}
    for form in ("none", "all", "negatives", "positive-excluded"):
        found = _mean_gradient(form, scores=scores, share=share, own=own)
        bias[form] = np.linalg.norm(found - full) / np.linalg.norm(full)
    assert bias["none"] > 0.4
    assert bias["all"] > 0.4
    assert bias["negatives"] < 0.04
    assert bias["positive-excluded"] < 0.04


@pytest.mark.parametrize("form", ["none", "all", "negatives"])
def test_the_minimiser_with_few_negatives_is_the_distribution_for_form_all_only(form: str) -> None:
    """One context, tabular scores, 4 negatives from Q, positives from P: KL of softmax from P."""
    random = np.random.default_rng(10)
    items, draws, steps, batch = 20, 4, 4000, 64
    target, share = random.dirichlet(np.ones(items)), random.dirichlet(np.ones(items))
    log_count = tf.constant(np.log(draws * share), tf.float32)
    positives = tf.constant(random.choice(items, (steps, batch), p=target))
    negatives = tf.constant(random.choice(items, (steps, draws), p=share))
    corrected = form != "none"

    @tf.function(autograph=False)
    def minimise() -> tf.Tensor:
        def step(number: tf.Tensor, scores: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            own, drawn = positives[number], negatives[number]
            with tf.GradientTape() as tape:
                tape.watch(scores)
                loss = sampled_softmax(
                    tf.tile(scores[tf.newaxis], [batch, 1]),
                    Positives(
                        tf.one_hot(own, items),
                        tf.fill([batch], tf.constant(-1, tf.int64)),
                        tf.gather(log_count, own) if corrected else None,
                        tf.ones(batch),
                    ),
                    [
                        Negatives(
                            tf.one_hot(drawn, items),
                            drawn,
                            tf.gather(log_count, drawn) if corrected else None,
                        )
                    ],
                    logq=form,
                )
            rate = 4.0 / (1.0 + tf.cast(number, tf.float32) / 100.0)
            return number + 1, scores - rate * tape.gradient(loss, scores)

        return tf.while_loop(lambda n, _: n < steps, step, [0, tf.zeros(items)])[1]

    found = tf.nn.softmax(minimise()).numpy().astype(float)
    divergence = float((target * np.log(target / found)).sum())
    if form == "all":
        assert divergence < 0.02
    else:
        assert divergence > 0.15
