"""Trains in one process with the trainer's own mini-batches, on samples held as tensors.

Ranges are learned in the order of time, pass after pass; the state, the optimizer, the frequency
estimator, the bank and the draws are those of a cluster with one server and one worker. A function
is traced once and serves all seeds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple, cast

import numpy as np
import polars as pl
import pyarrow as pa
import tensorflow as tf

from jobs.bench.in_place import estimate, handles, parameters
from models.contract import CorpusSample, FeatureValue
from models.features import arrow_features, identities
from models.index import latest_items
from models.two_tower import TwoTower
from pipeline.schema import ITEM_ID
from streaming.config import FrequencyConfig
from streaming.servers.state import ServerState
from streaming.worker.corpus import ItemCorpus
from streaming.worker.mini_batches import MiniBatches
from streaming.worker.negatives import LocalBank, RangeNegatives

Features = Mapping[str, FeatureValue]
_CPU = "/device:CPU:0"


class Chunk(NamedTuple):
    """A range of samples: what the trainer would read at once.

    Attributes:
        features: Raw inputs of all samples.
        probability: [num_samples] float32, from exact counts, of each sample's item to appear in a
            mini-batch.
    """

    features: Features
    probability: tf.Tensor


class Draws(NamedTuple):
    """Draws from the corpus for a range.

    Attributes:
        features: Raw candidate inputs, [num] each.
        exact: [num] float32, from exact counts, of each drawn item to appear in a mini-batch.
        corpus_probability: [num] float32 of a draw to be that item.
        own_probability: [num_samples] float32 of a draw to be each sample's item.
    """

    features: Features
    exact: tf.Tensor
    corpus_probability: tf.Tensor
    own_probability: tf.Tensor


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Material:
    """Training samples, ready for any variant of a model on a specification.

    Attributes:
        training: The samples, oldest first.
        chunks: The same, in ranges.
        items: One row per item, with the candidate features of its latest sample.
        counts: [num_items] samples of each.
        batch_size: Samples per mini-batch.
    """

    training: pa.Table
    chunks: list[Chunk]
    items: pa.Table
    counts: np.ndarray
    batch_size: int

    @property
    def exact(self) -> np.ndarray:
        """[num_items] float32 probability of each item to appear in a mini-batch."""
        return inclusion(self.counts, total=self.training.num_rows, batch_size=self.batch_size)


def prepare(
    training: pa.Table, model: TwoTower, *, batch_size: int, batches_per_range: int
) -> Material:
    """Cuts training samples into ranges, in order, and counts their items.

    Args:
        training: Samples.
        model: Says which inputs are read.
        batch_size: Samples per mini-batch.
        batches_per_range: Mini-batches per range.
    """
    items = latest_items(training, model.specification)
    ids = pl.DataFrame({ITEM_ID: pl.from_arrow(items.column(ITEM_ID))}).with_row_index("row")
    found = pl.DataFrame({ITEM_ID: pl.from_arrow(training.column(ITEM_ID))}).join(
        ids, on=ITEM_ID, how="left", maintain_order="left"
    )
    rows = found["row"].to_numpy()
    counts = np.bincount(rows, minlength=items.num_rows)
    likely = inclusion(counts, total=training.num_rows, batch_size=batch_size)[rows]
    size = batch_size * batches_per_range
    chunks = [
        Chunk(
            arrow_features(training.slice(start, size), model.inputs),
            tf.constant(likely[start : start + size]),
        )
        for start in range(0, training.num_rows, size)
    ]
    return Material(
        training=training, chunks=chunks, items=items, counts=counts, batch_size=batch_size
    )


def inclusion(counts: np.ndarray, *, total: int, batch_size: int) -> np.ndarray:
    """Returns each item's probability to appear in a random mini-batch, from its exact count.

    Of n samples of an item among N, a batch of B has at least one with probability
    1 - (1 - n/N)^B.
    """
    return (1.0 - (1.0 - counts / total) ** batch_size).astype(np.float32)


class Learner:
    """A whole trainer in one process."""

    def __init__(
        self, model: TwoTower, material: Material, *, frequency: FrequencyConfig, exact: bool
    ) -> None:
        """Makes the state and traces nothing yet.

        Args:
            model: What to train.
            material: On what.
            frequency: The estimator's settings.
            exact: Whether log q comes from exact counts in place of the estimator.
        """
        self.model = model
        self._material = material
        self._frequency = frequency
        self._exact = exact
        self._state = self._new_state(seed=0)
        self._corpus: ItemCorpus | None = None
        if model.corpus is not None:
            self._corpus = ItemCorpus(material.items, material.counts, model.corpus)
        self._batches = MiniBatches(model, batch_size=material.batch_size)
        self._learn = tf.function(self._range, autograph=False, reduce_retracing=True)
        self._seed, self._ranges = 0, 0

    def _new_state(self, *, seed: int) -> ServerState:
        return ServerState(
            self.model, [_CPU], frequency=self._frequency, seed=seed, num_slots=1, floor=0
        )

    def reset(self, *, seed: int) -> None:
        """Starts over: the initial parameters of a seed, no frequencies, an empty bank."""
        fresh = self._new_state(seed=seed)
        for old, new in zip(variables(self._state), variables(fresh), strict=True):
            old.assign(new)
        if self._state.bank is not None:
            self._state.bank.cursor.assign(0)
        self._seed, self._ranges = seed, 0

    def learn(self, chunk: Chunk) -> float:
        """Learns a range, in place, and returns the sum of its mini-batches' losses."""
        draws = self._draw(chunk) if self._corpus is not None else None
        self._ranges += 1
        return float(self._learn(chunk, draws))

    def parameters(self) -> dict[str, np.ndarray]:
        """Returns copies of the tables and weights, by name."""
        return parameters(self._state)

    def _draw(self, chunk: Chunk) -> Draws:
        corpus = cast(ItemCorpus, self._corpus)
        ids = cast(tf.Tensor, chunk.features[ITEM_ID])
        num_batches = -(-int(tf.size(ids)) // self._material.batch_size)
        rows = corpus.draw([self._seed, self._ranges], num_batches * corpus.draws.count)
        return Draws(
            corpus.features(rows),
            tf.constant(self._material.exact[rows]),
            tf.constant(corpus.probability[rows].astype(np.float32)),
            tf.constant(corpus.probability_of(identities(ids).numpy())),
        )

    def _range(self, chunk: Chunk, draws: Draws | None) -> tf.Tensor:
        raw = chunk.features
        num_samples = tf.size(raw[ITEM_ID], out_type=tf.int64)
        drawn = None if draws is None else cast(tf.Tensor, draws.features[ITEM_ID])
        probability, drawn_probability = self._probabilities(chunk, draws, drawn)
        extra = RangeNegatives(bank=self._local_bank())
        if draws is not None:
            sample = CorpusSample(
                self.model.encode(draws.features), drawn_probability, draws.corpus_probability
            )
            extra = extra._replace(corpus_probability=draws.own_probability, corpus=sample)
        learned = self._batches.learn(
            self.model.encode(raw),
            handles(self._state),
            probability=probability,
            num_samples=num_samples,
            extra=extra,
        )
        with tf.control_dependencies([learned.loss_sum]):
            if self._state.bank is not None:
                self._state.bank.cursor.assign_add(num_samples)
            self._state.step.assign_add(-(-num_samples // self._material.batch_size))
        return learned.loss_sum

    def _local_bank(self) -> LocalBank | None:
        if self._state.bank is None:
            return None
        held = [variable.handle for variable in self._state.bank.rows]
        cursor, step = self._state.bank.cursor.read_value(), self._state.step.read_value()
        return LocalBank._make([*held, cursor, step])

    def _probabilities(
        self,
        chunk: Chunk,
        draws: Draws | None,
        drawn: tf.Tensor | None,
    ) -> tuple[tf.Tensor | None, tf.Tensor | None]:
        """Returns p of the samples' items and of the drawn ones, None where it is not asked."""
        if self.model.candidate_input is None:
            return None, None
        if self._exact:
            return chunk.probability, None if draws is None else draws.exact
        likely = None if drawn is None else self._state.likely_drawn(drawn)
        with tf.control_dependencies([] if likely is None else [likely]):
            ids = cast(tf.Tensor, chunk.features[ITEM_ID])
            return estimate(self._state, ids, batch_size=self._material.batch_size), likely


def variables(state: ServerState) -> Sequence[tf.Variable]:
    """Returns every variable of a state with one server that training changes, in a fixed order."""
    shards = [*state.tables.values(), *state.table_sums.values(), *state.touches.values()]
    shards += [array for array in (state.last_seen, state.gaps) if array is not None]
    dense = [*state.weights.values(), *state.weight_sums.values(), *state.clocks, *state.pushes]
    return [variable for each in shards for variable in each.variables] + dense
