"""From what a trainer knows of a mini-batch's candidates to the corrected softmax over them.

Every source's rows are `Candidates`: a vector, an identity, and how likely a draw from the stream
and a draw from the corpus is to be that item. `mixed_softmax` counts the draws, so that each row is
corrected for the mixture that it is part of (`models.corrections`).

A bank's rows cannot move: nobody learns from being a negative there. In one softmax over both they
take the push from the candidates of the mini-batch, to whom M rows beside B leave B / (B + M) of
it, while the pull on positives stays; what was meant to be far apart drifts together, however fresh
the rows are. So by default a loss with a bank is of two parts: queries learn from the softmax over
all, candidates from the softmax without the bank. `joint` is the published form (Wang et al. 2021).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from models.config import LogQ
from models.contract import Candidates, Sampling
from models.corrections import draw_probability, log_expected_count
from models.losses import HardNegatives, Negatives, Positives, sampled_softmax

_NOBODY = -1


class Sources(NamedTuple):
    """The candidates of a mini-batch.

    Attributes:
        batch: [batch] the samples' own.
        in_batch: Whether those are negatives of each other.
        corpus: Draws from the corpus, or None.
        bank: Rows of the bank, or None.
        hard: Hard negatives, or None.
        joint: Whether candidates learn from the softmax over the bank, too.
    """

    batch: Candidates
    in_batch: bool = True
    corpus: Candidates | None = None
    bank: Candidates | None = None
    hard: HardNegatives | None = None
    joint: bool = False


def stream_probability(inclusion: tf.Tensor | None, *, sampling: Sampling) -> tf.Tensor | None:
    """Returns q of an estimated p, None without one."""
    if inclusion is None or sampling.batch_size is None:
        return None
    return draw_probability(inclusion, batch_size=sampling.batch_size)


def mixed_softmax(
    query: tf.Tensor,
    sources: Sources,
    *,
    reward: tf.Tensor,
    logq: LogQ,
    inclusion: tf.Tensor | None,
    masked: bool,
) -> tf.Tensor:
    """Returns the loss of a mini-batch over all its sources of negatives.

    Args:
        query: [batch, dim] float32, divided by the temperature.
        sources: The candidates.
        reward: [batch] float32 weights of the samples.
        logq: The form of the correction.
        inclusion: [batch] p of the samples' candidates. In-batch negatives alone take it as it is
            in form `all`, as published.
        masked: Whether hits are left out by identity.
    """
    if not masked:
        sources = _without_identities(sources)

    alone = sources.in_batch and sources.corpus is None and sources.bank is None

    def softmax(query: tf.Tensor, sources: Sources) -> tf.Tensor:
        published = inclusion if alone else None
        return _softmax(query, sources, reward=reward, logq=logq, inclusion=published)

    if sources.bank is None or sources.joint:
        return softmax(query, sources)
    by_candidates = softmax(tf.stop_gradient(query), sources._replace(bank=None))
    by_queries = softmax(query, tf.nest.map_structure(_fixed, sources))
    return by_queries + by_candidates - tf.stop_gradient(by_candidates)


def _fixed(part: object) -> object:
    return tf.stop_gradient(part) if isinstance(part, tf.Tensor) else part


def _softmax(
    query: tf.Tensor,
    sources: Sources,
    *,
    reward: tf.Tensor,
    logq: LogQ,
    inclusion: tf.Tensor | None,
) -> tf.Tensor:
    """Returns the loss; `inclusion` is what form `all` takes as it is, None for expected counts."""
    batch = sources.batch
    in_batch = tf.maximum(tf.size(batch.identity) - 1, 1) if sources.in_batch else 0
    num_stream = in_batch + (0 if sources.bank is None else tf.size(sources.bank.identity))
    num_corpus = 0 if sources.corpus is None else tf.size(sources.corpus.identity)

    def correction(rows: Candidates) -> tf.Tensor | None:
        if logq == "none":
            return None
        if logq == "all" and inclusion is not None:
            return tf.math.log(inclusion)
        return log_expected_count(
            rows.probability,
            rows.corpus_probability,
            num_stream=num_stream,
            num_corpus=num_corpus,
        )

    return sampled_softmax(
        query,
        Positives(batch.vectors, batch.identity, correction(batch), reward),
        _negatives(sources, correction),
        logq=logq,
        num_draws=tf.cast(num_stream + num_corpus, tf.float32),
        hard=sources.hard,
    )


def _negatives(
    sources: Sources, correction: Callable[[Candidates], tf.Tensor | None]
) -> list[Negatives]:
    listed = [sources.batch if sources.in_batch else None, sources.corpus, sources.bank]
    return [
        Negatives(rows.vectors, rows.identity, correction(rows), rows is not sources.bank)
        for rows in listed
        if rows is not None
    ]


def _without_identities(sources: Sources) -> Sources:
    """Lets nobody be anybody else: each query's own candidate alone is left out."""

    def nobody(rows: Candidates) -> Candidates:
        return rows._replace(identity=tf.fill(tf.shape(rows.identity), _as_id(_NOBODY)))

    own = tf.range(tf.size(sources.batch.identity, out_type=tf.int64))
    hard = sources.hard
    if hard is not None:
        hard = hard._replace(identity=tf.fill(tf.shape(hard.identity), _as_id(_NOBODY)))
    return sources._replace(
        batch=sources.batch._replace(identity=own),
        corpus=None if sources.corpus is None else nobody(sources.corpus),
        bank=None if sources.bank is None else nobody(sources.bank),
        hard=hard,
    )


def _as_id(number: int) -> tf.Tensor:
    return tf.constant(number, tf.int64)
