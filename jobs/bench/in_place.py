"""The state of a trainer without a cluster, which one process reads and changes where it is.

It is a `ServerState` with one server: every array has one shard.
"""

from __future__ import annotations

from typing import cast

import numpy as np
import tensorflow as tf

from streaming.config import FrequencyConfig
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


def estimate(
    state: ServerState, ids: tf.Tensor, config: FrequencyConfig, *, batch_size: int
) -> tf.Tensor:
    """Has the estimator see a range, and returns each id's probability as it was before.

    The state's clock is left to the caller, who adds the range's mini-batches to it.

    Args:
        state: Whose estimator.
        ids: [num_samples] candidates, in order.
        config: The estimator's settings.
        batch_size: Samples per mini-batch.
    """
    buckets, which = freq.distinct_buckets(ids, config)
    summary, positions = freq.summarise(
        buckets,
        which,
        batch_size=batch_size,
        num_batches=-(-tf.size(ids, out_type=tf.int64) // batch_size),
        alpha=config.alpha,
    )
    last_seen, gaps = (cast(Shards, array).variables[0] for array in (state.last_seen, state.gaps))
    held, clock = tf.gather(gaps, summary.buckets), state.step.read_value()
    composed = freq.compose(
        summary,
        last_seen=tf.gather(last_seen, summary.buckets),
        gaps=held,
        clock=clock,
        alpha=config.alpha,
    )
    last_seen.scatter_update(tf.IndexedSlices(composed[0], summary.buckets))
    gaps.scatter_update(tf.IndexedSlices(composed[1], summary.buckets))
    likely = freq.probability(tf.gather(held, positions), config, clock=clock)
    return tf.gather(likely, which)
