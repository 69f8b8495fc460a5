"""How a range's change of a row is merged with what others changed since the range was pulled.

W workers that pull the same state, learn a range each and push their differences take W ranges'
steps from one point. Where they touch the same rows, the plain sum overshoots. Each rule here
scales a row's difference by what the server knows when the push arrives; for a row that nobody else
touched, all of them equal the sum.

    sum        delta                                  Downpour SGD (Dean et al. 2012)
    touches    delta / (1 + touches)^power            touches: pushes of others, counted per row
    dense-touches  the same for dense weights alone   rows are summed
    adagrad    delta sqrt((s0 + ds) / (s + ds))       the step at the accumulator s as it is now
    agreement  delta / (1 + a)                        a: how often others have made this move

In `agreement`, a = max(0, <delta, m> / <delta, delta>) with m the others' movement of the row since
it was pulled. If W - 1 others moved it alike, a is W - 1 and the result their mean; if they moved
it at right angles (other samples, other information), a is 0 and the result the sum.

Differences of Adagrad's accumulator are always added: the gradients have been seen. The functions
are pure and see arrays [rows, dim]; a dense weight counts as one row.
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from streaming.config import MergeConfig


class Parameter(NamedTuple):
    """Rows of a parameter, or differences of them.

    Attributes:
        value: [rows, dim] float32.
        accumulator: [rows, dim or 1] float32, Adagrad's sums of squared gradients; None without.
    """

    value: tf.Tensor
    accumulator: tf.Tensor | None


class Change(NamedTuple):
    """What a worker sends about rows that it learned.

    Attributes:
        value: [rows, dim] float32, the difference; for `adagrad` times the root of the accumulator.
        accumulator: [rows, dim or 1] float32 difference, or None.
        pulled: [rows, dim] float32 values as they were pulled, for `agreement`, or None.
    """

    value: tf.Tensor
    accumulator: tf.Tensor | None
    pulled: tf.Tensor | None


def outgoing(merge: MergeConfig, *, pulled: Parameter, learned: Parameter) -> Change:
    """Makes a worker's message of the rows that it pulled and of what became of them."""
    value = learned.value - pulled.value
    if pulled.accumulator is None or learned.accumulator is None:
        return Change(value, None, pulled.value if merge.rule == "agreement" else None)
    squares = learned.accumulator - pulled.accumulator
    if merge.rule == "adagrad":
        return Change(value * tf.sqrt(learned.accumulator), squares, None)
    return Change(value, squares, pulled.value if merge.rule == "agreement" else None)


def counts_touches(merge: MergeConfig) -> bool:
    """Whether the rule needs `touches` of rows."""
    return merge.rule == "touches"


def counts_pushes(merge: MergeConfig) -> bool:
    """Whether the rule needs `touches` of dense weights, which every push touches."""
    return merge.rule in ("touches", "dense-touches")


def reads_held(merge: MergeConfig) -> bool:
    """Whether the rule needs `held`."""
    return merge.rule in ("adagrad", "agreement")


def incoming(
    merge: MergeConfig, change: Change, *, held: Parameter | None, touches: tf.Tensor | None
) -> Parameter:
    """Returns the differences that a server adds to its rows.

    Args:
        merge: The rule.
        change: What the worker sent.
        held: The server's rows as they are now; see `reads_held`.
        touches: [rows] float32, pushes of others that touched each row since it was pulled, counted
            or expected; see `counts_touches` and `counts_pushes`. None where they do not count.
    """
    value = change.value
    if touches is not None and merge.rule in ("touches", "dense-touches"):
        value = value / tf.pow(1.0 + touches, merge.power)[:, tf.newaxis]
    elif held is not None and change.accumulator is not None and merge.rule == "adagrad":
        now = tf.sqrt(held.accumulator + change.accumulator)
        value = tf.math.divide_no_nan(value, now)
    elif held is not None and merge.rule == "agreement":
        moved = held.value - change.pulled
        length = tf.reduce_sum(value * value, axis=1, keepdims=True)
        along = tf.reduce_sum(value * moved, axis=1, keepdims=True)
        value = value / (1.0 + tf.maximum(0.0, tf.math.divide_no_nan(along, length)))
    return Parameter(value, change.accumulator)
