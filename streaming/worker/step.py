"""A range as a transaction: read it, pull once, learn locally, push once.

This is the function that the coordinator schedules. It runs on a worker; what it pulls and pushes
runs on the parameter servers. Between the two, mini-batches update a local copy of just the rows
that the range touches, which is Downpour SGD's form of asynchrony (Dean et al. 2012).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import tensorflow as tf

from models.contract import (
    CorpusSample,
    FeatureValue,
    Input,
    Model,
    Optimizer,
    Outcome,
    Sampling,
)
from models.features import hash_ids
from streaming.config import FrequencyConfig
from streaming.servers import frequency as freq
from streaming.servers.merge import Parameter
from streaming.servers.push import PushOutcome
from streaming.servers.state import ServerState
from streaming.servers.variables import Route
from streaming.worker import negatives, reader
from streaming.worker.negatives import Drift, RangeNegatives

_EPSILON = 1e-7
_ANONYMOUS = "cd2c89b7-88b7-44c8-ad83-06c2a9158347"  # ResourceHandle::ANONYMOUS_NAME


class Handles(NamedTuple):
    """Resource handles of a parameter and of its Adagrad accumulator (or None)."""

    value: tf.Tensor
    accumulator: tf.Tensor | None


class Report(NamedTuple):
    """What a range did, as the coordinator receives it. COUNTS names the fields of `counts`."""

    counts: tf.Tensor
    loss_sum: tf.Tensor
    detail: tf.Tensor


COUNTS = (*reader.COUNTS, "batches", "applied", "torn")


class Learned(NamedTuple):
    """What the mini-batches of a range came to: the sum of their losses, and feature drift."""

    loss_sum: tf.Tensor
    drift: Drift


class MiniBatches:
    """Takes a model's mini-batch steps on whatever holds its rows: local copies or whole tables."""

    def __init__(self, model: Model, *, batch_size: int) -> None:
        self.model = model
        self.batch_size = batch_size
        self._optimizers: dict[str, Optimizer] = {t.name: t.optimizer for t in model.tables}
        self._optimizers |= {weight.name: weight.optimizer for weight in model.weights}
        self._dims = {table.name: table.dim for table in model.tables}

    def learn(
        self,
        features: Mapping[str, FeatureValue],
        handles: Mapping[str, Handles],
        *,
        probability: tf.Tensor | None,
        num_samples: tf.Tensor,
        extra: RangeNegatives | None = None,
    ) -> Learned:
        """Steps through samples in order, updating what the handles hold.

        Args:
            features: Encoded inputs of all samples; ids are row numbers of their table's handle.
            handles: Tables and weights, by name.
            probability: [num_samples] sampling probability of each sample's candidate, or None.
            num_samples: int64 scalar.
            extra: Draws from the corpus and the bank, where the model asks for them.
        """
        around, model = extra or RangeNegatives(), self.model

        def step(begin: tf.Tensor, learned: Learned) -> tuple[tf.Tensor, Learned]:
            end = tf.minimum(begin + self.batch_size, num_samples)
            batch = {name: value[begin:end] for name, value in features.items()}
            sampling = negatives.batch_sampling(
                around,
                begin=begin,
                end=end,
                batch_size=self.batch_size,
                probability=probability,
                asked=(model.corpus, model.bank),
            )
            outcome = self._step(batch, handles, sampling)
            moved = self._remember(around, outcome, begin)
            return end, tf.nest.map_structure(tf.add, learned, Learned(outcome.loss, moved))

        _, learned = tf.while_loop(
            lambda begin, _: begin < num_samples,
            step,
            [tf.constant(0, tf.int64), Learned(tf.constant(0.0), negatives.no_drift())],
            parallel_iterations=1,
        )
        return learned

    def _remember(self, around: RangeNegatives, outcome: Outcome, begin: tf.Tensor) -> Drift:
        """Enqueues what the model made, after the step; returns how far it has moved."""
        bank, shape, rows = around.bank, self.model.bank, outcome.enqueue
        if bank is None or shape is None or rows is None:
            return negatives.no_drift()
        moved = negatives.drift(bank, rows, shape=shape, begin=begin, batch_size=self.batch_size)
        with tf.control_dependencies([moved.distance]):
            negatives.enqueue(bank, rows, size=shape.size, begin=begin)
        return moved

    def _step(
        self,
        batch: Mapping[str, FeatureValue],
        handles: Mapping[str, Handles],
        sampling: Sampling,
    ) -> Outcome:
        compact, corpus, used = compact_all(batch, sampling.corpus, self.model)
        tables = {}
        for name, rows in used.items():
            held = tf.raw_ops.ResourceGather(
                resource=handles[name].value, indices=rows, dtype=tf.float32
            )
            tables[name] = tf.ensure_shape(held, [None, self._dims[name]])
        weights = {}
        for weight in self.model.weights:
            held = tf.raw_ops.ReadVariableOp(resource=handles[weight.name].value, dtype=tf.float32)
            weights[weight.name] = tf.ensure_shape(held, weight.shape)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([tables, weights])
            outcome = self.model.loss(
                compact,
                tables=tables,
                weights=weights,
                sampling=sampling._replace(corpus=corpus),
            )
            loss = outcome.loss
        gradients = tape.gradient(
            loss, [tables, weights], unconnected_gradients=tf.UnconnectedGradients.ZERO
        )
        self._update(handles, gradients[0], used)
        self._update(handles, gradients[1], {})
        return outcome

    def _update(
        self,
        handles: Mapping[str, Handles],
        gradients: Mapping[str, tf.Tensor],
        used: Mapping[str, tf.Tensor],
    ) -> None:
        for name, gradient in gradients.items():
            dense = tf.convert_to_tensor(gradient)
            _apply_gradient(handles[name], dense, used.get(name), self._optimizers[name])


