"""Sources of negatives together: a row is corrected for the mixture; hits masked in each source."""

from __future__ import annotations

import math

import models  # noqa: F401 - before TensorFlow: picks Keras 2

import numpy as np  # isort: skip
import pytest
import tensorflow as tf

from models.contract import Candidates
from models.losses import HardNegatives
from models.negatives import Sources, mixed_softmax

LN2, LN3 = math.log(2), math.log(3)
DIM = 3


def rows(random, ids, *, stream, corpus) -> Candidates:
    return Candidates(
        tf.constant(random.normal(size=(len(ids), DIM)), tf.float32),
        tf.constant(ids, tf.int64),
        tf.constant(stream[ids], tf.float32),
        tf.constant(corpus[ids], tf.float32),
    )


def oracle(query, sources: Sources, *, reward, logq: str, inclusion) -> float:  # noqa: C901
    """Row by row, source by source, from the definitions."""
    batch = sources.batch
    size = len(query)
    num_stream = (size - 1 if sources.in_batch else 0) + (
        len(sources.bank.identity) if sources.bank else 0
    )
    num_corpus = len(sources.corpus.identity) if sources.corpus else 0
    in_batch_alone = not sources.bank and not sources.corpus

    def count(rows: Candidates, at: int) -> float:
        if logq == "all" and in_batch_alone:
            return float(inclusion[at])
        return num_stream * float(rows.probability[at]) + num_corpus * float(
            rows.corpus_probability[at]
        )

    total = 0.0
    for i in range(size):
        listed = [batch if sources.in_batch else None, sources.corpus, sources.bank]
        kept = [
            (float(query[i] @ each.vectors[j].numpy()), count(each, j))
            for each in listed
            if each is not None
            for j in range(len(each.identity))
            if int(each.identity[j]) != int(batch.identity[i])
        ]
        everything = sum(len(each.identity) for each in listed if each is not None)
        own = float(query[i] @ batch.vectors[i].numpy())
        own_count = count(batch, i)
        draws = num_stream + num_corpus
        positive, scale = math.exp(own), 1.0
        negatives = sum(math.exp(f) / (1.0 if logq == "none" else c) for f, c in kept)
        if logq == "all":
            positive /= own_count
        if logq == "positive-excluded":
            hits = everything - len(kept)
            scale = draws * (1 - own_count / draws) / (everything - hits)
        hard = 0.0
        if sources.hard is not None:
            for j, row in enumerate(sources.hard.row.numpy()):
                if row == i and int(sources.hard.identity[j]) != int(batch.identity[i]):
                    score = math.exp(float(query[i] @ sources.hard.vectors[j].numpy()))
                    hard += score / (own_count if logq == "all" else 1.0)
        total += reward[i] * math.log1p((scale * negatives + hard) / positive)
    return total / size


@pytest.mark.parametrize("logq", ["none", "all", "negatives", "positive-excluded"])
@pytest.mark.parametrize(
    "used", ["in_batch", "corpus", "in_batch corpus", "in_batch bank", "in_batch corpus bank hard"]
)
def test_every_mixture_and_form_against_the_definitions(logq: str, used: str) -> None:
    random = np.random.default_rng(3)
    stream, corpus = random.dirichlet(np.ones(9)), random.dirichlet(np.ones(9))

    def make(size: int) -> Candidates:
        return rows(random, random.integers(0, 9, size), stream=stream, corpus=corpus)

    batch = make(5)
    sources = Sources(
        batch,
        in_batch="in_batch" in used,
        corpus=make(4) if "corpus" in used else None,
        bank=make(7) if "bank" in used else None,
        hard=HardNegatives(make(6).vectors, make(6).identity, tf.constant([0, 0, 1, 3, 3, 3]))
        if "hard" in used
        else None,
    )
    if sources.hard is not None:
        identity = sources.hard.identity.numpy()
        identity[0] = int(batch.identity[0])  # a hard negative that hits its positive
        sources = sources._replace(
            hard=sources.hard._replace(
                identity=tf.constant(identity), row=tf.cast(sources.hard.row, tf.int64)
            )
        )
    query = random.normal(size=(5, DIM)).astype(np.float32)
    reward = np.array([1.0, 0.5, 0.0, 2.0, 1.0], np.float32)
    inclusion = tf.constant(random.uniform(0.05, 0.9, 5), tf.float32)
    found = mixed_softmax(
        tf.constant(query),
        sources,
        reward=tf.constant(reward),
        logq=logq,
        inclusion=inclusion,
        masked=True,
    )
    expected = oracle(query, sources, reward=reward, logq=logq, inclusion=inclusion.numpy())
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_a_hit_weighs_nothing_in_any_source() -> None:
    # Every negative of every source is the positive's own item: nothing is left to lose against.
    one = Candidates(tf.ones([2, DIM]), tf.constant([4, 4], tf.int64), *[tf.fill([2], 0.1)] * 2)
    hard = HardNegatives(one.vectors, one.identity, tf.constant([0, 1], tf.int64))
    for masked, expected in ((True, 0.0), (False, math.log(1 + 1 + 2 + 2 + 1))):
        found = mixed_softmax(
            tf.ones([2, DIM]),
            Sources(one, corpus=one, bank=one, hard=hard),
            reward=tf.ones(2),
            logq="none",
            inclusion=None,
            masked=masked,
        )
        assert float(found) == pytest.approx(expected, abs=1e-6)


