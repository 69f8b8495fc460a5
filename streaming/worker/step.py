"""A range as a transaction: read it, pull once, learn locally, push once.

This is the function that the coordinator schedules. It runs on a worker; what it pulls and pushes
runs on the parameter servers. Between the two, mini-batches update a local copy of just the rows
that the range touches, which is Downpour SGD's form of asynchrony (Dean et al. 2012).

One call runs a *flight* of ranges, each of which is a transaction of its own and begins when the
one before is pushed. With `overlap` it is read and pulled before that, and the cores need not wait
for the exchange; but then a range does not see the push of the one right before it, as if two
workers took turns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import tensorflow as tf

from models.contract import Candidates, CorpusSample, FeatureValue, Input, Model
from models.features import identities
from pipeline.schema import SCENARIO, InputError
from streaming.config import FrequencyConfig
from streaming.servers.merge import Parameter
from streaming.servers.push import Mark, PushOutcome
from streaming.servers.state import Pulled, ServerState, Sightings
from streaming.worker import negatives, reader
from streaming.worker.copies import local_bank, local_copy, read_copy
from streaming.worker.corpus import draw_corpus
from streaming.worker.mini_batches import Learned, MiniBatches, compact_all
from streaming.worker.negatives import LocalBank, RangeNegatives


class Report(NamedTuple):
    """What ranges did, as the coordinator receives it.

    Attributes:
        counts: [flight, len(COUNTS)] int64.
        sums: [flight, len(SUMS)] float32.
        detail: [flight] string, what went wrong, or the worker's name.
    """

    counts: tf.Tensor
    sums: tf.Tensor
    detail: tf.Tensor


COUNTS = (*reader.COUNTS, "batches", "applied", "torn")
SUMS = (
    "loss_sum",
    "unseen_share_sum",
    "unseen_share_count",
    "bank_rows_sum",
    *(f"drift_{age}_sum" for age in negatives.DRIFT_STEPS),
    *(f"drift_{age}_count" for age in negatives.DRIFT_STEPS),
)
"""Sums over the range's mini-batches; those with a count are means over it, not over batches.

A loss_sum of NaN says that nothing of the range was pushed: what it had learned was not finite.
"""


class _Read(NamedTuple):
    """A range as it was read: nothing of this was asked of a server.

    Attributes:
        mark: (slot, sequence), int64 scalars; the sequence is 0 if nothing may be learned.
        counts: By `reader.COUNTS`.
        detail: string scalar, see `Report`.
        num_samples: int64 scalar.
        num_batches: int64 scalar.
        sightings: None without an estimator.
        features: Encoded inputs; ids are row numbers of what is pulled.
        corpus_probability: [num_samples] of a draw from the corpus to be the sample's candidate;
            None without a corpus.
        corpus: The range's draws, still without their probabilities in the stream; None without.
        drawn: Identities of the draws, None without.
        rows: The distinct rows to pull, per table.
    """

    mark: tuple[tf.Tensor, tf.Tensor]
    counts: tf.Tensor
    detail: tf.Tensor
    num_samples: tf.Tensor
    num_batches: tf.Tensor
    sightings: Sightings | None
    features: Mapping[str, FeatureValue]
    corpus_probability: tf.Tensor | None
    corpus: CorpusSample | None
    drawn: FeatureValue | None
    rows: Mapping[str, tf.Tensor]


def range_inputs(model: Model, frequency: FrequencyConfig) -> list[Input]:
    """Returns the columns that a worker reads: the model's, and what the estimator needs."""
    inputs = list(model.inputs)
    if frequency.per_scenario and all(each.name != SCENARIO for each in inputs):
        inputs.append(Input(name=SCENARIO, dtype=tf.string))
    return inputs


class _Ready(NamedTuple):
    """A range with all that its mini-batches need.

    Attributes:
        range: As it was read.
        probability: [num_samples] of the candidates, None without an estimator.
        unseen: float32 scalar, samples whose candidate was never seen before; None without.
        extra: Draws from the corpus.
        pulled: The state as it was before.
    """

    range: _Read
    probability: tf.Tensor | None
    unseen: tf.Tensor | None
    extra: RangeNegatives
    pulled: Pulled

    @property
    def arrived(self) -> list[tf.Tensor]:
        """All that waits for a server."""
        parts = [self.pulled, self.probability, self.unseen, self.extra]
        return [part for part in tf.nest.flatten(parts) if isinstance(part, tf.Tensor)]