def _apply_gradient(
    handles: Handles, gradient: tf.Tensor, rows: tf.Tensor | None, optimizer: Optimizer
) -> None:
    rate = tf.constant(optimizer.learning_rate)
    if handles.accumulator is None:
        if rows is None:
            tf.raw_ops.AssignSubVariableOp(resource=handles.value, value=rate * gradient)
        else:
            tf.raw_ops.ResourceScatterSub(
                resource=handles.value, indices=rows, updates=rate * gradient
            )
        return
    adagrad = {
        "var": handles.value,
        "accum": handles.accumulator,
        "lr": rate,
        "epsilon": tf.constant(_EPSILON),
        "grad": gradient,
    }
    if rows is None:
        tf.raw_ops.ResourceApplyAdagradV2(**adagrad)
    else:
        tf.raw_ops.ResourceSparseApplyAdagradV2(**adagrad, indices=rows)


def compact_all(
    features: Mapping[str, FeatureValue], corpus: CorpusSample | None, model: Model
) -> tuple[dict[str, FeatureValue], CorpusSample | None, dict[str, tf.Tensor]]:
    """Renumbers the ids of samples and draws together, as `compact_rows` does."""
    inputs = negatives.all_inputs(model) if corpus is not None else model.inputs
    renumbered, used = compact_rows(negatives.joined(features, corpus), inputs)
    return *negatives.parted(renumbered, corpus), used


def compact_rows(
    features: Mapping[str, FeatureValue], inputs: Sequence[Input]
) -> tuple[dict[str, FeatureValue], dict[str, tf.Tensor]]:
    """Renumbers the ids of each table from 0 (int32), so that a few rows can stand for the table.

    Returns:
        The features with new ids, and per table the distinct old ids in the new order.
    """
    result = dict(features)
    tables: dict[str, list[str]] = {}
    for column in inputs:
        if column.table is not None:
            tables.setdefault(column.table, []).append(column.name)
    used = {}
    for table, names in tables.items():
        flat = [_flat(features[name]) for name in names]
        used[table], numbers = tf.unique(tf.concat(flat, axis=0))
        pieces = tf.split(numbers, [tf.size(ids) for ids in flat], num=len(flat))
        for name, piece in zip(names, pieces, strict=True):
            old = features[name]
            ragged = isinstance(old, tf.RaggedTensor)
            result[name] = old.with_flat_values(piece) if ragged else piece
    return result, used


def _flat(value: FeatureValue) -> tf.Tensor:
    return value.flat_values if isinstance(value, tf.RaggedTensor) else value


