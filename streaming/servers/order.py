"""Operations that wait for nothing but what they are given."""

from __future__ import annotations

import tensorflow as tf


def independent(made: tf.Tensor | tf.Operation | None) -> None:
    """Takes an operation of the function being traced out of the order of the program.

    `tf.function` has every stateful operation without a resource among its inputs wait for the one
    before it. One pull would then wait for the former push, and learning for both.
    """
    if tf.executing_eagerly() or made is None:
        return
    op = made if isinstance(made, tf.Operation) else made.op
    manager = getattr(op.graph, "experimental_acd_manager", None)
    if manager is not None:
        manager.run_independently(op)
