"""The training state on the parameter servers, and the idempotent exchange with it.

Every table and every frequency array is cut into contiguous row shards, one per server; each dense
weight lives whole on one server. Optimizer accumulators lie beside their parameters.

A worker *pulls* what a range needs, once, and *pushes* the differences, once. A push is idempotent
per server: two marks, `begun` and `applied`, have one cell per slot, and a push with sequence
number n takes effect only where `begun[slot] < n`. The coordinator gives every range in flight a
slot of its own and an ever-growing sequence number, so a range that is retried counts once on every
server, whether its first try had reached none, some or all of them. A push that was cut in the
middle leaves `applied[slot] < begun[slot]`: its retry reports it as torn. A mutex per server makes
check and change one step, so a worker that was given up and wakes up again cannot slip between.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import tensorflow as tf

from models.contract import Model, Table, Weight
from pipeline.schema import InputError
from streaming.config import FrequencyConfig
from streaming.servers import frequency as freq


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


class Route(NamedTuple):
    """Where distinct rows live: per server, their positions in the request and their row there."""

    positions: list[tf.Tensor]
    local_rows: list[tf.Tensor]


class Parameter(NamedTuple):
    """A pulled parameter: its value, its Adagrad accumulator or None."""

    value: tf.Tensor
    accumulator: tf.Tensor | None


class PushOutcome(NamedTuple):
    """What became of a push: counts of servers.

    Attributes:
        applied: Servers that applied it now.
        torn: Servers on which an earlier try had been cut in the middle.
    """

    applied: tf.Tensor
    torn: tf.Tensor


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


class ServerState:
    """Creates the state on its devices and builds the pull and push of a range.

    Attributes:
        devices: One device per parameter server.
        tables: Embedding rows, by table name.
        weights: Dense parameters, by name.
        server_of: Which server holds each dense weight.
        table_sums, weight_sums: Adagrad's sums, by the name of their table or weight.
        last_seen, mean_gap: The estimator's A and B, flat over the hashes; None without it.
        step: Mini-batches applied, on the first server.
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
        self.tables: dict[str, Shards] = {}
        self.weights: dict[str, tf.Variable] = {}
        self.table_sums: dict[str, Shards] = {}
        self.weight_sums: dict[str, tf.Variable] = {}
        for table in model.tables:
            self._create_table(table, seed)
        self.server_of = {
            weight.name: position % len(self.devices)
            for position, weight in enumerate(model.weights)
        }
        for weight in model.weights:
            self._create_weight(weight, self.devices[self.server_of[weight.name]], seed)
        self.last_seen: Shards | None = None
        self.mean_gap: Shards | None = None
        if model.candidate_input is not None:
            self._create_estimator()
        self._create_marks(num_slots, floor)

    def _create_table(self, table: Table, seed: int) -> None:
        values, sums = [], []
        sizes = _shard_sizes(f"tables.{table.name}", table.buckets, len(self.devices))
        for shard, (size, device) in enumerate(zip(sizes, self.devices, strict=True)):
            with tf.device(device):  # made where they live: no table travels
                name = f"{table.name}/{shard}"
                shape = [size, table.dim]
                values.append(_uniform(shape, table.initial_bound, name=name, seed=seed))
                sums.append(tf.fill(shape, table.optimizer.initial_accumulator))
        self.tables[table.name] = Shards(table.name, values, self.devices)
        if table.optimizer.kind == "adagrad":
            self.table_sums[table.name] = Shards(f"{table.name}/sum", sums, self.devices)

    def _create_weight(self, weight: Weight, device: str, seed: int) -> None:
        with tf.device(device):
            value = _uniform(weight.shape, weight.initial_bound, name=weight.name, seed=seed)
            self.weights[weight.name] = tf.Variable(value, trainable=False, name=weight.name)
            if weight.optimizer.kind == "adagrad":
                total = tf.fill(weight.shape, weight.optimizer.initial_accumulator)
                self.weight_sums[weight.name] = tf.Variable(total, trainable=False)

    def _create_estimator(self) -> None:
        buckets = self.frequency.hashes * self.frequency.buckets
        sizes = _shard_sizes("frequency", buckets, len(self.devices))
        last_seen, mean_gap = [], []
        for size, device in zip(sizes, self.devices, strict=True):
            with tf.device(device):
                last_seen.append(tf.fill([size], tf.constant(freq.NEVER, tf.int64)))
                mean_gap.append(tf.fill([size], float(self.frequency.initial_gap)))
        self.last_seen = Shards("last_seen", last_seen, self.devices)
        self.mean_gap = Shards("mean_gap", mean_gap, self.devices)

    def _create_marks(self, num_slots: int, floor: int) -> None:
        self.begun, self.applied, self.clocks = [], [], []
        for device in self.devices:
            with tf.device(device):
                marks = tf.fill([num_slots], tf.constant(floor, tf.int64))
                self.begun.append(tf.Variable(marks, trainable=False))
                self.applied.append(tf.Variable(marks, trainable=False))
                self.clocks.append(tf.Variable(0, dtype=tf.int64, trainable=False))
        self.step = self.clocks[0]

    def trackables(self) -> dict[str, tf.Variable]:
        """Returns all that a checkpoint holds, by name; marks live one coordinator's life only."""
        named: dict[str, tf.Variable] = {"step": self.step}
        named |= {f"weight/{name}": weight for name, weight in self.weights.items()}
        named |= {f"accumulator/{name}": total for name, total in self.weight_sums.items()}
        shards = {f"table/{name}": table for name, table in self.tables.items()}
        shards |= {f"accumulator/{name}": total for name, total in self.table_sums.items()}
        if self.last_seen is not None and self.mean_gap is not None:
            shards |= {"frequency/last_seen": self.last_seen, "frequency/mean_gap": self.mean_gap}
        return named | {name: array.trackable for name, array in shards.items()}

    def align_clocks(self) -> None:
        """Gives every server the restored step; all servers agree on it between ranges."""
        for clock in self.clocks[1:]:
            clock.assign(self.step)

    def route(self, rows: tf.Tensor, array: Shards) -> Route:
        """Sorts distinct row numbers ([n] int64) by the server that holds them."""
        if len(self.devices) == 1:
            return Route([tf.range(tf.size(rows))], [rows])
        starts = tf.constant(array.starts, tf.int64)
        owner = tf.searchsorted(starts, rows, side="right") - 1
        positions = tf.dynamic_partition(tf.range(tf.size(rows)), owner, len(self.devices))
        local = [
            tf.gather(rows, where) - start
            for start, where in zip(array.starts, positions, strict=True)
        ]
        return Route(positions, local)

    def pull_rows(self, array: Shards, route: Route) -> tf.Tensor:
        """Returns the routed rows of an array, in the order of the request."""
        parts = []
        for variable, device, rows in zip(
            array.variables, self.devices, route.local_rows, strict=True
        ):
            with tf.device(device):
                parts.append(variable.sparse_read(tf.identity(rows)))
        return parts[0] if len(parts) == 1 else tf.dynamic_stitch(route.positions, parts)

    def pull_table(self, name: str, route: Route) -> Parameter:
        """Returns the routed rows of a table and of its accumulator."""
        total = self.table_sums.get(name)
        sums = None if total is None else self.pull_rows(total, route)
        return Parameter(self.pull_rows(self.tables[name], route), sums)

    def pull_weight(self, name: str) -> Parameter:
        """Returns a dense weight and its accumulator."""
        total = self.weight_sums.get(name)
        sums = None if total is None else total.read_value()
        return Parameter(self.weights[name].read_value(), sums)

    def push(
        self,
        mark: tuple[tf.Tensor, tf.Tensor],
        *,
        rows: Mapping[str, tuple[Route, Parameter]],
        weights: Mapping[str, Parameter],
        sightings: tuple[Route, freq.Summary] | None,
        num_batches: tf.Tensor,
    ) -> PushOutcome:
        """Adds a range's differences to the state: once per server, however often it is tried.

        Args:
            mark: (slot, sequence) of the range, int64 scalars.
            rows: Per table, where its rows live and their differences.
            weights: Differences of the dense weights.
            sightings: The range's frequency summary and where its buckets live.
            num_batches: int64 scalar, mini-batches in the range.
        """
        outcomes = []
        for server in range(len(self.devices)):
            changes = _ServerChanges(self, server)
            for name, (route, change) in rows.items():
                changes.add_rows(name, route, change)
            for name, change in weights.items():
                changes.add_weight(name, change)
            if sightings is not None:
                changes.compose_frequencies(*sightings)
            outcomes.append(changes.commit(mark, num_batches))
        applied = tf.add_n([tf.cast(outcome.applied, tf.int64) for outcome in outcomes])
        torn = tf.add_n([tf.cast(outcome.torn, tf.int64) for outcome in outcomes])
        return PushOutcome(applied, torn)


