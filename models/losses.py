"""Softmax over sampled negatives of any number of sources, corrected for how they were sampled.

The forms of the correction, and when to use which, are in `models.corrections`. The loss of query i
with positive logit f_p and negatives d of all sources is one cross entropy,

    L_i = log( exp(f_p - a_p) + sum_d exp(f_d - a_d) ) - (f_p - a_p)

    form                a_d                                     a_p
    none                0                                       0
    all                 log c_d (in-batch alone: log p_d)       the same of the positive
    negatives           log c_d                                 0
    positive-excluded   log n' + log(c_d / n) - log(1 - c_p/n)  0

where c is the expected count of an item among the n negatives, and n' how many of the n are not the
positive's own item.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import tensorflow as tf

from models.config import LogQ

_Gradient = Callable[[tf.Tensor], tuple[tf.Tensor, ...]]
_LOWEST = -1e30
_LARGEST_SHARE = 1.0 - 1e-6


class Positives(NamedTuple):
    """Each query's own candidate.

    Attributes:
        vectors: [batch, dim] float32.
        identity: [batch] int64.
        correction: [batch] float32 log c of the items (log p of the in-batch form `all`); None for
            form `none`.
        reward: [batch] float32 weights of the samples.
    """

    vectors: tf.Tensor
    identity: tf.Tensor
    correction: tf.Tensor | None
    reward: tf.Tensor


class Negatives(NamedTuple):
    """Candidates that are negatives of every query whose item they are not.

    Attributes:
        vectors: [num, dim] float32.
        identity: [num] int64; equal to a positive's identity, it is left out for that query.
        correction: [num] float32, as in `Positives`.
        trainable: Whether gradients flow into the vectors.
    """

    vectors: tf.Tensor
    identity: tf.Tensor
    correction: tf.Tensor | None
    trainable: bool = True


class HardNegatives(NamedTuple):
    """Negatives of one query each, such as impressions without a click.

    They were drawn by no known distribution, and need none: who was shown both and took one
    preferred it. So a hard negative gets the correction of its positive, and between the two there
    is none.

    Attributes:
        vectors: [num, dim] float32.
        identity: [num] int64.
        row: [num] int64 the query that each belongs to.
    """

    vectors: tf.Tensor
    identity: tf.Tensor
    row: tf.Tensor


def sampled_softmax(
    query: tf.Tensor,
    positives: Positives,
    negatives: Sequence[Negatives],
    *,
    logq: LogQ,
    num_draws: tf.Tensor | None = None,
    hard: HardNegatives | None = None,
) -> tf.Tensor:
    """Returns the loss, the mean over the batch of reward x L_i.

    Gradients reach the vectors only, not the rewards or the corrections.

    Args:
        query: [batch, dim] float32, divided by the temperature.
        positives: The candidates of the samples.
        negatives: The sources. The positives themselves are in-batch negatives when they are
            listed here too; each query's own is left out by its identity.
        logq: The form of the correction.
        num_draws: n, float32 scalar, which the corrections were made with; `positive-excluded`
            needs it.
        hard: Negatives of their own row only.
    """
    batch = tf.shape(query)[0]
    positive = tf.reduce_sum(query * positives.vectors, axis=1)
    if logq == "all" and positives.correction is not None:
        positive -= positives.correction
    names, sources = _short_identities(positives.identity, [each.identity for each in negatives])
    terms = [
        _log_sum(query, each._replace(identity=name), identity=names)
        for each, name in zip(negatives, sources, strict=True)
    ]
    if logq == "positive-excluded" and num_draws is not None:
        shift = _positive_excluded_shift(names, sources, positives.correction, num_draws)
        terms = [term + shift for term in terms]
    if hard is not None:
        terms.append(_hard_log_sum(query, positives, hard, logq=logq))
    total = tf.reduce_logsumexp(tf.stack([positive, *terms], axis=1), axis=1)
    weight = tf.stop_gradient(positives.reward) / tf.cast(batch, tf.float32)
    return tf.reduce_sum(weight * (total - positive))


def _short_identities(
    positives: tf.Tensor, sources: Sequence[tf.Tensor]
) -> tuple[tf.Tensor, list[tf.Tensor]]:
    """Renumbers identities, int32 from 0: [batch, num] comparisons take half the time."""
    _, short = tf.unique(tf.concat([positives, *sources], axis=0))
    first, *rest = tf.split(short, [tf.size(each) for each in (positives, *sources)])
    return first, rest


def _positive_excluded_shift(
    positives: tf.Tensor,
    sources: Sequence[tf.Tensor],
    log_count: tf.Tensor | None,
    num_draws: tf.Tensor,
) -> tf.Tensor:
    """Returns [batch] log n + log(1 - Q*(p)) - log n': what turns -log c into the form's -a_d."""
    if log_count is None:
        raise ValueError("logq 'positive-excluded': expected corrections of the positives")
    everything = tf.concat(sources, axis=0)
    size = tf.size(positives) + tf.size(everything)
    counts = tf.math.unsorted_segment_sum(tf.ones_like(everything, tf.float32), everything, size)
    kept = tf.cast(tf.size(everything), tf.float32) - tf.gather(counts, positives)
    share = tf.minimum(tf.exp(log_count) / num_draws, _LARGEST_SHARE)
    shift = tf.math.log(num_draws) + tf.math.log1p(-share) - tf.math.log(tf.maximum(kept, 1.0))
    return tf.stop_gradient(shift)


def _log_sum(query: tf.Tensor, negatives: Negatives, *, identity: tf.Tensor) -> tf.Tensor:
    """Returns [batch] log sum_d exp(<query, d> - correction_d), over d with another identity.

    Few passes over [batch, num]: the correction is one more dimension of the product, and the
    backward pass reuses the exponentials E, unnormalised: with z the sums and u the upstream
    gradient, dq = u/z (E d) and dd = E^T (u/z q). At batch 4,096 this takes little more than half
    the time of automatic differentiation.
    """
    correction = negatives.correction
    if correction is None:
        correction = tf.zeros_like(negatives.vectors[:, 0])
    extra = -tf.stop_gradient(correction)[:, tf.newaxis]
    same = identity[:, tf.newaxis] == negatives.identity[tf.newaxis, :]

    @tf.custom_gradient
    def log_sum(query: tf.Tensor, vectors: tf.Tensor) -> tuple[tf.Tensor, _Gradient]:
        extended = tf.concat([query, tf.ones_like(query[:, :1])], axis=1)
        logits = tf.matmul(extended, tf.concat([vectors, extra], axis=1), transpose_b=True)
        kept = tf.where(same, -float("inf"), logits)
        largest = tf.maximum(tf.reduce_max(kept, axis=1), _LOWEST)
        exponentials = tf.exp(kept - largest[:, tf.newaxis])
        total = tf.reduce_sum(exponentials, axis=1)

        def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, ...]:
            share = tf.math.divide_no_nan(upstream, total)[:, tf.newaxis]
            to_query = share * tf.matmul(exponentials, vectors)
            if not negatives.trainable:
                return to_query, tf.zeros_like(vectors)
            return to_query, tf.matmul(exponentials, share * query, transpose_a=True)

        return tf.math.log(total) + largest, gradient

    return log_sum(query, negatives.vectors)


def _hard_log_sum(
    query: tf.Tensor, positives: Positives, hard: HardNegatives, *, logq: LogQ
) -> tf.Tensor:
    """Returns [batch] log sum_d exp(<query, d> - correction of the positive) over each row's own.

    A hard negative that is the positive's own item is left out.
    """
    logits = tf.reduce_sum(tf.gather(query, hard.row) * hard.vectors, axis=1)
    if logq == "all" and positives.correction is not None:
        logits -= tf.gather(positives.correction, hard.row)
    same = tf.gather(positives.identity, hard.row) == hard.identity
    logits = tf.where(same, _LOWEST, logits)
    num = tf.shape(query, out_type=hard.row.dtype)[0]
    largest = tf.maximum(tf.math.unsorted_segment_max(logits, hard.row, num), _LOWEST)
    largest = tf.stop_gradient(largest)
    exponentials = tf.where(same, 0.0, tf.exp(logits - tf.gather(largest, hard.row)))
    total = tf.math.unsorted_segment_sum(exponentials, hard.row, num)
    present = total > 0
    return tf.where(present, tf.math.log(tf.where(present, total, 1.0)) + largest, -float("inf"))
