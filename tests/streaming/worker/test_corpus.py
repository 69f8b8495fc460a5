from __future__ import annotations

import streaming  # noqa: F401 - before TensorFlow: picks Keras 2

import numpy as np  # isort: skip
import pyarrow as pa
import pytest
import tensorflow as tf

from models.contract import CorpusDraws, Input
from models.features import identities
from pipeline.schema import InputError
from streaming.worker.corpus import ItemCorpus, draw_corpus

ITEMS = pa.table(
    {
        "item_id": pa.array([10, 20, 30], pa.int64()),
        "tags": pa.array([[1], [], [2, 3]], pa.list_(pa.int64())),
    }
)
COUNTS = np.array([1, 4, 16])


def corpus(smoothing: float) -> ItemCorpus:
    inputs = (
        Input(name="item_id", dtype=tf.int64),
        Input(name="tags", dtype=tf.int64, ragged=True),
    )
    draws = CorpusDraws(count=2, smoothing=smoothing, identity="item_id", inputs=inputs)
    return ItemCorpus(ITEMS, COUNTS, draws)


@pytest.mark.parametrize(
    ("smoothing", "expected"),
    [(0.0, [1 / 3] * 3), (0.5, [1 / 7, 2 / 7, 4 / 7]), (1.0, [1 / 21, 4 / 21, 16 / 21])],
)
def test_items_are_drawn_by_their_smoothed_frequency(smoothing: float, expected: list) -> None:
    found = corpus(smoothing)
    np.testing.assert_allclose(found.probability, expected)
    drawn = np.bincount(found.draw([1, 2], 30_000), minlength=3) / 30_000
    np.testing.assert_allclose(drawn, expected, atol=0.01)


def test_a_seed_draws_the_same_again_and_another_one_does_not() -> None:
    found = corpus(0.0)
    assert found.draw([1, 2], 50).tolist() == found.draw([1, 2], 50).tolist()
    assert found.draw([1, 2], 50).tolist() != found.draw([1, 3], 50).tolist()


def test_probabilities_by_identity_and_an_unknown_item_counts_as_the_rarest() -> None:
    known = identities(tf.constant([30, 99, 10], tf.int64)).numpy()
    found = corpus(1.0).probability_of(known)
    np.testing.assert_allclose(found, [16 / 21, 1 / 21, 1 / 21], rtol=1e-6)


def test_a_graph_draws_by_its_range_with_features() -> None:
    found = corpus(0.5)
    found.register()
    draws = found.draws

    @tf.function(autograph=False)
    def graph(start: tf.Tensor):
        return draw_corpus(
            tf.constant("topic"),
            tf.stack([tf.constant(3, tf.int64), start]),
            num=tf.constant(20, tf.int64),
            identity=identities(tf.constant([20], tf.int64)),
            draws=draws,
        )

    own, drawn, features = graph(tf.constant(8, tf.int64))
    assert own.numpy().tolist() == [pytest.approx(2 / 7)]
    by_id = {10: (1 / 7, [1]), 20: (2 / 7, []), 30: (4 / 7, [2, 3])}
    ids = features["item_id"].numpy().tolist()
    assert set(ids) == {10, 20, 30}
    np.testing.assert_allclose(drawn, [by_id[each][0] for each in ids], rtol=1e-6)
    assert features["tags"].to_list() == [by_id[each][1] for each in ids]
    again, other = graph(tf.constant(8, tf.int64)), graph(tf.constant(9, tf.int64))
    assert again[2]["item_id"].numpy().tolist() == ids
    assert other[2]["item_id"].numpy().tolist() != ids
    found.register(seed=5)  # another run
    assert graph(tf.constant(8, tf.int64))[2]["item_id"].numpy().tolist() != ids


def test_an_empty_corpus_is_refused() -> None:
    with pytest.raises(InputError, match=r"model\.negatives\.corpus: found no items"):
        ItemCorpus(ITEMS.slice(0, 0), COUNTS[:0], corpus(0.0).draws)
