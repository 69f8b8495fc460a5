"""Rivals of `headrace bench stream`: the same two towers in stock TensorFlow Recommenders.

Run as `python -m jobs.bench.stream.keras MODE FOLDER BATCH SAMPLES [ADDRESS]`; prints a `Speed`'s
figures. MODE is how `Model.fit` gets its batches: `fit`, cached in memory; `generator`, one
`tf.Example` at a time from a Kafka consumer; `batched-generator`, lists of 1,024 of them.

In its favour: ids are row numbers and need no hash, sampling probabilities are given exactly and
need no estimation, and the optimizer is the one that updates sparse rows in one operation.
"""

from __future__ import annotations

import functools
import json
import sys
import time
from collections.abc import Sequence
from typing import Any

import models  # noqa: F401 - chooses Keras 2, before TensorFlow is imported

import tensorflow as tf  # isort: skip
import tensorflow_recommenders as tfrs  # isort: skip
import numpy as np

from jobs.bench.stream.consumer import value_lists, values
from jobs.bench.stream.synthetic import DIM, HISTORY, ITEMS, USERS, specification
from streaming.source import Range
from streaming.sources.archive import ArchiveSource

_WARM_UP_BATCHES = 20
_FEATURES = {
    "user_id": tf.io.FixedLenFeature([], tf.int64),
    "item_id": tf.io.FixedLenFeature([], tf.int64),
    "history_item_id": tf.io.FixedLenFeature([HISTORY], tf.int64),
}


class TwoTowers(tfrs.Model):
    """The benchmark's model: mean of the history beside the user, one hidden layer, cosine."""

    def __init__(self) -> None:
        super().__init__()
        layers = tf.keras.layers
        self._users = layers.Embedding(USERS, DIM)
        self._items = layers.Embedding(ITEMS, DIM)
        self._towers = [
            tf.keras.Sequential([layers.Dense(64, activation="relu"), layers.Dense(DIM)])
            for _ in range(2)
        ]
        self._task = tfrs.tasks.Retrieval(temperature=0.05, remove_accidental_hits=True)

    def compute_loss(self, features: dict[str, tf.Tensor], training: bool = False) -> tf.Tensor:  # noqa: FBT001, FBT002
        del training
        history = tf.reduce_mean(self._items(features["history_item_id"]), axis=1)
        query = tf.concat([self._users(features["user_id"]), history], axis=1)
        query, candidate = (
            tf.math.l2_normalize(tower(side), axis=1)
            for tower, side in zip(
                self._towers, (query, self._items(features["item_id"])), strict=True
            )
        )
        return self._task(
            query,
            candidate,
            candidate_ids=features["item_id"],
            candidate_sampling_probability=features["probability"],
            compute_metrics=False,
            compute_batch_metrics=False,
        )


class _Clock(tf.keras.callbacks.Callback):
    """Notes when warm-up was over and when the last batch was."""

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        del logs
        if batch == _WARM_UP_BATCHES:
            self.started, self.used = time.perf_counter(), time.process_time()
        self.batches = batch - _WARM_UP_BATCHES

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        del logs
        self.seconds = time.perf_counter() - self.started
        self.spent = time.process_time() - self.used


def _samples(folder: str, count: int) -> dict[str, np.ndarray]:
    source = ArchiveSource(folder, specification().sample_schema)
    ends = source.end_offsets().items()
    tables = [source.read(Range(partition, 0, end)).samples for partition, end in ends]
    columns = {
        name: np.concatenate([_column(table, name) for table in tables])[:count]
        for name in _FEATURES
    }
    return columns | {"probability": _probability(columns["item_id"])[columns["item_id"]]}


def _column(table: Any, name: str) -> np.ndarray:
    column = table.column(name).combine_chunks()
    if name == "history_item_id":
        return np.asarray(column.flatten()).reshape(-1, HISTORY)
    return np.asarray(column)


def _probability(items: np.ndarray) -> np.ndarray:
    share = np.maximum(1, np.bincount(items, minlength=ITEMS)) / len(items)
    return share.astype(np.float32)


def batches(
    mode: str, folder: str, *, batch_size: int, count: int, address: str
) -> tf.data.Dataset:
    """Returns what `fit` gets, for ever."""
    samples = _samples(folder, count)
    if mode == "fit":
        dataset = tf.data.Dataset.from_tensor_slices(samples)
        dataset = dataset.batch(batch_size, drop_remainder=True).cache().repeat()
        return dataset.prefetch(tf.data.AUTOTUNE)
    share = tf.constant(_probability(samples["item_id"]))
    one = tf.TensorSpec([], tf.string)
    if mode == "generator":
        singly = functools.partial(values, address)
        dataset = tf.data.Dataset.from_generator(singly, output_signature=one).batch(batch_size)
    else:
        many = tf.TensorSpec([None], tf.string)
        in_lists = functools.partial(value_lists, address)
        dataset = tf.data.Dataset.from_generator(in_lists, output_signature=many)
        dataset = dataset.unbatch().batch(batch_size) if batch_size != 1024 else dataset  # noqa: PLR2004

    def parse(records: tf.Tensor) -> dict[str, tf.Tensor]:
        features = tf.io.parse_example(records, _FEATURES)
        return features | {"probability": tf.gather(share, features["item_id"])}

    return dataset.map(parse).prefetch(tf.data.AUTOTUNE)


def main(argv: Sequence[str]) -> int:
    """Trains once; prints samples per second and processor seconds per million samples."""
    mode, folder, batch_size, count = argv[0], argv[1], int(argv[2]), int(argv[3])
    address = argv[4] if len(argv) > 4 else ""  # noqa: PLR2004
    dataset = batches(mode, folder, batch_size=batch_size, count=count, address=address)
    model, clock = TwoTowers(), _Clock()
    model.compile(optimizer=tf.keras.optimizers.legacy.Adagrad(0.05))
    steps = _WARM_UP_BATCHES + 1 + max(1, count // batch_size)
    model.fit(dataset, steps_per_epoch=steps, epochs=1, verbose=0, callbacks=[clock])
    learned = clock.batches * batch_size
    figures = [learned / clock.seconds, clock.spent / learned * 1e6]
    sys.stdout.write(f"{json.dumps(figures)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
