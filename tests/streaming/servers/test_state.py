"""Pull and push of several workers at once, on one process's devices standing in for servers."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from streaming.config import FrequencyConfig, MergeConfig

import tensorflow as tf  # isort: skip

from streaming.servers.merge import Parameter
from streaming.servers.push import Mark
from streaming.servers.state import Pulled, ServerState
from tests.streaming.counting.model import CountingModel

ROWS = 6


def make(rule: str, *, servers: int) -> ServerState:
    state = ServerState(
        CountingModel(ROWS),
        ["/device:CPU:0"] * servers,
        frequency=FrequencyConfig(hashes=1, buckets=8),
        seed=1,
        num_slots=3,
        floor=0,
    )
    state.merge_by(MergeConfig(rule=rule))
    return state


def push(state: ServerState, pulled: Pulled, *, slot: int, sequence: int) -> None:
    """Pushes a step of 1 in every pulled row and weight."""
    learned = {
        name: Parameter(parameter.value + 1.0, None)
        for name, parameter in pulled.parameters.items()
    }
    numbers = [tf.constant(number, tf.int64) for number in (slot, sequence, 1)]
    state.push(
        Mark(numbers[0], numbers[1]),
        pulled=pulled,
        learned=learned,
        sightings=None,
        num_batches=numbers[2],
    )


def pull(state: ServerState, rows: list[int]) -> Pulled:
    return state.pull({"counter": tf.constant(rows, tf.int64)})


def table(state: ServerState) -> list[float]:
    return np.concatenate([v.numpy()[:, 0] for v in state.tables["counter"].variables]).tolist()


@pytest.mark.parametrize("servers", [1, 2])
@pytest.mark.parametrize(
    ("rule", "both", "three", "weight"),
    [
        ("sum", 2.0, 3.0, 3.0),
        ("touches", 1.5, 1.5 + 1 / 3, 1.5 + 1 / 3),
        ("dense-touches", 2.0, 3.0, 1.5 + 1 / 3),
        ("agreement", 1.5, 1.5 + 1 / 2.5, 1.5 + 1 / 2.5),
    ],
)
def test_workers_that_pulled_the_same_are_merged_by_the_rule(servers, rule, both, three, weight):
    state = make(rule, servers=servers)
    pulled = [pull(state, [4, 0]), pull(state, [1, 4]), pull(state, [5])]
    last = pull(state, [4])
    for slot, each in enumerate(pulled):
        push(state, each, slot=slot, sequence=1)
    np.testing.assert_allclose(table(state), [1.0, 1.0, 0.0, 0.0, both, 1.0])
    np.testing.assert_allclose(state.weights["batches"].numpy(), [weight], rtol=1e-6)
    push(state, last, slot=0, sequence=2)
    np.testing.assert_allclose(table(state)[4], three, rtol=1e-6)


@pytest.mark.parametrize("rule", ["sum", "touches", "dense-touches", "adagrad", "agreement"])
def test_workers_one_after_the_other_add_up_under_every_rule(rule):
    state = make(rule, servers=2)
    for sequence in (1, 2, 3):
        push(state, pull(state, [0, 5]), slot=0, sequence=sequence)
    assert table(state) == [3.0, 0.0, 0.0, 0.0, 0.0, 3.0]
    assert state.weights["batches"].numpy().tolist() == [3.0]


@pytest.mark.parametrize("rule", ["sum", "touches", "dense-touches", "adagrad", "agreement"])
def test_a_push_that_comes_again_counts_once_and_is_no_touch(rule):
    state = make(rule, servers=2)
    first, other = pull(state, [0, 5]), pull(state, [0])
    for _ in range(3):
        push(state, first, slot=0, sequence=1)
    assert table(state) == [1.0, 0.0, 0.0, 0.0, 0.0, 1.0]
    push(state, other, slot=1, sequence=1)
    halved = {"touches", "agreement"}
    assert table(state)[0] == (1.5 if rule in halved else 2.0)


def test_after_a_torn_push_every_clock_is_the_latest() -> None:
    state = make("sum", servers=2)
    state.last_seen.variables[1][2].assign(41)  # the second server had applied what the first lost
    state.step.assign(40)
    state.align_clocks()
    assert [int(clock) for clock in state.clocks] == [42, 42]
    state.step.assign(50)
    state.align_clocks()
    assert [int(clock) for clock in state.clocks] == [50, 50]


def test_rows_come_in_the_order_of_the_request_from_any_number_of_servers():
    for servers in (1, 2, 3):
        state = make("touches", servers=servers)
        array = state.tables["counter"]
        for start, variable in zip(array.starts, array.variables, strict=True):
            count = int(variable.shape[0])
            variable.assign(np.arange(start, start + count, dtype=np.float32)[:, None])
        pulled = pull(state, [5, 0, 3, 2])
        assert pulled.parameters["counter"].value.numpy()[:, 0].tolist() == [5, 0, 3, 2]
        assert pulled.touches["counter"].numpy().tolist() == [0, 0, 0, 0]


def add_one(state: ServerState, sequence: int) -> int:
    """Adds 1 to row 2 in one call, as a worker does; returns how many servers applied it."""

    @tf.function(autograph=False)
    def step(number: tf.Tensor) -> tf.Tensor:
        pulled = pull(state, [2])
        learned = {
            name: Parameter(parameter.value + 1.0, None)
            for name, parameter in pulled.parameters.items()
        }
        mark = Mark(tf.constant(0, tf.int64), number)
        return state.push(
            mark,
            pulled=pulled,
            learned=learned,
            sightings=None,
            num_batches=tf.constant(1, tf.int64),
        ).applied

    return int(step(tf.constant(sequence, tf.int64)))


def test_a_try_that_waited_for_another_puts_back_no_mark() -> None:
    state = make("sum", servers=1)
    mutex = tf.raw_ops.MutexV2(shared_name="headrace/push/0")
    lock = tf.raw_ops.MutexLock(mutex=mutex)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(add_one, state, 11)
        time.sleep(1.0)
        assert not waiting.done()
        # The same push comes by another worker, and is applied.
        for marks in (state.begun, state.applied):
            marks[0][0].assign(11)
        state.tables["counter"].variables[0][2].assign([1.0])
        tf.raw_ops.ConsumeMutexLock(mutex_lock=lock)
        del lock
        assert waiting.result(timeout=60) == 0
    assert add_one(state, 11) == 0
    assert table(state)[2] == 1.0
    assert state.begun[0].numpy()[0] == state.applied[0].numpy()[0] == 11


@pytest.mark.parametrize("servers", [1, 2])
def test_a_push_that_was_withdrawn_before_it_came_never_counts(servers: int) -> None:
    state = make("sum", servers=servers)
    pulled = pull(state, [0, 5])
    assert state.withdraw(0, 1) == 0
    push(state, pulled, slot=0, sequence=1)
    assert table(state) == [0.0] * 6
    push(state, pull(state, [0, 5]), slot=0, sequence=2)  # the slot goes on
    assert table(state) == [1.0, 0, 0, 0, 0, 1.0]
    assert state.withdraw(0, 2) == servers  # too late
    assert state.withdraw(0, 3) == 0


def test_a_push_that_had_come_to_one_server_is_not_withdrawn_from_the_other() -> None:
    state = make("sum", servers=2)
    pulled = pull(state, [0, 5])
    push(state, pulled, slot=0, sequence=1)
    # As if the second server had not seen it: a retry may still complete it there.
    state.begun[1][0].assign(0)
    state.applied[1][0].assign(0)
    assert state.withdraw(0, 1) == 1
    push(state, pulled, slot=0, sequence=1)
    assert table(state) == [1.0, 0, 0, 0, 0, 2.0]