class RangeFunction:
    """Builds the function that a worker runs per range."""

    def __init__(self, state: ServerState, *, batch_size: int) -> None:
        self._state = state
        self._model = state.model
        self._batch_size = batch_size
        self._mini_batches = MiniBatches(state.model, batch_size=batch_size)

    def build(self) -> tf.types.experimental.PolymorphicFunction:
        """Returns the function to schedule: (mark [2], topics [2], numbers [6]) to a `Report`.

        `mark` is (slot, sequence); `topics` and `numbers` are as in `reader.read_range`.
        """
        signature = [
            tf.TensorSpec([2], tf.int64),
            tf.TensorSpec([2], tf.string),
            tf.TensorSpec([6], tf.int64),
        ]
        return tf.function(self._run, input_signature=signature, autograph=False)

    def _run(self, mark: tf.Tensor, topics: tf.Tensor, numbers: tf.Tensor) -> Report:
        read, detail, raw = reader.read_range(topics, numbers, self._model.inputs)
        num_samples = read[1]
        num_batches = -(-num_samples // self._batch_size)
        sightings, probability = self._frequencies(raw, num_batches)
        # A range that could not be read must not be marked: 0 is below every sequence number.
        sequence = tf.where(tf.equal(read[0], reader.Status.OK), mark[1], tf.zeros_like(mark[1]))
        loss_sum, outcome = self._learn(
            (mark[0], sequence), raw, probability, sightings, (num_samples, num_batches)
        )
        counts = tf.concat([read, [num_batches, outcome.applied, outcome.torn]], axis=0)
        return Report(counts, loss_sum, detail)

    def _frequencies(
        self, raw: Mapping[str, FeatureValue], num_batches: tf.Tensor
    ) -> tuple[tuple[Route, freq.Summary] | None, tf.Tensor | None]:
        mean_gap, name = self._state.mean_gap, self._model.candidate_input
        if mean_gap is None or name is None:
            return None, None
        config = self._state.frequency
        summary, positions = freq.summarise(
            bucket_numbers(raw[name], config),
            batch_size=self._batch_size,
            num_batches=num_batches,
            alpha=config.alpha,
        )
        route = self._state.route(summary.buckets, mean_gap)
        gaps = tf.gather(self._state.pull_rows(mean_gap, route), positions)
        return (route, summary), freq.probability(gaps)

    def _learn(
        self,
        mark: tuple[tf.Tensor, tf.Tensor],
        raw: Mapping[str, FeatureValue],
        probability: tf.Tensor | None,
        sightings: tuple[Route, freq.Summary] | None,
        sizes: tuple[tf.Tensor, tf.Tensor],
    ) -> tuple[tf.Tensor, PushOutcome]:
        num_samples, num_batches = sizes
        features, used = compact_rows(self._model.encode(raw), self._model.inputs)
        pulled = self._state.pull(used)
        copies = {name: _local_copy(parameter) for name, parameter in pulled.parameters.items()}
        loss_sum, _ = self._mini_batches.learn(
            features, copies, probability=probability, num_samples=num_samples
        )
        # The copies change inside the loop, so they are read once it has run.
        with tf.control_dependencies([loss_sum]):
            learned = {
                name: _read(copies[name], before) for name, before in pulled.parameters.items()
            }
        with tf.control_dependencies(_present(learned)):
            for handle in _present(copies):
                tf.raw_ops.DestroyResourceOp(resource=handle)
        outcome = self._state.push(
            mark, pulled=pulled, learned=learned, sightings=sightings, num_batches=num_batches
        )
        return loss_sum, outcome


def bucket_numbers(ids: tf.Tensor, config: FrequencyConfig) -> tf.Tensor:
    """Returns [num_hashes, num_ids] buckets of raw ids in the estimator's flat arrays."""
    # Seeds from 1: seed 0 hashes ids into embedding tables (`models.features.TABLE_SEED`).
    rows = [
        hash_ids(ids, seed=number + 1, buckets=config.buckets) + number * config.buckets
        for number in range(config.hashes)
    ]
    return tf.stack(rows)


def _present(parameters: Mapping[str, Parameter] | Mapping[str, Handles]) -> list[tf.Tensor]:
    return [tensor for pair in parameters.values() for tensor in pair if tensor is not None]


def _local_copy(pulled: Parameter) -> Handles:
    """Puts pulled values into new variables of this worker, where updates happen in place."""
    if pulled.accumulator is None:
        return Handles(_variable(pulled.value), None)
    return Handles(_variable(pulled.value), _variable(pulled.accumulator))


def _variable(value: tf.Tensor) -> tf.Tensor:
    # By this name TensorFlow makes a variable of its own at each call: a try that was given up
    # after a broken connection, and still runs, shares nothing with the one that follows it here.
    handle = tf.raw_ops.VarHandleOp(
        dtype=tf.float32, shape=tf.TensorShape(None), shared_name=_ANONYMOUS
    )
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
