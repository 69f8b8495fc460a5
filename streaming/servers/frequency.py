"""Streaming estimation of sampling probabilities: Yi et al. 2019, Algorithm 3.

Each of m hash functions maps an id to a bucket that remembers the batch in which it was last seen
(A) and a moving average of the gaps between sightings, in batches (B). An id's sampling
probability is the inverse of its largest mean gap: collisions only shorten gaps.

What the paper leaves open is decided so:

- Two sightings of a bucket in one batch count once: the estimate is the probability of *appearing*
  in a batch.
- A bucket's first sighting sets A only; the paper's A = 0 would take the current step for a gap.
- Estimates are clipped to (0, 1].
- Batches use the estimates from before their range; the update follows.

Per scenario (`frequency.per_scenario`), an estimate is the probability that a mini-batch, of
whatever scenarios, holds the item in this scenario. Where each mini-batch is of one scenario it is
lower than among that scenario's mini-batches by their share: a factor that is the same for all its
items, and so drops out of form `all` of the correction, but not out of the others.

Workers learn a range of batches on local copies, so a worker cannot know the gaps between its
range and those that others push meanwhile. It does not need to: the update is linear in B, so a
worker sends a *summary* of the range (`summarise`) and the server, at the moment of the push and
by its own count of batches, composes it with what it holds (`compose`). The result equals the
sequential algorithm over the ranges in the order of their pushes, whatever the concurrency.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import tensorflow as tf

from models.features import hash_ids, identities
from streaming.config import FrequencyConfig

NEVER = -1


class Summary(NamedTuple):
    """What a range of batches says about each bucket that it saw.

    Attributes:
        buckets: [num_buckets] int64 distinct bucket numbers.
        first: [num_buckets] int64 batch of the first sighting, from 0.
        last: [num_buckets] int64 batch of the last sighting.
        count: [num_buckets] float32 number of batches with a sighting.
        gaps: [num_buckets] float32 sum of alpha (1-alpha)^(newer sightings) x gap over all
            sightings but the first.
    """

    buckets: tf.Tensor
    first: tf.Tensor
    last: tf.Tensor
    count: tf.Tensor
    gaps: tf.Tensor


def bucket_numbers(
    ids: tf.Tensor, config: FrequencyConfig, *, scenario: tf.Tensor | None = None
) -> tf.Tensor:
    """Returns [num_hashes, num_ids] buckets of raw ids in the estimator's flat arrays.

    Args:
        ids: [num_ids] int64 or string.
        config: The estimator's size.
        scenario: [num_ids] string; an item then counts in each scenario for itself.
    """
    if scenario is not None:
        pairs = tf.stack([identities(ids), identities(scenario)], axis=1)
        ids = tf.bitcast(tf.fingerprint(pairs), tf.int64)
    # Seeds from 1: seed 0 hashes ids into embedding tables (`models.features.TABLE_SEED`).
    rows = [
        hash_ids(ids, seed=number + 1, buckets=config.buckets) + number * config.buckets
        for number in range(config.hashes)
    ]
    return tf.stack(rows)


def summarise(
    sightings: tf.Tensor, *, batch_size: int, num_batches: tf.Tensor, alpha: float
) -> tuple[Summary, tf.Tensor]:
    """Condenses a range of batches into one entry per bucket.

    Args:
        sightings: [num_hashes, num_samples] int64 bucket of each sample's id, per hash.
        batch_size: Samples per batch; the last batch may be shorter.
        num_batches: int64 scalar, ceil(num_samples / batch_size).
        alpha: Weight of a new gap.

    Returns:
        The summary, and [num_hashes, num_samples] int32 positions of the sightings in it.
    """
    buckets, flat = tf.unique(tf.reshape(sightings, [-1]))
    positions = tf.reshape(flat, tf.shape(sightings))
    num_buckets = tf.size(buckets)
    unseen = tf.fill([num_buckets], tf.constant(NEVER, tf.int64))
    zeros = tf.zeros([num_buckets])

    def add_batch(batch, first, last, count, gaps):  # type: ignore[no-untyped-def]
        begin = batch * batch_size
        seen_now = tf.reshape(positions[:, begin : begin + batch_size], [-1])
        present = tf.math.unsorted_segment_sum(tf.ones_like(seen_now), seen_now, num_buckets) > 0
        again = present & (first >= 0)
        gap = tf.cast(batch - last, tf.float32)
        gaps = tf.where(again, (1.0 - alpha) * gaps + alpha * gap, gaps)
        first = tf.where(present & (first < 0), batch, first)
        last = tf.where(present, batch, last)
        return batch + 1, first, last, count + tf.cast(present, tf.float32), gaps

    _, first, last, count, gaps = tf.while_loop(
        lambda batch, *_: batch < num_batches,
        add_batch,
        [tf.constant(0, tf.int64), unseen, unseen, zeros, zeros],
        shape_invariants=[tf.TensorShape([]), *[tf.TensorShape([None])] * 4],
        parallel_iterations=1,
    )
    return Summary(buckets, first, last, count, gaps), positions


def compose(
    summary: Summary, *, last_seen: tf.Tensor, mean_gap: tf.Tensor, clock: tf.Tensor, alpha: float
) -> tuple[tf.Tensor, tf.Tensor]:
    """Applies a range's summary to what a server holds.

    Args:
        summary: The range, for buckets that this server holds.
        last_seen: [num_buckets] int64 A of the summary's buckets, `NEVER` if they were never seen.
        mean_gap: [num_buckets] float32 B of the summary's buckets.
        clock: int64 scalar, the number of batches that the server has applied before this range.
        alpha: Weight of a new gap.

    Returns:
        New (last_seen, mean_gap).
    """
    keep = 1.0 - alpha
    known = last_seen >= 0
    first_gap = tf.cast(clock + summary.first - last_seen, tf.float32)
    # Decay by the sightings after the first; `tf.pow` takes several times as long.
    newer = tf.exp((summary.count - 1.0) * math.log(keep))
    after_first = tf.where(known, keep * mean_gap + alpha * first_gap, mean_gap)
    return clock + summary.last, newer * after_first + summary.gaps


def probability(mean_gaps: tf.Tensor) -> tf.Tensor:
    """Returns [num_ids] probabilities in (0, 1] from [num_hashes, num_ids] mean gaps (m >= 1)."""
    return 1.0 / tf.maximum(tf.reduce_max(mean_gaps, axis=0), 1.0)
