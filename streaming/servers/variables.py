"""The variables of the training state, and the servers that they live on.

Every table and every frequency array is cut into contiguous row shards, one per server; each dense
weight lives whole on one server. Optimizer accumulators lie beside their parameters.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf

from models.contract import Model, Table, Weight
from pipeline.schema import InputError
from streaming.config import FrequencyConfig, MergeConfig
from streaming.servers import frequency as freq
from streaming.servers.bank import Bank
from streaming.servers.merge import counts_touches


class Shards:
    """A row-sharded array: shard k holds the rows [starts[k], starts[k + 1]) on device k."""

    def __init__(self, name: str, initial: Sequence[tf.Tensor], devices: Sequence[str]) -> None:
        self.variables: list[tf.Variable] = []
        for shard, (value, device) in enumerate(zip(initial, devices, strict=True)):
            with tf.device(device):
                self.variables.append(
                    tf.Variable(value, trainable=False, name=f"{name}/part_{shard}")
                )
        sizes = [int(variable.shape[0]) for variable in self.variables]
        self.starts = [0, *itertools.accumulate(sizes)][:-1]
        # Saved as one logical array, so that a restore may use another number of shards.
        self.trackable = tf.__internal__.distribute.ShardedVariable(self.variables, name=name)


def _shard_sizes(name: str, rows: int, num_shards: int) -> list[int]:
    if rows < num_shards:
        raise InputError(
            f"{name}: found {rows} buckets; expected at least {num_shards}, one for each parameter"
            " server"
        )
    return [rows // num_shards + (shard < rows % num_shards) for shard in range(num_shards)]


def _uniform(shape: Sequence[int], bound: float, *, name: str, seed: int) -> tf.Tensor:
    # Seeded by name: adding a parameter changes no other's start.
    seeds = [seed, zlib.crc32(name.encode())]
    return tf.random.stateless_uniform(shape, seeds, -bound, bound) if bound else tf.zeros(shape)


class Route(NamedTuple):
    """Where distinct rows live: per server, their positions in the request and their row there."""

    positions: list[tf.Tensor]
    local_rows: list[tf.Tensor]


def packed(parts: Sequence[tf.Tensor]) -> tf.Tensor:
    """Puts tensors into one vector, which travels at the price of one."""
    return tf.concat([tf.reshape(part, [-1]) for part in parts], axis=0)


def unpacked(vector: tf.Tensor, shapes: Sequence[tf.TensorShape]) -> list[tf.Tensor]:
    """Takes them out again."""
    pieces = tf.split(vector, [shape.num_elements() for shape in shapes])
    return [tf.reshape(piece, shape) for piece, shape in zip(pieces, shapes, strict=True)]


class Variables:
    """Creates the state on its devices.

    Attributes:
        devices: One device per parameter server.
        tables: Embedding rows, by table name.
        weights: Dense parameters, by name.
        server_of: Which server holds each dense weight.
        table_sums, weight_sums: Adagrad's sums, by the name of their table or weight.
        last_seen, gaps: The estimator's A and what B is made of, flat over the hashes, as in
            `frequency.compose`; None without it.
        bank: Candidates of former mini-batches, on the server `bank_server`; None without.
        step: Mini-batches applied, on the first server.
        rule: How pushes are merged.
        touches: Per table, how many pushes have touched each row; empty unless the rule asks. Only
            differences are used, so that no checkpoint holds them.
        pushes: Per server, how many pushes it has applied, where touches are counted.
        begun, applied: Per server, the last number of each slot whose push it began, and applied.
        tries: [num_slots, 2] on the first server: a range's number, and how often it was begun.
    """

    def __init__(
        self,
        model: Model,
        devices: Sequence[str],
        *,
        frequency: FrequencyConfig,
        seed: int,
        num_slots: int,
        floor: int,
    ) -> None:
        self.devices = list(devices)
        self.model = model
        self.frequency = frequency
        self.rule = MergeConfig(rule="sum")
        self.tables: dict[str, Shards] = {}
        self.weights: dict[str, tf.Variable] = {}
        self.table_sums: dict[str, Shards] = {}
        self.weight_sums: dict[str, tf.Variable] = {}
        self.touches: dict[str, Shards] = {}
        for table in model.tables:
            self._create_table(table, seed)
        self.server_of = {
            weight.name: position % len(self.devices)
            for position, weight in enumerate(model.weights)
        }
        for weight in model.weights:
            self._create_weight(weight, self.devices[self.server_of[weight.name]], seed)
        self.last_seen: Shards | None = None
        self.gaps: Shards | None = None
        if model.candidate_input is not None:
            self._create_estimator()
        self.bank_server = len(self.devices) - 1
        self.bank: Bank | None = None
        if model.bank is not None:
            self.bank = Bank(model.bank, self.devices[self.bank_server])
        self._create_marks(num_slots, floor)

    def _create_table(self, table: Table, seed: int) -> None:
        values, sums = [], []
        sizes = _shard_sizes(f"tables.{table.name}", table.buckets, len(self.devices))
        for shard, (size, device) in enumerate(zip(sizes, self.devices, strict=True)):
            with tf.device(device):  # made where they live: no table travels
                name = f"{table.name}/{shard}"
                shape = [size, table.dim]
                values.append(_uniform(shape, table.initial_bound, name=name, seed=seed))
                width = table.optimizer.sums_per_row(table.dim)
                sums.append(tf.fill([size, width], table.optimizer.initial_accumulator))
        self.tables[table.name] = Shards(table.name, values, self.devices)
        if table.optimizer.kind != "sgd":
            self.table_sums[table.name] = Shards(f"{table.name}/sum", sums, self.devices)

    def _create_weight(self, weight: Weight, device: str, seed: int) -> None:
        with tf.device(device):
            value = _uniform(weight.shape, weight.initial_bound, name=weight.name, seed=seed)
            self.weights[weight.name] = tf.Variable(value, trainable=False, name=weight.name)
            if weight.optimizer.kind != "sgd":
                total = tf.fill(weight.shape, weight.optimizer.initial_accumulator)
                self.weight_sums[weight.name] = tf.Variable(total, trainable=False)

    def _create_estimator(self) -> None:
        buckets = self.frequency.hashes * self.frequency.buckets
        sizes = _shard_sizes("frequency", buckets, len(self.devices))
        last_seen, gaps = [], []
        for size, device in zip(sizes, self.devices, strict=True):
            with tf.device(device):
                last_seen.append(tf.fill([size], tf.constant(freq.NEVER, tf.int64)))
                gaps.append(tf.zeros([size, 2]))
        self.last_seen = Shards("last_seen", last_seen, self.devices)
        self.gaps = Shards("gaps", gaps, self.devices)

    def _create_marks(self, num_slots: int, floor: int) -> None:
        self.begun, self.applied, self.clocks, self.pushes = [], [], [], []
        for device in self.devices:
            with tf.device(device):
                marks = tf.fill([num_slots], tf.constant(floor, tf.int64))
                self.begun.append(tf.Variable(marks, trainable=False))
                self.applied.append(tf.Variable(marks, trainable=False))
                self.clocks.append(tf.Variable(0, dtype=tf.int64, trainable=False))
                self.pushes.append(tf.Variable(0, dtype=tf.int32, trainable=False))
        self.step = self.clocks[0]
        with tf.device(self.devices[0]):
            self.tries = tf.Variable(tf.zeros([num_slots, 2], tf.int64), trainable=False)

    def merge_by(self, rule: MergeConfig) -> None:
        """Sets the merge rule, before a function is built; until then it is `sum`."""
        self.rule = rule
        if not counts_touches(rule):
            return
        for name, table in self.tables.items():
            zeros = []
            for variable, device in zip(table.variables, self.devices, strict=True):
                with tf.device(device):
                    zeros.append(tf.zeros([int(variable.shape[0])], tf.int32))
            self.touches[name] = Shards(f"{name}/touches", zeros, self.devices)

    def trackables(self) -> dict[str, tf.Variable]:
        """Returns all that a checkpoint holds, by name; marks live one coordinator's life only."""
        named: dict[str, tf.Variable] = {"step": self.step}
        named |= {f"weight/{name}": weight for name, weight in self.weights.items()}
        named |= {f"accumulator/{name}": total for name, total in self.weight_sums.items()}
        named |= {} if self.bank is None else self.bank.trackables()
        shards = {f"table/{name}": table for name, table in self.tables.items()}
        shards |= {f"accumulator/{name}": total for name, total in self.table_sums.items()}
        if self.last_seen is not None and self.gaps is not None:
            shards |= {"frequency/last_seen": self.last_seen, "frequency/gaps": self.gaps}
        return named | {name: array.trackable for name, array in shards.items()}

    def align_clocks(self) -> None:
        """Gives every server the latest of the restored clocks; they agree on it between ranges.

        After a push that was cut in the middle (`on_torn_push: count`) one server may have counted
        mini-batches that the first, whose clock is the saved step, has not.
        """
        latest = self.step.read_value()
        if self.last_seen is not None:
            for variable in self.last_seen.variables:
                with tf.device(variable.device):
                    newest = tf.reduce_max(variable) + 1
                latest = tf.maximum(latest, newest)
        for clock in self.clocks:
            clock.assign(latest)
