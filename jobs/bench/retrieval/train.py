"""Trains in one process with the trainer's own mini-batches, on samples held as tensors.

Ranges are learned in the order of time, pass after pass; the state, the optimizer and the frequency
estimator are those of a cluster with one server. A function is traced once and serves all seeds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np
import pyarrow as pa
import tensorflow as tf

from models.contract import FeatureValue
from models.features import arrow_features
from models.two_tower import TwoTower
from pipeline.schema import ITEM_ID
from streaming.config import FrequencyConfig
from streaming.servers import frequency as freq
from streaming.servers.state import ServerState
from streaming.servers.variables import Shards
from streaming.worker.mini_batches import Handles, MiniBatches

Features = Mapping[str, FeatureValue]


@dataclasses.dataclass(frozen=True, slots=True)
class Chunk:
    """A range of samples: what the trainer would read at once.

    Attributes:
        features: Raw inputs of all samples.
        probability: [num_samples] float32, from exact counts, of each sample's item to appear in a
            mini-batch.
    """

    features: Features
    probability: tf.Tensor


def make_chunks(
    training: pa.Table, model: TwoTower, *, batch_size: int, batches_per_range: int
) -> list[Chunk]:
    """Cuts training samples into ranges, in order.

    Args:
        training: Samples.
        model: Says which inputs are read.
        batch_size: Samples per mini-batch.
        batches_per_range: Mini-batches per range.
    """
    size = batch_size * batches_per_range
    likely = exact_probability(training.column(ITEM_ID), batch_size=batch_size)
    return [
        Chunk(
            arrow_features(training.slice(start, size), model.inputs),
            tf.constant(likely[start : start + size], tf.float32),
        )
        for start in range(0, training.num_rows, size)
    ]


def exact_probability(items: pa.ChunkedArray, *, batch_size: int) -> np.ndarray:
    """Returns each row's probability to have its item in a random batch, from counts of all rows.

    Of n rows of an item among N, a batch of B has at least one with probability 1 - (1 - n/N)^B.
    """
    encoded = items.combine_chunks().dictionary_encode()
    places = encoded.indices.to_numpy()
    share = np.bincount(places)[places] / len(items)
    return 1.0 - (1.0 - share) ** batch_size


class Learner:
    """A whole trainer in one process."""

    def __init__(
        self, model: TwoTower, *, batch_size: int, frequency: FrequencyConfig, exact: bool
    ) -> None:
        """Makes the state and traces nothing yet.

        Args:
            model: What to train.
            batch_size: Samples per mini-batch.
            frequency: The estimator's settings.
            exact: Whether log q comes from exact counts in place of the estimator.
        """
        self.model = model
        self._batch_size = batch_size
        self._frequency = frequency
        self._exact = exact
        self.state = self._new_state(seed=0)
        self._batches = MiniBatches(model, batch_size=batch_size)
        self._learn = tf.function(self._range, autograph=False, reduce_retracing=True)

    def _new_state(self, *, seed: int) -> ServerState:
        return ServerState(
            self.model,
            ["/device:CPU:0"],
            frequency=self._frequency,
            seed=seed,
            num_slots=1,
            floor=0,
        )

    def reset(self, *, seed: int) -> None:
        """Starts over from the initial parameters of a seed."""
        for old, new in zip(
            variables(self.state), variables(self._new_state(seed=seed)), strict=True
        ):
            old.assign(new)

    def learn(self, chunk: Chunk) -> None:
        """Learns a range, in place."""
        self._learn(chunk.features, chunk.probability)

    def parameters(self) -> dict[str, np.ndarray]:
        """Returns copies of the tables and weights, by name."""
        values = {name: table.variables[0] for name, table in self.state.tables.items()}
        values |= self.state.weights
        return {name: value.numpy() for name, value in values.items()}

    def _range(self, raw: Features, exact: tf.Tensor) -> tf.Tensor:
        num_samples = tf.size(raw[ITEM_ID], out_type=tf.int64)
        probability = None
        if self.model.candidate_input is not None:
            probability = exact if self._exact else self._estimate(raw[ITEM_ID], num_samples)
        return self._batches.learn(
            self.model.encode(raw),
            handles(self.state),
            probability=probability,
            num_samples=num_samples,
        ).loss_sum

    def _estimate(self, ids: tf.Tensor, num_samples: tf.Tensor) -> tf.Tensor:
        state, alpha = self.state, self._frequency.alpha
        num_batches = -(-num_samples // self._batch_size)
        summary, positions = freq.summarise(
            freq.bucket_numbers(ids, self._frequency),
            batch_size=self._batch_size,
            num_batches=num_batches,
            alpha=alpha,
        )
        last_seen, mean_gap = (
            cast(Shards, array).variables[0] for array in (state.last_seen, state.mean_gap)
        )
        held = tf.gather(mean_gap, summary.buckets)
        composed = freq.compose(
            summary,
            last_seen=tf.gather(last_seen, summary.buckets),
            mean_gap=held,
            clock=state.step.read_value(),
            alpha=alpha,
        )
        last_seen.scatter_update(tf.IndexedSlices(composed[0], summary.buckets))
        mean_gap.scatter_update(tf.IndexedSlices(composed[1], summary.buckets))
        state.step.assign_add(num_batches)
        return freq.probability(tf.gather(held, positions))


def variables(state: ServerState) -> Sequence[tf.Variable]:
    """Returns every variable of a state with one server that training changes, in a fixed order."""
    shards = [*state.tables.values(), *state.table_sums.values()]
    shards += [array for array in (state.last_seen, state.mean_gap) if array is not None]
    dense = [*state.weights.values(), *state.weight_sums.values(), *state.clocks]
    return [variable for each in shards for variable in each.variables] + dense


def handles(state: ServerState) -> dict[str, Handles]:
    """Returns where a state with one server holds each parameter and its accumulator."""
    values = {name: table.variables[0] for name, table in state.tables.items()}
    values |= state.weights
    sums = {name: total.variables[0] for name, total in state.table_sums.items()}
    sums |= state.weight_sums
    return {name: Handles(value.handle, sums[name].handle) for name, value in values.items()}
