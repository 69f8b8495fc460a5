"""What a negative's probability is, and how each form of the logQ correction uses it.

Two probabilities, which differ by about the logarithm of the batch size:

- the estimator (`streaming.servers.frequency`) gives p_j, the probability that item j *appears in a
  mini-batch* of B samples (Yi et al. 2019);
- importance sampling needs q_j, the probability that *one draw* is item j.

A mini-batch is B draws, so p_j = 1 - (1 - q_j)^B, which is about B q_j for rare items;
`draw_probability` is its inverse.

Negatives from several sources at once are one sample from a mixture. With n_s draws from source s,
whose draws have the distribution Q_s, item j is expected

    c_j = sum_s n_s Q_s(j)        times, and        Q*_j = c_j / n,    n = sum_s n_s

(the balance heuristic of Veach and Guibas 1995): sum_d exp(f_d) / c_d over the draws is an unbiased
estimate of sum_j exp(f_j), whichever source a draw came from. In-batch draws and the rows of a bank
come from the stream, with q; draws from the corpus have the corpus' probability. For B in-batch and
B' corpus draws this is Q* = B/(B+B') q + B'/(B+B') u of MNS (Yang et al. 2020), and for a bank of
M rows beside the batch (CBNS, Wang et al. 2021) it is c_j = (B + M) q_j.

The forms, `model.logq`:

`none` corrects nothing. The minimiser is log P(j|x) - log Q*_j: popular items are pushed down as
often as they are sampled. For popularity-free similarity, for uniform negatives over a full
catalogue (where every form shifts all logits alike), and as the baseline.

`all` (Yi et al. 2019): f_j - log p_j on all logits, the positive's too. The minimiser is
log P(j|x), for any number of negatives. The default: right with few negatives and without tuning.
In-batch negatives alone take p as published; with other sources p is c_j, its counterpart in the
mixture.

`negatives` (MNS): f_d - log c_d on negatives only. The denominator estimates that of the full
softmax, whose gradient it approaches as n grows. Without log n, which some public code forgets,
negatives would weigh n times too much. For many negatives (a bank, a large corpus sample), when the
score itself is to be calibrated across queries; with few negatives its minimiser is far from
log P(j|x).

`positive-excluded` (Khrylchenko et al. 2025): the sum over negatives without the positive's item,
which hits are masked out of, estimated with Q'(d) = Q*(d) / (1 - Q*(p)) and the number n' of
negatives that were not masked: f_d - log n' - log Q*(d) + log(1 - Q*(p)). It conditions on how many
hits there were, so it has less variance than `negatives` where positives are popular, and the
smallest gradient bias of all. Needs many negatives just as that does.
"""

from __future__ import annotations

import tensorflow as tf

_SMALLEST = 1e-12
_LARGEST_INCLUSION = 0.999


def draw_probability(inclusion: tf.Tensor, *, batch_size: int) -> tf.Tensor:
    """Returns q, the probability of one draw, given that of appearing in a batch.

    q = 1 - (1 - p)^(1/B). An item that is in every batch could have any q above some bound: p
    counts as at most .999, so an item's expected count in a batch ends at 6.9.

    Args:
        inclusion: [num] p, in (0, 1].
        batch_size: B, the draws of a batch.

    Returns:
        [num] float32 in (0, 1).
    """
    known = tf.clip_by_value(inclusion, _SMALLEST, _LARGEST_INCLUSION)
    return -tf.math.expm1(tf.math.log1p(-known) / batch_size)


def log_expected_count(
    stream: tf.Tensor | None,
    corpus: tf.Tensor | None,
    *,
    num_stream: tf.Tensor | int,
    num_corpus: tf.Tensor | int = 0,
) -> tf.Tensor:
    """Returns log c_j, how often an item is expected among all negatives.

    Args:
        stream: [num] q of the items; None without draws from the stream.
        corpus: [num] the corpus' probability of the items; None without draws from it.
        num_stream: How many draws come from the stream: in-batch ones and the bank's.
        num_corpus: How many come from the corpus.

    Raises:
        ValueError: If no source tells its probabilities.
    """
    told = [
        tf.cast(num, tf.float32) * probability
        for num, probability in ((num_stream, stream), (num_corpus, corpus))
        if probability is not None
    ]
    if not told:
        raise ValueError(
            "model.logq: found no probabilities of the negatives, neither of the stream nor of the"
            " corpus; expected those of the source that they come from, or logq: none"
        )
    return tf.math.log(tf.maximum(tf.add_n(told), _SMALLEST))