def every_source() -> tuple[tf.Tensor, Sources]:
    """Returns two queries, and candidates of each source for them."""
    random = np.random.default_rng(3)
    share = np.full(9, 1 / 9)
    batch, corpus, bank = (
        rows(random, np.array(ids), stream=share, corpus=share)
        for ids in ([0, 1], [2, 3, 0], [4, 5])
    )
    hard = HardNegatives(tf.ones([1, DIM]), tf.constant([6], tf.int64), tf.constant([1], tf.int64))
    query = tf.constant(random.normal(size=(2, DIM)), tf.float32)
    return query, Sources(batch, corpus=corpus, bank=bank, hard=hard)


def test_gradients_of_the_joint_form_reach_all_sources_but_the_bank() -> None:
    query, sources = every_source()
    batch, corpus, bank, hard = sources.batch, sources.corpus, sources.bank, sources.hard
    variables = [query, batch.vectors, corpus.vectors, hard.vectors, bank.vectors]
    settings = {"reward": tf.ones(2), "logq": "negatives", "inclusion": None, "masked": True}

    def loss() -> tf.Tensor:
        sources = Sources(
            batch._replace(vectors=variables[1]),
            corpus=corpus._replace(vectors=variables[2]),
            bank=bank._replace(vectors=variables[4]),
            hard=hard._replace(vectors=variables[3]),
            joint=True,
        )
        return mixed_softmax(variables[0], sources, **settings)

    with tf.GradientTape() as tape:
        tape.watch(variables)
        value = loss()
    gradients = tape.gradient(value, variables)
    assert gradients[4] is None or not gradients[4].numpy().any()
    originals = list(variables)
    for side in range(4):
        expected = np.zeros(originals[side].shape)
        for place in np.ndindex(expected.shape):
            for sign in (1, -1):
                moved = originals[side].numpy()
                moved[place] += sign * 1e-2
                variables[side] = tf.constant(moved)
                expected[place] += sign * float(loss()) / 2e-2
                variables[side] = originals[side]
        np.testing.assert_allclose(gradients[side], expected, atol=2e-3)


def test_queries_learn_from_the_bank_and_candidates_as_if_it_were_not_there() -> None:
    query, sources = every_source()
    batch, corpus, bank, hard = sources.batch, sources.corpus, sources.bank, sources.hard
    learned = [query, batch.vectors, corpus.vectors, hard.vectors]
    settings = {"reward": tf.ones(2), "logq": "all", "inclusion": None, "masked": True}

    def gradients(bank: Candidates | None, *, joint: bool) -> tuple[float, list[np.ndarray]]:
        with tf.GradientTape() as tape:
            tape.watch(learned)
            loss = mixed_softmax(query, sources._replace(bank=bank, joint=joint), **settings)
        return float(loss), [each.numpy() for each in tape.gradient(loss, learned)]

    loss, found = gradients(bank, joint=False)
    with_bank, joint = gradients(bank, joint=True)
    _, without = gradients(None, joint=False)
    assert loss == pytest.approx(with_bank, rel=1e-6)
    np.testing.assert_allclose(found[0], joint[0], rtol=1e-5)
    for place in (1, 2, 3):
        np.testing.assert_allclose(found[place], without[place], rtol=1e-5)
        assert np.abs(found[place] - joint[place]).max() > 1e-3


def test_a_hard_negative_is_one_of_its_own_row_only() -> None:
    # Form `all`, in-batch p = 1/2 and 1/4; scores all 0. Row 0: p_0 / p_1 = 2, its hard one 1.
    batch = Candidates(tf.zeros([2, 1]), tf.constant([1, 2], tf.int64), tf.ones(2), None)
    hard = HardNegatives(tf.zeros([1, 1]), tf.constant([9], tf.int64), tf.constant([0], tf.int64))
    found = mixed_softmax(
        tf.ones([2, 1]),
        Sources(batch, hard=hard),
        reward=tf.ones(2),
        logq="all",
        inclusion=tf.constant([0.5, 0.25]),
        masked=True,
    )
    # Row 0: log(1 + 2 + 1), row 1: log(1 + 1/2).
    assert float(found) == pytest.approx((math.log(4) + math.log(1.5)) / 2, rel=1e-6)
