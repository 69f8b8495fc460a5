"""Many workers in one process, stale as a cluster's are, on the trainer's own state and rules.

W workers take turns. A worker pulls its next range right after its push, so between a pull and the
push that belongs to it the W - 1 others push once each: the steady state of W equally fast workers.
At the start all pull the initial state. Everything but the order is the cluster's own code: what
`ServerState.pull` gives, `MiniBatches` on local copies of it, and `ServerState.push` with its rule.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from jobs.bench.in_place import parameters
from models.contract import FeatureValue
from models.two_tower import TwoTower
from pipeline.schema import ITEM_ID
from streaming.config import FrequencyConfig, MergeConfig
from streaming.servers.merge import Parameter
from streaming.servers.push import Mark
from streaming.servers.state import Pulled, ServerState, Sightings
from streaming.worker.mini_batches import Handles, MiniBatches, compact_all

Features = Mapping[str, FeatureValue]
_CPU = "/device:CPU:0"


class Held(NamedTuple):
    """What a worker holds between its pull and its push.

    Attributes:
        features: The range's encoded inputs, with row numbers of what was pulled.
        pulled: The parameters.
        probability: [num_samples] of each sample's candidate, or None.
        sightings: Where the estimator's buckets live, and what the range adds to them; or None.
    """

    features: Features
    pulled: Pulled
    probability: tf.Tensor | None
    sightings: Sightings | None


class Simulator:
    """A cluster of any number of workers with one server."""

    def __init__(
        self,
        model: TwoTower,
        *,
        batch_size: int,
        frequency: FrequencyConfig,
        merge: MergeConfig,
        seed: int,
    ) -> None:
        """Makes the state and traces nothing yet."""
        self._model = model
        self._batch_size = batch_size
        self._frequency = frequency
        self._state = ServerState(
            model, [_CPU], frequency=frequency, seed=seed, num_slots=1, floor=0
        )
        self._state.merge_by(merge)
        self._copies = {
            table.name: (
                _copy([None, table.dim]),
                _copy([None, table.optimizer.sums_per_row(table.dim)]),
            )
            for table in model.tables
        }
        self._copies |= {
            weight.name: (_copy(list(weight.shape)), _copy(list(weight.shape)))
            for weight in model.weights
        }
        self._batches = MiniBatches(model, batch_size=batch_size)
        self._pull = tf.function(self._pull_range, autograph=False, reduce_retracing=True)
        self._push = tf.function(self._push_range, autograph=False, reduce_retracing=True)
        self._sequence = 0

    def run(self, ranges: Sequence[Features], *, workers: int) -> None:
        """Learns ranges in order, each pulled when its worker had pushed its last one."""
        held = [self._pull(each) for each in ranges[:workers]]
        for number in range(len(ranges)):
            self._sequence += 1
            self._push(held[number % workers], tf.constant(self._sequence, tf.int64))
            if number + workers < len(ranges):
                held[number % workers] = self._pull(ranges[number + workers])

    def parameters(self) -> dict[str, np.ndarray]:
        """Returns copies of the tables and weights, by name."""
        return parameters(self._state)

    def _pull_range(self, raw: Features) -> Held:
        features, _, used = compact_all(self._model.encode(raw), None, self._model)
        ids = raw[ITEM_ID]
        sightings = self._state.sight(
            ids, batch_size=self._batch_size, num_batches=self._num_batches(ids)
        )
        probability, _ = self._state.likely(sightings)
        return Held(features, self._state.pull(used), probability, sightings)

    def _num_batches(self, ids: FeatureValue) -> tf.Tensor:
        return -(-tf.size(ids, out_type=tf.int64) // self._batch_size)

    def _push_range(self, held: Held, sequence: tf.Tensor) -> tf.Tensor:
        parameters = held.pulled.parameters
        for name, (value, total) in self._copies.items():
            value.assign(parameters[name].value)
            total.assign(parameters[name].accumulator)
        ids = held.features[ITEM_ID]
        progress = self._batches.learn(
            held.features,
            {name: Handles(v.handle, total.handle) for name, (v, total) in self._copies.items()},
            probability=held.probability,
            num_samples=tf.size(ids, out_type=tf.int64),
        )
        with tf.control_dependencies([progress.loss_sum]):
            learned = {
                name: Parameter(value.read_value(), total.read_value())
                for name, (value, total) in self._copies.items()
            }
        outcome = self._state.push(
            Mark(tf.constant(0, tf.int64), sequence),
            pulled=held.pulled,
            learned=learned,
            sightings=held.sightings,
            num_batches=self._num_batches(ids),
        )
        return outcome.applied


def _copy(shape: Sequence[int | None]) -> tf.Variable:
    """Returns a variable that holds a worker's copy of a parameter, or of its accumulator."""
    start = tf.zeros([size or 0 for size in shape])
    return tf.Variable(start, trainable=False, shape=tf.TensorShape(shape))
