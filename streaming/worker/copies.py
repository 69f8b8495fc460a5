"""What a range learns on: copies of pulled values, on the worker, for as long as it is learned."""

from __future__ import annotations

import tensorflow as tf

from streaming.servers.merge import Parameter
from streaming.servers.order import independent
from streaming.servers.state import Pulled
from streaming.worker.mini_batches import Handles
from streaming.worker.negatives import LocalBank

_ANONYMOUS = "cd2c89b7-88b7-44c8-ad83-06c2a9158347"  # ResourceHandle::ANONYMOUS_NAME


def local_copy(pulled: Parameter) -> Handles:
    """Puts pulled values into new variables of this worker, where updates happen in place."""
    if pulled.accumulator is None:
        return Handles(_variable(pulled.value), None)
    return Handles(_variable(pulled.value), _variable(pulled.accumulator))


def local_bank(pulled: Pulled) -> LocalBank | None:
    """Puts pulled rows of the bank into new variables, None without a bank."""
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


def read_copy(copy: Handles, pulled: Parameter) -> Parameter:
    """Returns what a copy holds now, of the shapes that were pulled."""

    def now(handle: tf.Tensor, before: tf.Tensor) -> tf.Tensor:
        after = tf.raw_ops.ReadVariableOp(resource=handle, dtype=tf.float32)
        return tf.ensure_shape(after, before.shape)

    value = now(copy.value, pulled.value)
    if copy.accumulator is None or pulled.accumulator is None:
        return Parameter(value, None)
    return Parameter(value, now(copy.accumulator, pulled.accumulator))
