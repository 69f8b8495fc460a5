"""A model that counts: its one table has a row per sample, and a step adds 1 to the row.

The counters are pushed, checkpointed and restored like any parameter, so what they hold after a
run says how often each sample's update is in the state, whatever logs and ledgers claim.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from models.contract import (
    BankShape,
    Candidates,
    FeatureValue,
    Input,
    Optimizer,
    Outcome,
    Sampling,
    Table,
    Tensors,
    Weight,
)

COLUMN = "item_id"  # which is the sample's number
USER = "user_id"  # which is the same for all
_NUMBER = "number"
_ADD_ONE = Optimizer(kind="sgd", learning_rate=1.0)


class CountingModel:
    """Table `counter` [samples, 1]: +1 a sample. Weight `batches` [1]: +1 a mini-batch."""

    def __init__(self, num_samples: int) -> None:
        self.tables = [
            Table(name="counter", buckets=num_samples, dim=1, initial_bound=0, optimizer=_ADD_ONE)
        ]
        self.weights = [Weight(name="batches", shape=(1,), initial_bound=0, optimizer=_ADD_ONE)]
        self.inputs = [Input(name=COLUMN, dtype=tf.int64, table="counter")]
        self.candidate_input = COLUMN
        self.corpus, self.bank = None, None

    def encode(self, features: Mapping[str, FeatureValue]) -> dict[str, FeatureValue]:
        return dict(features)

    def loss(
        self,
        features: Mapping[str, FeatureValue],
        *,
        tables: Tensors,
        weights: Tensors,
        sampling: Sampling,
    ) -> Outcome:
        del sampling
        rows = tf.gather(tables["counter"], features[COLUMN])
        return Outcome(-tf.reduce_sum(rows) - tf.reduce_sum(weights["batches"]))


BANK_ROWS = 256


class WatchedModel(CountingModel):
    """The same, with an estimator and a bank whose state a run's order of pushes cannot change.

    The estimator watches a user that is in every mini-batch; the bank, never used, holds the latest
    samples' numbers.
    """

    def __init__(self, num_samples: int) -> None:
        super().__init__(num_samples)
        self.inputs = [*self.inputs, Input(name=USER, dtype=tf.int64)]
        self.candidate_input = USER
        self.bank = BankShape(size=BANK_ROWS, dim=1, warm_up_steps=1 << 40)

    def encode(self, features: Mapping[str, FeatureValue]) -> dict[str, FeatureValue]:
        return dict(features) | {_NUMBER: features[COLUMN]}

    def loss(self, features: Mapping[str, FeatureValue], **given: Any) -> Outcome:
        counted = super().loss(features, **given)
        numbers = features[_NUMBER]
        vectors = tf.cast(numbers, tf.float32)[:, tf.newaxis]
        zeros = tf.zeros_like(numbers, tf.float32)
        return counted._replace(enqueue=Candidates(vectors, numbers, zeros, zeros))