def is_fresh(sequence: tf.Tensor, begun: tf.Tensor) -> tf.Tensor:
    """Whether a push counts: nothing with its number, or a later one, came to this slot before."""
    return sequence > begun


class _ServerChanges:
    """One server's part of a push: first everything arrives, then it is applied under the mutex."""

    def __init__(self, state: ServerState, server: int) -> None:
        self._state = state
        self._server = server
        self._device = state.devices[server]
        self._sums: list[tuple[tf.Variable, tf.Tensor | None, tf.Tensor]] = []
        self._frequencies: freq.Summary | None = None

    def _arrived(self, tensor: tf.Tensor) -> tf.Tensor:
        with tf.device(self._device):
            return tf.identity(tensor)

    def add_rows(self, name: str, route: Route, change: Parameter) -> None:
        rows = self._arrived(route.local_rows[self._server])
        targets = [(self._state.tables[name], change.value)]
        if change.accumulator is not None:
            targets.append((self._state.table_sums[name], change.accumulator))
        for array, difference in targets:
            part = difference
            if len(self._state.devices) > 1:
                part = tf.gather(difference, route.positions[self._server])
            self._sums.append((array.variables[self._server], rows, self._arrived(part)))

    def add_weight(self, name: str, change: Parameter) -> None:
        if self._state.server_of[name] != self._server:
            return
        self._sums.append((self._state.weights[name], None, self._arrived(change.value)))
        if change.accumulator is not None:
            total = self._state.weight_sums[name]
            self._sums.append((total, None, self._arrived(change.accumulator)))

    def compose_frequencies(self, route: Route, summary: freq.Summary) -> None:
        where = route.positions[self._server]
        parts = [tf.gather(values, where) for values in summary[1:]]
        self._frequencies = freq.Summary(
            self._arrived(route.local_rows[self._server]), *[self._arrived(part) for part in parts]
        )

    def commit(self, mark: tuple[tf.Tensor, tf.Tensor], num_batches: tf.Tensor) -> PushOutcome:
        slot, sequence, num_batches = (self._arrived(value) for value in (*mark, num_batches))
        begun, applied = self._state.begun[self._server], self._state.applied[self._server]
        arrived = [change for _, *change in self._sums] + list(self._frequencies or [])
        arrived = [tensor for tensor in tf.nest.flatten(arrived) if tensor is not None]
        with tf.device(self._device), tf.control_dependencies([slot, sequence, *arrived]):
            mutex = tf.raw_ops.MutexV2(shared_name=f"headrace/push/{self._server}")
            lock = tf.raw_ops.MutexLock(mutex=mutex)
            with tf.control_dependencies([lock]):
                before = (begun.sparse_read(slot), applied.sparse_read(slot))
                fresh = is_fresh(sequence, before[0])
                torn = (before[0] >= sequence) & (before[1] < sequence)
            opened = self._mark(begun, slot, sequence, fresh)
            with tf.control_dependencies([opened]):
                changed = self._apply(fresh, num_batches)
            with tf.control_dependencies(changed):
                closed = self._mark(applied, slot, sequence, fresh)
            with tf.control_dependencies([closed]):
                released = tf.raw_ops.ConsumeMutexLock(mutex_lock=lock)
            with tf.control_dependencies([released]):
                return PushOutcome(tf.identity(fresh), tf.identity(torn))

    @staticmethod
    def _mark(
        marks: tf.Variable, slot: tf.Tensor, sequence: tf.Tensor, fresh: tf.Tensor
    ) -> tf.Operation:
        value = tf.where(fresh, sequence, marks.sparse_read(slot))
        return tf.raw_ops.ResourceScatterUpdate(
            resource=marks.handle, indices=slot[tf.newaxis], updates=value[tf.newaxis]
        )

    def _apply(self, fresh: tf.Tensor, num_batches: tf.Tensor) -> list[tf.Operation]:
        done = []
        for variable, rows, difference in self._sums:
            if rows is None:
                gated = tf.where(fresh, difference, tf.zeros_like(difference))
                op = tf.raw_ops.AssignAddVariableOp(resource=variable.handle, value=gated)
            else:
                # All rows or none: a slice copies nothing.
                count = tf.where(fresh, tf.size(rows), 0)
                op = tf.raw_ops.ResourceScatterAdd(
                    resource=variable.handle, indices=rows[:count], updates=difference[:count]
                )
            done.append(op)
        clock = self._state.clocks[self._server]
        if self._frequencies is not None:
            done += self._apply_frequencies(self._frequencies, clock, fresh)
        with tf.control_dependencies(done):
            ticks = tf.where(fresh, num_batches, tf.zeros_like(num_batches))
            return [*done, tf.raw_ops.AssignAddVariableOp(resource=clock.handle, value=ticks)]

    def _apply_frequencies(
        self, summary: freq.Summary, clock: tf.Variable, fresh: tf.Tensor
    ) -> list[tf.Operation]:
        arrays = (self._state.last_seen, self._state.mean_gap)
        variables = [array.variables[self._server] for array in arrays if array is not None]
        held = [variable.sparse_read(summary.buckets) for variable in variables]
        composed = freq.compose(
            summary,
            last_seen=held[0],
            mean_gap=held[1],
            clock=clock.read_value(),
            alpha=self._state.frequency.alpha,
        )
        return [
            tf.raw_ops.ResourceScatterUpdate(
                resource=variable.handle,
                indices=summary.buckets,
                updates=tf.where(fresh, new, old),
            )
            for variable, new, old in zip(variables, composed, held, strict=True)
        ]
