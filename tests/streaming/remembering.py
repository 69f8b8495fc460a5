"""A model with a bank and draws, whose loss and vectors can be told by hand."""

from __future__ import annotations

from collections.abc import Mapping

import tensorflow as tf

from models.contract import (
    BankShape,
    Candidates,
    CorpusDraws,
    FeatureValue,
    Input,
    Optimizer,
    Outcome,
    Sampling,
    Table,
    Tensors,
)

ITEM = Input(name="item_id", dtype=tf.int64, table="rows")


class Remembering:
    """A row's first number grows by 1 whenever its item is in a mini-batch; the loss tells sizes.

    Loss: - sum of the batch's rows + 1000 x rows of the bank + 1e6 x sum of the drawn ids.
    """

    def __init__(self, size: int, *, warm_up: int = 0, draws: int | None = None) -> None:
        add_one = Optimizer(kind="sgd", learning_rate=1.0)
        self.tables = [Table(name="rows", buckets=50, dim=2, initial_bound=0, optimizer=add_one)]
        self.weights: list = []
        self.inputs = [ITEM]
        self.candidate_input = "item_id"
        self.bank = BankShape(size=size, dim=2, warm_up_steps=warm_up)
        self.corpus = None
        if draws is not None:
            self.corpus = CorpusDraws(count=draws, smoothing=0, identity="item_id", inputs=(ITEM,))

    def encode(self, features: Mapping[str, FeatureValue]) -> dict[str, FeatureValue]:
        return dict(features) | {"identity": features["item_id"]}

    def loss(
        self,
        features: Mapping[str, FeatureValue],
        *,
        tables: Tensors,
        weights: Tensors,
        sampling: Sampling,
    ) -> Outcome:
        vectors = tf.gather(tables["rows"], features["item_id"])
        size = tf.shape(sampling.bank.vectors)[0]
        loss = -tf.reduce_sum(vectors[:, 0]) + 1000.0 * tf.cast(size, tf.float32)
        if sampling.corpus is not None:
            # Known by their identity; by their row too, whatever its number is now.
            rows = tf.gather(tables["rows"], sampling.corpus.features["item_id"])
            loss -= tf.reduce_sum(rows[:, 1])
            drawn = tf.cast(sampling.corpus.features["identity"], tf.float32)
            loss += 1e6 * tf.reduce_sum(drawn)
        known = sampling.sampling_probability
        return Outcome(
            loss,
            Candidates(vectors, features["identity"], known, tf.zeros_like(known)),
        )
