"""What waits for what in a flight's graph, with every source of negatives."""

from __future__ import annotations

import pytest

from models.config import TwoTowerConfig
from models.two_tower import TwoTower
from pipeline.specification import Specification
from streaming.config import FrequencyConfig, MergeConfig
from streaming.servers.state import ServerState
from streaming.worker.step import RangeFunction

import tensorflow as tf  # isort: skip

SPECIFICATION = Specification(
    name="toy",
    scenarios=["any"],
    tables={"item": {"buckets": 50, "dim": 4}},
    features={
        "query": [{"name": "history_item_id", "kind": "ids", "table": "item"}],
        "candidate": [{"name": "item_id", "kind": "id", "table": "item"}],
    },
)
NEGATIVES = {"corpus": {"count": 4}, "bank": {"size": 8, "warm_up_steps": 0}}
SERVERS, FLIGHT = 2, 3
# They take no time: constants, and views of what has arrived before.
_FREE = {"Const", "Placeholder", "MutexV2", "NoOp", "StridedSlice", "Unpack"}


def graph(*, overlap: bool) -> tf.Graph:
    model = TwoTower(SPECIFICATION, TwoTowerConfig(dim=4, hidden=(4,), negatives=NEGATIVES))
    state = ServerState(
        model,
        ["/device:CPU:0"] * SERVERS,
        frequency=FrequencyConfig(hashes=2, buckets=64),
        seed=1,
        num_slots=FLIGHT,
        floor=10,
    )
    state.merge_by(MergeConfig(rule="touches"))
    function = RangeFunction(state, batch_size=4, flight=FLIGHT, overlap=overlap).build()
    return function.get_concrete_function().graph


def parents(operation: tf.Operation) -> list[tf.Operation]:
    return [tensor.op for tensor in operation.inputs] + list(operation.control_inputs)


def ancestors(operation: tf.Operation) -> set[tf.Operation]:
    found: set[tf.Operation] = set()
    waiting = [operation]
    while waiting:
        if (one := waiting.pop()) not in found:
            found.add(one)
            waiting += parents(one)
    return found


def pulls_of(made: tf.Graph) -> list[tf.Operation]:
    """Returns the reads of the servers' variables, which come from outside of the graph."""
    captured = {id(inside) for _, inside in made.captures}
    reads = ("ResourceGather", "ReadVariableOp")
    return [
        operation
        for operation in made.get_operations()
        if operation.type in reads and id(operation.inputs[0]) in captured
    ]


@pytest.mark.parametrize("overlap", [False, True])
def test_while_a_server_is_locked_nothing_is_waited_for_but_its_own_work(overlap):
    operations = graph(overlap=overlap).get_operations()
    locks = [each for each in operations if each.type == "MutexLock"]
    releases = [each for each in operations if each.type == "ConsumeMutexLock"]
    assert len(locks) == len(releases) == SERVERS * FLIGHT
    for lock, release in zip(locks, releases, strict=True):
        before = ancestors(lock)
        under = {lock}
        for each in operations:  # in the order in which they were made
            if any(parent in under for parent in parents(each)):
                under.add(each)
        waited = [each for each in ancestors(release) - before - under if each.type not in _FREE]
        assert [each.name for each in waited] == []


def test_a_range_is_pulled_when_the_one_before_is_pushed_to_every_server():
    made = graph(overlap=False)
    releases = [each for each in made.get_operations() if each.type == "ConsumeMutexLock"]
    under_lock = {"MutexLock"}
    pushed = []
    for pull in pulls_of(made):
        before = ancestors(pull)
        if any(each.type in under_lock and _held(each, releases, before) for each in before):
            continue  # what a push reads of the state that it changes
        pushed.append(sum(release in before for release in releases))
    assert set(pushed) == {0, SERVERS, 2 * SERVERS}


def _held(lock: tf.Operation, releases: list[tf.Operation], before: set[tf.Operation]) -> bool:
    """Whether a lock was taken and not released before something."""
    (release,) = [each for each in releases if lock in {tensor.op for tensor in each.inputs}]
    return release not in before
