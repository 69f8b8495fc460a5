"""Mini-batch steps on whatever holds a model's rows: a worker's local copies, or whole tables."""

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
from streaming.worker import negatives
from streaming.worker.negatives import Drift, RangeNegatives

_EPSILON = 1e-7


class Handles(NamedTuple):
    """Resource handles of a parameter and of its Adagrad accumulator (or None)."""

    value: tf.Tensor
    accumulator: tf.Tensor | None


class Learned(NamedTuple):
    """What the mini-batches of a range came to.

    Attributes:
        loss_sum: float32 scalar, the sum of their losses.
        bank_rows: float32 scalar, the sum of the bank's rows that they had as negatives.
        drift: Feature drift.
    """

    loss_sum: tf.Tensor
    bank_rows: tf.Tensor
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
            rows = 0 if sampling.bank is None else tf.size(sampling.bank.identity)
            this = Learned(outcome.loss, tf.cast(rows, tf.float32), moved)
            return end, tf.nest.map_structure(tf.add, learned, this)

        _, learned = tf.while_loop(
            lambda begin, _: begin < num_samples,
            step,
            [tf.constant(0, tf.int64), _nothing_learned()],
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


def _nothing_learned() -> Learned:
    return Learned(tf.constant(0.0), tf.constant(0.0), negatives.no_drift())


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
    if rows is not None and optimizer.kind == "rowwise-adagrad":
        _apply_rowwise(handles.value, handles.accumulator, gradient, rows, rate)
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


def _apply_rowwise(
    value: tf.Tensor, sums: tf.Tensor, gradient: tf.Tensor, rows: tf.Tensor, rate: tf.Tensor
) -> None:
    """Adagrad with one sum a row, of its mean squared gradient (FBGEMM's exact row-wise form)."""
    squares = tf.reduce_mean(gradient * gradient, axis=1, keepdims=True)
    added = tf.raw_ops.ResourceScatterAdd(resource=sums, indices=rows, updates=squares)
    with tf.control_dependencies([added]):
        total = tf.raw_ops.ResourceGather(resource=sums, indices=rows, dtype=tf.float32)
    step = rate * gradient / (tf.sqrt(total) + _EPSILON)
    tf.raw_ops.ResourceScatterSub(resource=value, indices=rows, updates=step)


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