class RangeFunction:
    """Builds the function that a worker runs for a flight of ranges."""

    def __init__(
        self, state: ServerState, *, batch_size: int, flight: int = 1, overlap: bool = False
    ) -> None:
        self._state = state
        self._model = state.model
        self._batch_size = batch_size
        self._flight = flight
        self._overlap = overlap
        self._mini_batches = MiniBatches(state.model, batch_size=batch_size)
        self._inputs = range_inputs(state.model, state.frequency)
        if state.frequency.per_scenario and state.model.corpus is not None:
            raise InputError(
                "train.frequency.per_scenario: draws from the corpus have no scenario; expected"
                " false with model.negatives.corpus"
            )

    def build(self) -> tf.types.experimental.PolymorphicFunction:
        """Returns the function to schedule, for as many ranges as a flight has.

        It takes marks [flight, 2], topics [flight, 2] and numbers [flight, 6] and returns a
        `Report` of arrays [flight, ...]. A mark is (slot, sequence); topics and numbers of each
        range are as in `reader.read_range`. A flight may be filled up with empty ranges.
        """
        signature = [
            tf.TensorSpec([self._flight, 2], tf.int64),
            tf.TensorSpec([self._flight, 2], tf.string),
            tf.TensorSpec([self._flight, 6], tf.int64),
        ]
        return tf.function(self._run, input_signature=signature, autograph=False)

    def _run(self, marks: tf.Tensor, topics: tf.Tensor, numbers: tf.Tensor) -> Report:
        arguments = list(zip(*map(tf.unstack, (marks, topics, numbers)), strict=True))
        # The order in which the graph is built is the order in which the servers' variables are
        # read and written: pull 0, push 0, pull 1, push 1, ...; or, with overlap, pull 0, pull 1,
        # push 0, pull 2, push 1, ...
        current = self._pull(self._read(*arguments[0]))
        reports: list[Report] = []
        for following in arguments[1:]:
            done = [reports[-1].counts] if reports else []
            if self._overlap:
                with tf.control_dependencies(done or [current.range.counts]):
                    after = self._pull(self._read(*following))
                reports.append(self._finish(current, after=[*done, *after.arrived]))
            else:
                reports.append(self._finish(current, after=done))
                # What is read ahead meanwhile, within its limit, the reader has.
                with tf.control_dependencies([reports[-1].counts]):
                    after = self._pull(self._read(*following))
            current = after
        reports.append(self._finish(current, after=[reports[-1].counts] if reports else []))
        return Report._make(tf.stack(parts) for parts in zip(*reports, strict=True))

    def _read(self, mark: tf.Tensor, topics: tf.Tensor, numbers: tf.Tensor) -> _Read:
        """Reads a range, and finds what it needs of the servers."""
        with tf.control_dependencies([self._state.note_try(mark[0], mark[1])]):
            topics, numbers = tf.identity(topics), tf.identity(numbers)  # not before they may
        counts, detail, raw = reader.read_range(topics, numbers, self._inputs)
        num_samples = counts[1]
        num_batches = -(-num_samples // self._batch_size)
        # A range that could not be read must not be marked: 0 is below every sequence number.
        sequence = tf.where(tf.equal(counts[0], reader.Status.OK), mark[1], tf.zeros_like(mark[1]))
        own, corpus, drawn = self._draws(topics[0], numbers, raw, num_batches)
        features, corpus, rows = compact_all(self._model.encode(raw), corpus, self._model)
        return _Read(
            mark=(mark[0], sequence),
            counts=counts,
            detail=detail,
            num_samples=num_samples,
            num_batches=num_batches,
            sightings=self._sightings(raw, num_batches),
            features=features,
            corpus_probability=own,
            corpus=corpus,
            drawn=drawn,
            rows=rows,
        )

    def _pull(self, read: _Read) -> _Ready:
        """Pulls what a range needs."""
        probability, unseen = self._state.likely(read.sightings)
        corpus = read.corpus
        if corpus is not None and read.drawn is not None:
            corpus = corpus._replace(sampling_probability=self._state.likely_drawn(read.drawn))
        return _Ready(
            range=read,
            probability=probability,
            unseen=unseen,
            extra=RangeNegatives(read.corpus_probability, corpus, None),
            pulled=self._state.pull(read.rows),
        )

    def _finish(self, ready: _Ready, *, after: Sequence[tf.Tensor]) -> Report:
        """Learns a range and pushes what it has changed."""
        learned, outcome = self._learn(ready, after=after)
        read = ready.range
        counts = [read.num_batches, outcome.applied, outcome.torn]
        sums = [[learned.loss_sum], _unseen(ready), [learned.bank_rows], *learned.drift]
        return Report(
            tf.concat([read.counts, counts], axis=0), tf.concat(sums, axis=0), read.detail
        )

    def _sightings(
        self, raw: Mapping[str, FeatureValue], num_batches: tf.Tensor
    ) -> Sightings | None:
        name = self._model.candidate_input
        if name is None:
            return None
        return self._state.sight(
            raw[name],
            batch_size=self._batch_size,
            num_batches=num_batches,
            scenario=raw[SCENARIO] if self._state.frequency.per_scenario else None,
        )

    def _draws(
        self,
        topic: tf.Tensor,
        numbers: tf.Tensor,
        raw: Mapping[str, FeatureValue],
        num_batches: tf.Tensor,
    ) -> tuple[tf.Tensor | None, CorpusSample | None, FeatureValue | None]:
        """Returns the corpus' probability of each sample's candidate, the draws and their ids."""
        draws = self._model.corpus
        if draws is None:
            return None, None, None
        own, probability, drawn = draw_corpus(
            topic,
            numbers,
            num=draws.count * num_batches,
            identity=identities(raw[draws.identity]),
            draws=draws,
        )
        sample = CorpusSample(self._model.encode(drawn), None, probability)
        return own, sample, drawn[draws.identity]

    def _learn(self, ready: _Ready, *, after: Sequence[tf.Tensor]) -> tuple[Learned, PushOutcome]:
        pulled, read = ready.pulled, ready.range
        copies = {name: local_copy(parameter) for name, parameter in pulled.parameters.items()}
        bank = local_bank(pulled)
        progress = self._mini_batches.learn(
            read.features,
            copies,
            probability=ready.probability,
            num_samples=read.num_samples,
            extra=ready.extra._replace(bank=bank),
        )
        # The copies change inside the loop, so they are read once it has run.
        with tf.control_dependencies([progress.loss_sum]):
            learned = {
                name: read_copy(copies[name], before) for name, before in pulled.parameters.items()
            }
            enqueued = self._enqueued(bank, read.num_samples)
        finite = _all_finite(learned) & tf.math.is_finite(progress.loss_sum)
        slot, sequence = read.mark
        with tf.control_dependencies(_present([*learned.values(), enqueued])):
            for handle in _present([*copies.values(), bank and bank.handles]):
                tf.raw_ops.DestroyResourceOp(resource=handle)
        outcome = self._state.push(
            Mark(slot, tf.where(finite, sequence, tf.zeros_like(sequence)), after),
            pulled=pulled,
            learned=learned,
            sightings=read.sightings,
            enqueued=None if enqueued is None else (enqueued, read.num_samples),
            num_batches=read.num_batches,
        )
        loss = tf.where(finite, progress.loss_sum, float("nan"))
        return progress._replace(loss_sum=loss), outcome

    def _enqueued(self, bank: LocalBank | None, num_samples: tf.Tensor) -> Candidates | None:
        if bank is None or self._model.bank is None:
            return None
        return negatives.newest(bank, size=self._model.bank.size, num_samples=num_samples)


def _all_finite(learned: Mapping[str, Parameter]) -> tf.Tensor:
    """Whether what would be pushed is finite: one value that is not makes its sum so."""
    sums = [tf.reduce_sum(part) for part in _present([*learned.values()])]
    return tf.reduce_all(tf.math.is_finite(tf.stack(sums)))


def _unseen(ready: _Ready) -> tf.Tensor:
    """Returns [2]: samples whose candidate was never seen before, of how many."""
    if ready.unseen is None:
        return tf.zeros([2])
    return tf.stack([ready.unseen, tf.cast(ready.range.num_samples, tf.float32)])


def _present(groups: list[tuple[tf.Tensor | None, ...] | None]) -> list[tf.Tensor]:
    return [tensor for group in groups for tensor in group or () if tensor is not None]
