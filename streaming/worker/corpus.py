"""Draws from the item corpus, made where a range is learned (Yang et al. 2020, MNS).

The corpus is read once, when a worker starts: every item with the features of its latest sample and
its number of samples. Draws are seeded by the range, so a retry draws the same; an item that has
come since is a negative by other sources until the worker is started again.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import tensorflow as tf

from models.contract import CorpusDraws, FeatureValue
from models.features import column_arrays, feature_value, identities
from pipeline.schema import InputError
from streaming.servers.order import independent
from streaming.worker.reader import register_function

_DRAW_TOKEN = "headrace.draw_corpus"
_SALT = 1  # the reader shuffles by the same range


class ItemCorpus:
    """Items, drawn with replacement in proportion to their number of samples to some power.

    Safe to use from many threads: nothing changes once it is registered.

    Attributes:
        draws: What the model asked for.
        probability: [num_items] float64 of one draw.
    """

    def __init__(self, items: pa.Table, counts: np.ndarray, draws: CorpusDraws) -> None:
        """Prepares draws.

        Args:
            items: Rows with the columns of `draws.inputs`, one per item.
            counts: [num_items] number of samples of each, at least 1.
            draws: What the model asks for.

        Raises:
            InputError: If there are no items.
        """
        if items.num_rows == 0:
            raise InputError(
                "model.negatives.corpus: found no items; expected the directory of samples that"
                " `headrace samples` wrote"
            )
        self.draws = draws
        weights = counts.astype(np.float64) ** draws.smoothing
        self.probability = weights / weights.sum()
        self._ends = np.cumsum(self.probability)
        self._items = items.select([each.name for each in draws.inputs]).combine_chunks()
        named = {each.name: each for each in draws.inputs}
        (ids,) = column_arrays(items.column(draws.identity), named[draws.identity])
        known = identities(tf.constant(ids)).numpy()
        order = np.argsort(known)
        self._known, self._known_probability = known[order], self.probability[order]
        self._unknown = self.probability.min()
        self._seed = 0

    def draw(self, seed: Sequence[int], num: int) -> np.ndarray:
        """Returns [num] row numbers, the same for the same seed."""
        uniform = np.random.default_rng([*seed, _SALT]).random(num)
        # Rounding may leave the last end below 1.
        return np.minimum(np.searchsorted(self._ends, uniform, side="right"), len(self._ends) - 1)

    def arrays(self, rows: np.ndarray) -> list[np.ndarray]:
        """Returns the inputs of items, flat as in `models.features.column_arrays`."""
        taken = self._items.take(pa.array(rows))
        return [
            array
            for each in self.draws.inputs
            for array in column_arrays(taken.column(each.name), each)
        ]

    def features(self, rows: np.ndarray) -> dict[str, FeatureValue]:
        """Returns the inputs of items by name, raw."""
        arrays = iter(self.arrays(rows))
        return {
            each.name: feature_value(
                [tf.constant(next(arrays)) for _ in range(2 if each.ragged else 1)], each
            )
            for each in self.draws.inputs
        }

    def probability_of(self, identity: np.ndarray) -> np.ndarray:
        """Returns [num] float32 probabilities of one draw, by identity.

        An item that the corpus lacks is taken for its rarest: it will be one when the corpus is
        read again.
        """
        places = np.minimum(np.searchsorted(self._known, identity), len(self._known) - 1)
        found = self._known[places] == identity
        return np.where(found, self._known_probability[places], self._unknown).astype(np.float32)

    def register(self, *, seed: int = 0) -> None:
        """Makes this corpus reachable from graphs that run in this process.

        Args:
            seed: The run's; draws differ between runs of different seeds.
        """
        self._seed = seed
        register_function(_DRAW_TOKEN, self._draw_for_graph)

    def _draw_for_graph(
        self, topic: bytes, numbers: np.ndarray, num: np.ndarray, identity: np.ndarray
    ) -> list[np.ndarray]:
        seed = [self._seed, zlib.crc32(topic), int(numbers[0]), int(numbers[1])]
        rows = self.draw(seed, int(num))
        drawn = self.probability[rows].astype(np.float32)
        return [self.probability_of(identity), drawn, *self.arrays(rows)]


def draw_corpus(
    topic: tf.Tensor,
    numbers: tf.Tensor,
    *,
    num: tf.Tensor,
    identity: tf.Tensor,
    draws: CorpusDraws,
) -> tuple[tf.Tensor, tf.Tensor, Mapping[str, FeatureValue]]:
    """Draws items where this graph runs; see `ItemCorpus.register`.

    Args:
        topic: string scalar, of the range.
        numbers: [2 or more] int64: partition number and start of the range.
        num: int64 scalar, how many items to draw.
        identity: [num_samples] int64 identities of the samples' candidates.
        draws: What the model asks for.

    Returns:
        The corpus' probabilities of the samples' candidates [num_samples] and of the drawn items
        [num], and the drawn items' features by name, raw.
    """
    types: list[tf.DType] = [tf.float32, tf.float32]
    for each in draws.inputs:
        types += [each.dtype, tf.int64] if each.ragged else [each.dtype]
    outputs = tf.raw_ops.PyFunc(
        input=[topic, numbers, num, identity], token=_DRAW_TOKEN, Tout=types
    )
    independent(outputs[0])
    own, drawn, *rest = outputs
    values = iter(rest)
    features = {
        each.name: feature_value([next(values) for _ in range(2 if each.ragged else 1)], each)
        for each in draws.inputs
    }
    return tf.ensure_shape(own, [None]), tf.ensure_shape(drawn, [None]), features
