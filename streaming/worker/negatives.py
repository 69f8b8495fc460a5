"""The negatives of a range that come from elsewhere: a local bank, and draws from the corpus.

A bank is a ring: the k-th candidate that was ever enqueued lies in row k mod size. A worker appends
to its own copy step by step, after each step, and pushes the range's new rows once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import tensorflow as tf

from models.contract import (
    BankShape,
    Candidates,
    CorpusDraws,
    CorpusSample,
    FeatureValue,
    Input,
    Model,
    Sampling,
)

_PREFIX = "corpus/"

DRIFT_STEPS = (1, 5, 10)
"""Ages, in mini-batches, at which feature drift is measured (Wang et al. 2021, Figure 2)."""


class LocalBank(NamedTuple):
    """A bank where steps update it: resource handles, and where the range begins.

    Attributes:
        vectors: Handle of [size, dim] float32.
        identity: Handle of [size] int64.
        probability: Handle of [size] float32.
        corpus_probability: Handle of [size] float32.
        cursor: int64 scalar, how many candidates were ever enqueued before the range.
        step: int64 scalar, mini-batches applied before the range.
    """

    vectors: tf.Tensor
    identity: tf.Tensor
    probability: tf.Tensor
    corpus_probability: tf.Tensor
    cursor: tf.Tensor
    step: tf.Tensor

    @property
    def handles(self) -> tuple[tf.Tensor, ...]:
        """The four handles."""
        return self[:4]

    @property
    def arrays(self) -> list[tuple[tf.Tensor, tf.DType]]:
        """The handles, in the order of `Candidates`, and what they hold."""
        return [
            (self.vectors, tf.float32),
            (self.identity, tf.int64),
            (self.probability, tf.float32),
            (self.corpus_probability, tf.float32),
        ]


class RangeNegatives(NamedTuple):
    """What a range's mini-batches use beside their samples.

    Attributes:
        corpus_probability: [num_samples] probability that a draw from the corpus is the sample's
            candidate; None without draws.
        corpus: The draws of all mini-batches, one after the other; None without.
        bank: None without.
    """

    corpus_probability: tf.Tensor | None = None
    corpus: CorpusSample | None = None
    bank: LocalBank | None = None


class Drift(NamedTuple):
    """How far vectors moved since they were enqueued: sums of distances, and how many pairs.

    Attributes:
        distance: [len(DRIFT_STEPS)] float32 sum of the L2 distances.
        pairs: [len(DRIFT_STEPS)] float32.
    """

    distance: tf.Tensor
    pairs: tf.Tensor


def all_inputs(model: Model) -> list[Input]:
    """Returns the model's inputs, then those of its draws as `joined` names them."""
    drawn = () if model.corpus is None else model.corpus.inputs
    renamed = [dataclasses.replace(each, name=f"{_PREFIX}{each.name}") for each in drawn]
    return [*model.inputs, *renamed]


def joined(
    features: Mapping[str, FeatureValue], corpus: CorpusSample | None
) -> dict[str, FeatureValue]:
    """Puts the features of samples and of draws into one mapping, so as to renumber their rows."""
    drawn = {} if corpus is None else corpus.features
    return {**features, **{f"{_PREFIX}{name}": value for name, value in drawn.items()}}


def parted(
    features: Mapping[str, FeatureValue], corpus: CorpusSample | None
) -> tuple[dict[str, FeatureValue], CorpusSample | None]:
    """Undoes `joined`."""
    own = {name: value for name, value in features.items() if not name.startswith(_PREFIX)}
    if corpus is None:
        return own, None
    drawn = {name: features[f"{_PREFIX}{name}"] for name in corpus.features}
    return own, corpus._replace(features=drawn)


def no_drift() -> Drift:
    """Returns the sums of nothing."""
    return Drift(tf.zeros([len(DRIFT_STEPS)]), tf.zeros([len(DRIFT_STEPS)]))


def batch_sampling(
    extra: RangeNegatives,
    *,
    begin: tf.Tensor,
    end: tf.Tensor,
    batch_size: int,
    probability: tf.Tensor | None,
    asked: tuple[CorpusDraws | None, BankShape | None],
) -> Sampling:
    """Returns what a model may know of the mini-batch of the range's samples [begin, end)."""
    draws, shape = asked
    corpus, bank = None, None
    if extra.corpus is not None and draws is not None:
        first = begin // batch_size * draws.count
        corpus = _sliced(extra.corpus, first, first + draws.count)
    if extra.bank is not None and shape is not None:
        bank = held(extra.bank, shape, begin=begin, batch_size=batch_size)

    def part(values: tf.Tensor | None) -> tf.Tensor | None:
        return None if values is None else values[begin:end]

    return Sampling(batch_size, part(probability), part(extra.corpus_probability), corpus, bank)


