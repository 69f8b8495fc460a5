"""The state of a trainer without a cluster, which one process reads and changes where it is.

It is a `ServerState` with one server: every array has one shard.
"""

from __future__ import annotations

from typing import cast

import numpy as np
import tensorflow as tf

from streaming.servers import frequency as freq
from streaming.servers.state import ServerState
from streaming.servers.variables import Shards
from streaming.worker.mini_batches import Handles


def handles(state: ServerState) -> dict[str, Handles]:
    """Returns where each parameter and its accumulator are held, by name."""
    sums = {name: total.variables[0] for name, total in state.table_sums.items()}
    sums |= state.weight_sums
    values = _variables(state)
    return {name: Handles(value.handle, sums[name].handle) for name, value in values.items()}


def parameters(state: ServerState) -> dict[str, np.ndarray]:
    """Returns copies of the tables and weights, by name."""
    return {name: value.numpy() for name, value in _variables(state).items()}


def _variables(state: ServerState) -> dict[str, tf.Variable]:
    return {name: table.variables[0] for name, table in state.tables.items()} | state.weights


def estimate(state: ServerState, ids: tf.Tensor, *, batch_size: int) -> tf.Tensor:
    """Has the estimator see a range, and returns each id's probability as it was before.

    The state's clock is left to the caller, who adds the range's mini-batches to it.

    Args:
        state: Whose estimator.
        ids: [num_samples] candidates, in order.
        batch_size: Samples per mini-batch.
    """
    num_batches = -(-tf.size(ids, out_type=tf.int64) // batch_size)
    seen = state.sight(ids, batch_size=batch_size, num_batches=num_batches)
    if seen is None:
        raise ValueError("found a state without an estimator; expected one")
    likely, _ = state.likely(seen)
    buckets = seen.summary.buckets
    arrays = [cast(Shards, array).variables[0] for array in (state.last_seen, state.gaps)]
    with tf.control_dependencies([likely]):
        last_seen, gaps = (tf.gather(array, buckets) for array in arrays)
    new = freq.compose(
        seen.summary,
        last_seen=last_seen,
        gaps=gaps,
        clock=state.step.read_value(),
        alpha=state.frequency.alpha,
    )
    for array, values in zip(arrays, new, strict=True):
        array.scatter_update(tf.IndexedSlices(values, buckets))
    return likely
