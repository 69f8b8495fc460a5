"""Merge rules, on rows small enough to check by hand."""

from __future__ import annotations

import numpy as np
import pytest

from streaming.config import MergeConfig

import tensorflow as tf  # isort: skip

from streaming.servers.merge import Change, Parameter, incoming, outgoing

RULES = ("sum", "touches", "dense-touches", "adagrad", "agreement")


def rows(*values: list[float]) -> tf.Tensor:
    return tf.constant(values, tf.float32)


def merged(merge: MergeConfig, *, pulled, learned, held, touches=0.0) -> Parameter:
    change = outgoing(merge, pulled=pulled, learned=learned)
    count = tf.fill([tf.shape(pulled.value)[0]], touches)
    return incoming(merge, change, held=held, touches=count)


@pytest.mark.parametrize("rule", RULES)
def test_alone_every_rule_adds_the_difference(rule):
    pulled = Parameter(rows([1.0, 2.0]), rows([0.1, 0.4]))
    learned = Parameter(rows([1.5, 1.0]), rows([0.3, 0.9]))
    result = merged(MergeConfig(rule=rule), pulled=pulled, learned=learned, held=pulled)
    np.testing.assert_allclose(result.value, [[0.5, -1.0]], rtol=1e-6)
    np.testing.assert_allclose(result.accumulator, [[0.2, 0.5]], rtol=1e-6)


@pytest.mark.parametrize("rule", RULES)
def test_a_row_that_was_not_learned_stays(rule):
    pulled = Parameter(rows([1.0, 2.0]), rows([0.0, 0.0]))
    held = Parameter(rows([3.0, 1.0]), rows([0.5, 0.0]))
    result = merged(MergeConfig(rule=rule), pulled=pulled, learned=pulled, held=held, touches=2.0)
    np.testing.assert_array_equal(result.value, [[0.0, 0.0]])
    np.testing.assert_array_equal(result.accumulator, [[0.0, 0.0]])


@pytest.mark.parametrize(("power", "expected"), [(1.0, [[0.5, -1.0]]), (0.5, [[1.0, -2.0]])])
def test_touches_divides_by_one_and_the_pushes_of_others(power, expected):
    pulled, learned = Parameter(rows([0.0, 0.0]), None), Parameter(rows([2.0, -4.0]), None)
    merge = MergeConfig(rule="touches", power=power)
    result = merged(merge, pulled=pulled, learned=learned, held=pulled, touches=3.0)
    np.testing.assert_allclose(result.value, expected)  # by 4, and by its root
    assert result.accumulator is None


def test_adagrad_steps_at_the_accumulator_as_it_is_now():
    pulled = Parameter(rows([1.0]), rows([1.0]))
    learned = Parameter(rows([2.0]), rows([4.0]))  # sum of squares 3
    held = Parameter(rows([9.0]), rows([13.0]))  # others have added 12
    result = merged(MergeConfig(rule="adagrad"), pulled=pulled, learned=learned, held=held)
    np.testing.assert_allclose(result.value, [[0.5]])  # 1 x sqrt(4 / 16)
    np.testing.assert_allclose(result.accumulator, [[3.0]])


@pytest.mark.parametrize(
    ("moved", "share"),
    [
        ([6.0, 8.0], 1 / 3),  # two others have made the same move: the mean of three
        ([1.5, 2.0], 2 / 3),  # half of it is done
        ([4.0, -3.0], 1.0),  # at right angles
        ([-3.0, -4.0], 1.0),  # against it
    ],
)
def test_agreement_leaves_out_what_others_have_done(moved, share):
    pulled = Parameter(rows([1.0, 1.0], [5.0, 5.0]), None)
    learned = Parameter(rows([4.0, 5.0], [5.0, 6.0]), None)  # moves by (3, 4) and (0, 1)
    held = Parameter(pulled.value + rows(moved, [0.0, 0.0]), None)
    result = merged(MergeConfig(rule="agreement"), pulled=pulled, learned=learned, held=held)
    np.testing.assert_allclose(result.value, [[3 * share, 4 * share], [0.0, 1.0]], rtol=1e-6)


def test_only_agreement_sends_more_than_the_differences():
    pulled = Parameter(rows([1.0]), rows([1.0]))
    for rule in RULES:
        change = outgoing(MergeConfig(rule=rule), pulled=pulled, learned=pulled)
        assert isinstance(change, Change)
        assert (change.pulled is not None) == (rule == "agreement")