def _sliced(corpus: CorpusSample, first: tf.Tensor, last: tf.Tensor) -> CorpusSample:
    likely = corpus.sampling_probability
    return CorpusSample(
        {name: value[first:last] for name, value in corpus.features.items()},
        None if likely is None else likely[first:last],
        corpus.corpus_probability[first:last],
    )


def held(bank: LocalBank, shape: BankShape, *, begin: tf.Tensor, batch_size: int) -> Candidates:
    """Returns the filled rows of the bank, none during warm-up.

    Args:
        bank: The bank.
        shape: What the model asked for.
        begin: int64 scalar, how many of the range's samples were learned.
        batch_size: Samples per mini-batch.
    """
    step = bank.step + begin // batch_size
    filled = tf.minimum(bank.cursor + begin, shape.size)
    rows = tf.where(step >= shape.warm_up_steps, filled, tf.zeros_like(filled))
    values = [
        tf.raw_ops.ReadVariableOp(resource=handle, dtype=dtype)[:rows]
        for handle, dtype in bank.arrays
    ]
    vectors, *rest = values
    return Candidates(
        tf.ensure_shape(vectors, [None, shape.dim]),
        *[tf.ensure_shape(value, [None]) for value in rest],
    )


def enqueue(bank: LocalBank, rows: Candidates, *, size: int, begin: tf.Tensor) -> None:
    """Appends a mini-batch's candidates to the bank, over the oldest rows.

    Args:
        bank: The bank.
        rows: [batch] candidates.
        size: How many the bank holds.
        begin: int64 scalar, how many of the range's samples were learned before these.
    """
    first = bank.cursor + begin
    num = tf.size(rows.identity, out_type=tf.int64)
    kept = tf.minimum(num, size)
    places = (first + num - kept + tf.range(kept)) % size
    for (handle, dtype), values in zip(bank.arrays, rows, strict=True):
        tf.raw_ops.ResourceScatterUpdate(
            resource=handle, indices=places, updates=tf.cast(values[num - kept :], dtype)
        )


def drift(
    bank: LocalBank, now: Candidates, *, shape: BankShape, begin: tf.Tensor, batch_size: int
) -> Drift:
    """Compares a mini-batch's candidates with those of 1, 5 and 10 mini-batches before, by item.

    D(t; dt) of Wang et al. 2021, as a mean over the items that are in both mini-batches. The age
    is told by the place in the queue, so with several workers it is that of this worker's copy.

    Args:
        bank: The bank, before these are enqueued.
        now: [batch] candidates.
        shape: What the model asked for.
        begin: int64 scalar, how many of the range's samples were learned before these.
        batch_size: Samples per mini-batch.
    """
    order = tf.argsort(now.identity)
    known = tf.gather(now.identity, order)
    distances, pairs = [], []
    for age in DRIFT_STEPS:
        first = bank.cursor + begin - age * batch_size
        usable = (first >= 0) & (age * batch_size <= shape.size)
        places = (first + tf.range(tf.where(usable, batch_size, 0), dtype=tf.int64)) % shape.size
        before = tf.raw_ops.ResourceGather(resource=bank.identity, indices=places, dtype=tf.int64)
        vectors = tf.raw_ops.ResourceGather(resource=bank.vectors, indices=places, dtype=tf.float32)
        found = tf.minimum(tf.searchsorted(known, before), tf.size(known) - 1)
        same = tf.cast(tf.gather(known, found) == before, tf.float32)
        moved = tf.gather(now.vectors, tf.gather(order, found)) - vectors
        distances.append(tf.reduce_sum(same * tf.norm(moved, axis=1)))
        pairs.append(tf.reduce_sum(same))
    return Drift(tf.stack(distances), tf.stack(pairs))


def newest(bank: LocalBank, *, size: int, num_samples: tf.Tensor) -> Candidates:
    """Returns the range's candidates that are still in the bank, oldest first, to push them.

    Args:
        bank: The bank, after the range.
        size: How many it holds.
        num_samples: int64 scalar, samples of the range.
    """
    kept = tf.minimum(num_samples, size)
    places = (bank.cursor + num_samples - kept + tf.range(kept)) % size
    return Candidates(
        *[
            tf.raw_ops.ResourceGather(resource=handle, indices=places, dtype=dtype)
            for handle, dtype in bank.arrays
        ]
    )
