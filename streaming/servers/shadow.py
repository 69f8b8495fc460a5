"""A second copy of the state, beside the first on every parameter server, to save from.

Writing a checkpoint takes seconds to minutes; copying memory takes a fraction of a second. So
training waits for the copy alone, and goes on while the checkpoint is written from it.
"""

from __future__ import annotations

from collections.abc import Mapping

import tensorflow as tf


class Shadow:
    """Variables of the same shapes on the same devices, with the same names in a checkpoint."""

    def __init__(self, trackables: Mapping[str, tf.Variable]) -> None:
        """Makes the variables and copies once: what does not fit into memory shows at the start.

        Args:
            trackables: Variables, and sharded ones, by their names in a checkpoint.
        """
        self._pairs: list[tuple[tf.Variable, tf.Variable]] = []
        named = {name: self._twin(each) for name, each in trackables.items()}
        self.checkpoint = tf.train.Checkpoint(**named)
        self._copy = tf.function(self._assign_all, input_signature=[], autograph=False)
        self.copy()

    def _twin(self, original: tf.Variable) -> tf.Variable:
        parts = getattr(original, "variables", None)
        if parts is None:
            return self._like(original)
        for part in parts:
            # As any update by rows does, this makes TensorFlow copy the variable when it is read
            # from now on: the first copy shall be no slower than the others.
            tf.raw_ops.ResourceScatterUpdate(
                resource=part.handle, indices=tf.zeros([0], tf.int64), updates=part[:0]
            )
        return tf.__internal__.distribute.ShardedVariable(
            [self._like(part) for part in parts], name=original.name
        )

    def _like(self, original: tf.Variable) -> tf.Variable:
        with tf.device(original.device):
            zeros = tf.zeros(original.shape, original.dtype)
            twin = tf.Variable(zeros, trainable=False, name=original.name.partition(":")[0])
        self._pairs.append((twin, original))
        return twin

    def copy(self) -> None:
        """Copies every variable where it lives, all servers at once; nothing may be in flight."""
        self._copy()

    def _assign_all(self) -> None:
        for twin, original in self._pairs:
            with tf.device(original.device):
                # Never half a value: a variable that is updated by rows is copied when it is read,
                # any other one when it is next written to.
                twin.assign(original.read_value(), read_value=False)
