"""Streaming estimation of sampling probabilities: Yi et al. 2019, Algorithm 3.

Each of m hash functions maps an id to a bucket that remembers the batch in which it was last seen
(A) and a moving average of the gaps between sightings, in batches (B). An id's sampling
probability is the inverse of its largest mean gap: collisions only shorten gaps.

What the paper leaves open is decided so:

- Two sightings of a bucket in one batch count once: the estimate is the probability of *appearing*
  in a batch.
- A bucket's first sighting sets A only; the paper's A = 0 would take the current step for a gap.
- B starts at the gaps that were seen, as Adam's moments do (Kingma and Ba 2015): B is the decayed
  sum of gaps over the decayed sum of their weights, 1 - (1-alpha)^gaps. The paper's simulation
  starts at B = 100, which an item of gap 10,000 would only forget after hundreds of sightings. A
  bucket holds [decayed sum, sightings]; a large number of sightings is the paper's start.
- An id that was seen at most once has no gap yet. What stands for it is that it was not seen in
  all batches so far (`clock`), within `initial_gap` and ten times that: so long a gap an id that is
  new to the stream need not have. One that was never seen has probability 0 as a draw from
  elsewhere (the corpus); a sample's own id is being seen right now.
- Estimates are clipped to at most 1.
- Batches use the estimates from before their range; the update follows.

Per scenario (`frequency.per_scenario`), an estimate is the probability that a mini-batch holds the
item in this scenario. That corrects negatives rightly where they are all of the query's own
scenario, and so where each partition holds one: an item that comes in two scenarios of one
mini-batch would be counted once for each.

Workers learn a range of batches on local copies, so a worker cannot know the gaps between its
range and those that others push meanwhile. It does not need to: the update is linear in the sums,
so a worker sends a *summary* of the range (`summarise`) and the server, at the moment of the push
and by its own count of batches, composes it with what it holds (`compose`). The result equals the
sequential algorithm over the ranges in the order of their pushes, whatever the concurrency.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import tensorflow as tf

from models.features import hash_ids, identities
from streaming.config import FrequencyConfig

NEVER = -1
_LONGEST_INITIAL = 10.0


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


def bucket_numbers(ids: tf.Tensor, config: FrequencyConfig) -> tf.Tensor:
    """Returns [num_hashes, num_ids] buckets of raw ids (int64 or string) in the flat arrays."""
    # Seeds from 1: seed 0 hashes ids into embedding tables (`models.features.TABLE_SEED`).
    rows = [
        hash_ids(ids, seed=number + 1, buckets=config.buckets) + number * config.buckets
        for number in range(config.hashes)
    ]
    return tf.stack(rows)


def distinct_buckets(
    ids: tf.Tensor, config: FrequencyConfig, *, scenario: tf.Tensor | None = None
) -> tuple[tf.Tensor, tf.Tensor]:
    """Hashes each of the ids once, however often it comes.

    Args:
        ids: [num_ids] int64 or string.
        config: The estimator's size.
        scenario: [num_ids] string; an item then counts in each scenario for itself.

    Returns:
        [num_hashes, num_distinct] buckets, and [num_ids] int32 which of them each id has.
    """
    if scenario is not None:
        pairs = tf.stack([identities(ids), identities(scenario)], axis=1)
        ids = tf.bitcast(tf.fingerprint(pairs), tf.int64)
    distinct, which = tf.unique(ids)
    return bucket_numbers(distinct, config), which


def summarise(
    sightings: tf.Tensor,
    which: tf.Tensor,
    *,
    batch_size: int,
    num_batches: tf.Tensor,
    alpha: float,
) -> tuple[Summary, tf.Tensor]:
    """Condenses a range of batches into one entry per bucket.

    Args:
        sightings: [num_hashes, num_distinct] int64 bucket of each distinct id, per hash.
        which: [num_samples] int32 distinct id of each sample.
        batch_size: Samples per batch; the last batch may be shorter.
        num_batches: int64 scalar, ceil(num_samples / batch_size).
        alpha: Weight of a new gap.

    Returns:
        The summary, and [num_hashes, num_distinct] int32 positions of the ids' buckets in it.
    """
    buckets, flat = tf.unique(tf.reshape(sightings, [-1]))
    positions = tf.reshape(flat, tf.shape(sightings))
    by_id = tf.transpose(positions)
    num_buckets = tf.size(buckets)
    unseen = tf.fill([num_buckets], float(NEVER))
    zeros = tf.zeros([num_buckets])

    # In float32, which holds numbers of batches exactly.
    def add_batch(batch, first, last, count, gaps):  # type: ignore[no-untyped-def]
        begin = batch * batch_size
        hits = tf.reshape(tf.gather(by_id, which[begin : begin + batch_size]), [-1])
        present = tf.math.unsorted_segment_sum(tf.ones_like(hits), hits, num_buckets) > 0
        now = tf.cast(batch, tf.float32)
        again = present & (first >= 0)
        gaps = tf.where(again, (1.0 - alpha) * gaps + alpha * (now - last), gaps)
        first = tf.where(present & (first < 0), now, first)
        last = tf.where(present, now, last)
        return batch + 1, first, last, count + tf.cast(present, tf.float32), gaps

    _, first, last, count, gaps = tf.while_loop(
        lambda batch, *_: batch < num_batches,
        add_batch,
        [tf.constant(0, tf.int64), unseen, unseen, zeros, zeros],
        shape_invariants=[tf.TensorShape([]), *[tf.TensorShape([None])] * 4],
        parallel_iterations=1,
    )
    first, last = (tf.cast(number, tf.int64) for number in (first, last))
    return Summary(buckets, first, last, count, gaps), positions


def compose(
    summary: Summary, *, last_seen: tf.Tensor, gaps: tf.Tensor, clock: tf.Tensor, alpha: float
) -> tuple[tf.Tensor, tf.Tensor]:
    """Applies a range's summary to what a server holds.

    Args:
        summary: The range, for buckets that this server holds.
        last_seen: [num_buckets] int64 A of the summary's buckets, `NEVER` if they were never seen.
        gaps: [num_buckets, 2] float32: decayed sum of gaps, and number of sightings.
        clock: int64 scalar, the number of batches that the server has applied before this range.
        alpha: Weight of a new gap.

    Returns:
        New (last_seen, gaps).
    """
    keep = 1.0 - alpha
    total, sightings = tf.unstack(gaps, num=2, axis=1)
    # At least 1: a push that was cut in the middle may leave A ahead of the clock.
    first_gap = tf.maximum(tf.cast(clock + summary.first - last_seen, tf.float32), 1.0)
    # Decay by the sightings after the first; `tf.pow` takes several times as long.
    newer = tf.exp((summary.count - 1.0) * math.log(keep))
    after_first = tf.where(last_seen >= 0, keep * total + alpha * first_gap, total)
    new = [newer * after_first + summary.gaps, sightings + summary.count]
    return clock + summary.last, tf.stack(new, axis=1)


def probability(
    gaps: tf.Tensor,
    config: FrequencyConfig,
    *,
    clock: tf.Tensor,
    unseen: float | None = None,
) -> tf.Tensor:
    """Returns estimated probabilities to appear in a batch.

    Args:
        gaps: [num_hashes, num_ids, 2] of the ids' buckets, as in `compose`.
        config: The estimator's settings.
        clock: int64 scalar, the number of batches that were applied so far.
        unseen: The probability of an id that was never seen; None for that of one seen once.

    Returns:
        [num_ids] float32 in (0, 1], or `unseen`.
    """
    total, sightings = tf.unstack(gaps, num=2, axis=2)
    weight = -tf.math.expm1((sightings - 1.0) * math.log1p(-config.alpha))
    told = sightings > 1
    longest = _LONGEST_INITIAL * config.initial_gap
    initial = tf.clip_by_value(tf.cast(clock, tf.float32), config.initial_gap, longest)
    mean = tf.where(told, total / tf.where(told, weight, 1.0), initial)
    found = 1.0 / tf.maximum(tf.reduce_max(mean, axis=0), 1.0)
    return found if unseen is None else tf.where(never_seen(gaps), unseen, found)


def never_seen(gaps: tf.Tensor) -> tf.Tensor:
    """Returns [num_ids] bool, whether an id was certainly never seen; see `probability`."""
    return tf.reduce_any(gaps[:, :, 1] == 0, axis=0)
