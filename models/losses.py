"""In-batch softmax with the logQ correction (Yi et al., RecSys 2019, equation of section 3)."""

from __future__ import annotations

import tensorflow as tf


def in_batch_softmax(
    query: tf.Tensor,
    candidate: tf.Tensor,
    *,
    temperature: float,
    reward: tf.Tensor,
    candidate_sampling_probability: tf.Tensor | None = None,
    candidate_ids: tf.Tensor | None = None,
) -> tf.Tensor:
    """Returns the batch softmax loss; the other samples' candidates are the negatives.

    ```
    s_ij = <query_i, candidate_j> / temperature - log p_j        (all logits, the positive too)
    L    = -(1/B) sum_i r_i log( exp(s_ii) / sum_j exp(s_ij) )
    ```

    Correcting the positive as well makes log P(candidate | query) the minimiser for any batch size.

    Args:
        query: [batch, dim] float32.
        candidate: [batch, dim] float32; row i is the positive of query i.
        temperature: Divides the scores.
        reward: [batch] float32 weights r of the samples.
        candidate_sampling_probability: [batch] p, in (0, 1]; None leaves the correction out.
        candidate_ids: [batch] identities. A negative with the positive's identity (an accidental
            hit) is left out of the sum, the positive never is. None keeps all.

    Returns:
        float32 scalar.
    """
    logits = tf.matmul(query / temperature, candidate, transpose_b=True)
    if candidate_sampling_probability is not None:
        logits -= tf.math.log(candidate_sampling_probability)[tf.newaxis, :]
    if candidate_ids is not None:
        hits = candidate_ids[:, tf.newaxis] == candidate_ids[tf.newaxis, :]
        hits = tf.linalg.set_diag(hits, tf.zeros_like(candidate_ids, tf.bool))
        logits = tf.where(hits, -float("inf"), logits)
    losses = tf.reduce_logsumexp(logits, axis=1) - tf.linalg.diag_part(logits)
    return tf.reduce_mean(reward * losses)
