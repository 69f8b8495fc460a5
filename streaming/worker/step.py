"""A range as a transaction: read it, pull once, learn locally, push once.

This is the function that the coordinator schedules. It runs on a worker; what it pulls and pushes
runs on the parameter servers. Between the two, mini-batches update a local copy of just the rows
that the range touches, which is Downpour SGD's form of asynchrony (Dean et al. 2012).

One call runs a *flight* of ranges. Each is a transaction of its own, but while one is learned the
next is read and pulled, and the one before is pushed: else the cores would wait for the exchange.
So a range does not see the push of the one right before it, as if two workers took turns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import tensorflow as tf

from models.contract import Candidates, CorpusSample, FeatureValue, Input, Model
from models.features import identities
from pipeline.schema import SCENARIO, InputError
from streaming.config import FrequencyConfig
from streaming.servers import frequency as freq
from streaming.servers.merge import Parameter
from streaming.servers.order import independent
from streaming.servers.push import Mark, PushOutcome
from streaming.servers.state import Pulled, ServerState
from streaming.servers.variables import Route, Shards
from streaming.worker import negatives, reader
from streaming.worker.corpus import draw_corpus
from streaming.worker.mini_batches import Handles, Learned, MiniBatches, compact_all
from streaming.worker.negatives import LocalBank, RangeNegatives

_ANONYMOUS = "cd2c89b7-88b7-44c8-ad83-06c2a9158347"  # ResourceHandle::ANONYMOUS_NAME


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


class _Seen(NamedTuple):
    """A range's samples, and what the estimator has to say of them.

    Attributes:
        raw: Inputs as they were read.
        num_samples: int64 scalar.
        num_batches: int64 scalar.
        probability: [num_samples], None without an estimator.
        sightings: Where the range's buckets live, and what it adds to them; None without.
        unseen: float32 scalar, samples whose candidate was never seen before; None without.
    """

    raw: Mapping[str, FeatureValue]
    num_samples: tf.Tensor
    num_batches: tf.Tensor
    probability: tf.Tensor | None
    sightings: tuple[Route, freq.Summary] | None
    unseen: tf.Tensor | None


def range_inputs(model: Model, frequency: FrequencyConfig) -> list[Input]:
    """Returns the columns that a worker reads: the model's, and what the estimator needs."""
    inputs = list(model.inputs)
    if frequency.per_scenario and all(each.name != SCENARIO for each in inputs):
        inputs.append(Input(name=SCENARIO, dtype=tf.string))
    return inputs


class _Ready(NamedTuple):
    """A range that was read, with all that its mini-batches need.

    Attributes:
        mark: (slot, sequence), int64 scalars; the sequence is 0 if nothing may be learned.
        read: What the reader counted, by `reader.COUNTS`.
        detail: string scalar, see `Report`.
        seen: Its samples.
        features: Encoded inputs; ids are row numbers of what was pulled.
        extra: Draws from the corpus.
        pulled: The state as it was before.
    """

    mark: tuple[tf.Tensor, tf.Tensor]
    read: tf.Tensor
    detail: tf.Tensor
    seen: _Seen
    features: Mapping[str, FeatureValue]
    extra: RangeNegatives
    pulled: Pulled

    @property
    def arrived(self) -> list[tf.Tensor]:
        """What the servers have sent."""
        parts = [self.pulled.parameters, self.pulled.touches, self.pulled.pushes, self.pulled.bank]
        return [
            part
            for part in tf.nest.flatten([*parts, self.seen.probability])
            if isinstance(part, tf.Tensor)
        ]


class RangeFunction:
    """Builds the function that a worker runs for a flight of ranges."""

    def __init__(self, state: ServerState, *, batch_size: int, flight: int = 1) -> None:
        self._state = state
        self._model = state.model
        self._batch_size = batch_size
        self._flight = flight
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
        # read and written: pull 0, pull 1, push 0, pull 2, push 1, ...
        ready = [self._prepare(*arguments[0])]
        reports: list[Report] = []
        for place, current in enumerate(ready):
            after = [reports[-1].counts] if reports else []
            if place + 1 < self._flight:
                before = reports[place - 1].sums if place else current.read
                with tf.control_dependencies([before]):
                    ready.append(self._prepare(*arguments[place + 1]))
                after += ready[-1].arrived
            reports.append(self._finish(current, after=after))
        return Report._make(tf.stack(parts) for parts in zip(*reports, strict=True))

    def _prepare(self, mark: tf.Tensor, topics: tf.Tensor, numbers: tf.Tensor) -> _Ready:
        """Reads a range and pulls what it needs."""
        topics, numbers = tf.identity(topics), tf.identity(numbers)  # not before they may
        read, detail, raw = reader.read_range(topics, numbers, self._inputs)
        num_samples = read[1]
        num_batches = -(-num_samples // self._batch_size)
        sightings, probability, unseen = self._frequencies(raw, num_batches)
        seen = _Seen(raw, num_samples, num_batches, probability, sightings, unseen)
        corpus_probability, corpus = self._draws(topics[0], numbers, seen)
        # A range that could not be read must not be marked: 0 is below every sequence number.
        sequence = tf.where(tf.equal(read[0], reader.Status.OK), mark[1], tf.zeros_like(mark[1]))
        features, corpus, used = compact_all(self._model.encode(raw), corpus, self._model)
        return _Ready(
            mark=(mark[0], sequence),
            read=read,
            detail=detail,
            seen=seen,
            features=features,
            extra=RangeNegatives(corpus_probability, corpus, None),
            pulled=self._state.pull(used),
        )

    def _finish(self, ready: _Ready, *, after: Sequence[tf.Tensor]) -> Report:
        """Learns a range and pushes what it has changed."""
        learned, outcome = self._learn(ready, after=after)
        num_batches = ready.seen.num_batches
        counts = tf.concat([ready.read, [num_batches, outcome.applied, outcome.torn]], axis=0)
        sums = tf.concat(
            [
                [learned.loss_sum],
                _unseen(ready.seen),
                [learned.bank_rows],
                *learned.drift,
            ],
            axis=0,
        )
        return Report(counts, sums, ready.detail)

    def _frequencies(
        self, raw: Mapping[str, FeatureValue], num_batches: tf.Tensor
    ) -> tuple[tuple[Route, freq.Summary] | None, tf.Tensor | None, tf.Tensor | None]:
        gaps, name = self._state.gaps, self._model.candidate_input
        if gaps is None or name is None:
            return None, None, None
        config = self._state.frequency
        scenario = raw[SCENARIO] if config.per_scenario else None
        buckets, which = freq.distinct_buckets(raw[name], config, scenario=scenario)
        summary, positions = freq.summarise(
            buckets,
            which,
            batch_size=self._batch_size,
            num_batches=num_batches,
            alpha=config.alpha,
        )
        route = self._state.route(summary.buckets, gaps)
        held = tf.gather(self._state.pull_rows(gaps, route), positions)
        likely = tf.gather(freq.probability(held, config), which)
        new = tf.gather(tf.cast(freq.never_seen(held), tf.float32), which)
        return (route, summary), likely, tf.reduce_sum(new)

    def _draws(
        self, topic: tf.Tensor, numbers: tf.Tensor, seen: _Seen
    ) -> tuple[tf.Tensor | None, CorpusSample | None]:
        """Returns the corpus' probability of each sample's candidate, and the range's draws."""
        draws = self._model.corpus
        if draws is None:
            return None, None
        own, drawn, raw = draw_corpus(
            topic,
            numbers,
            num=draws.count * seen.num_batches,
            identity=identities(seen.raw[draws.identity]),
            draws=draws,
        )
        likely = None
        if self._state.gaps is not None:
            likely = self._probability_of(raw[draws.identity], self._state.gaps)
        return own, CorpusSample(self._model.encode(raw), likely, drawn)

    def _probability_of(self, ids: tf.Tensor, gaps: Shards) -> tf.Tensor:
        """Returns the estimated probabilities of drawn ids, 0 for those never seen."""
        config = self._state.frequency
        buckets, which = freq.distinct_buckets(ids, config)
        distinct, positions = tf.unique(tf.reshape(buckets, [-1]))
        held = self._state.pull_rows(gaps, self._state.route(distinct, gaps))
        held = tf.gather(held, tf.reshape(positions, tf.shape(buckets)))
        return tf.gather(freq.probability(held, config, unseen=0.0), which)

    def _learn(self, ready: _Ready, *, after: Sequence[tf.Tensor]) -> tuple[Learned, PushOutcome]:
        pulled, seen = ready.pulled, ready.seen
        copies = {name: _local_copy(parameter) for name, parameter in pulled.parameters.items()}
        bank = _local_bank(pulled)
        progress = self._mini_batches.learn(
            ready.features,
            copies,
            probability=seen.probability,
            num_samples=seen.num_samples,
            extra=ready.extra._replace(bank=bank),
        )
        # The copies change inside the loop, so they are read once it has run.
        with tf.control_dependencies([progress.loss_sum]):
            learned = {
                name: _read(copies[name], before) for name, before in pulled.parameters.items()
            }
            enqueued = self._enqueued(bank, seen.num_samples)
        finite = _all_finite(learned)
        slot, sequence = ready.mark
        with tf.control_dependencies(_present([*learned.values(), enqueued])):
            for handle in _present([*copies.values(), bank and bank.handles]):
                tf.raw_ops.DestroyResourceOp(resource=handle)
        outcome = self._state.push(
            Mark(slot, tf.where(finite, sequence, tf.zeros_like(sequence)), after),
            pulled=pulled,
            learned=learned,
            sightings=seen.sightings,
            enqueued=None if enqueued is None else (enqueued, seen.num_samples),
            num_batches=seen.num_batches,
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


def _unseen(seen: _Seen) -> tf.Tensor:
    """Returns [2]: samples whose candidate was never seen before, of how many."""
    if seen.unseen is None:
        return tf.zeros([2])
    return tf.stack([seen.unseen, tf.cast(seen.num_samples, tf.float32)])


def _present(groups: list[tuple[tf.Tensor | None, ...] | None]) -> list[tf.Tensor]:
    return [tensor for group in groups for tensor in group or () if tensor is not None]


def _local_copy(pulled: Parameter) -> Handles:
    """Puts pulled values into new variables of this worker, where updates happen in place."""
    if pulled.accumulator is None:
        return Handles(_variable(pulled.value), None)
    return Handles(_variable(pulled.value), _variable(pulled.accumulator))


def _local_bank(pulled: Pulled) -> LocalBank | None:
    if pulled.bank is None:
        return None
    rows, cursor, step = pulled.bank
    return LocalBank._make([*[_variable(values) for values in rows], cursor, step])


def _variable(value: tf.Tensor) -> tf.Tensor:
    # By this name TensorFlow makes a variable of its own at each call: a try that was given up
    # after a broken connection, and still runs, shares nothing with the one that follows it here.
    handle = tf.raw_ops.VarHandleOp(
        dtype=value.dtype, shape=tf.TensorShape(None), shared_name=_ANONYMOUS
    )
    independent(handle)
    tf.raw_ops.AssignVariableOp(resource=handle, value=value)
    return handle


def _read(copy: Handles, pulled: Parameter) -> Parameter:
    def now(handle: tf.Tensor, before: tf.Tensor) -> tf.Tensor:
        after = tf.raw_ops.ReadVariableOp(resource=handle, dtype=tf.float32)
        return tf.ensure_shape(after, before.shape)

    value = now(copy.value, pulled.value)
    if copy.accumulator is None or pulled.accumulator is None:
        return Parameter(value, None)
    return Parameter(value, now(copy.accumulator, pulled.accumulator))
