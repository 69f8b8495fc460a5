"""One server's part of a push: merged and applied under a mutex, once, however often it arrives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import tensorflow as tf

from models.contract import Candidates
from streaming.servers import frequency as freq
from streaming.servers import merge
from streaming.servers.merge import Change, Parameter
from streaming.servers.order import independent
from streaming.servers.variables import Route, Variables, packed, unpacked


class Mark(NamedTuple):
    """Which range is pushed.

    Attributes:
        slot: int64 scalar, the slot that is the range's own.
        sequence: int64 scalar, the range's number, 0 for one that counts nowhere.
        after: What is there before a server's mutex is taken: nothing may be waited for while it is
            held, or others would wait for it, too.
    """

    slot: tf.Tensor
    sequence: tf.Tensor
    after: Sequence[tf.Tensor] = ()


class PushOutcome(NamedTuple):
    """What became of a push: counts of servers.

    Attributes:
        applied: Servers that applied it now.
        torn: Servers on which an earlier try had been cut in the middle.
    """

    applied: tf.Tensor
    torn: tf.Tensor


def is_fresh(sequence: tf.Tensor, begun: tf.Tensor) -> tf.Tensor:
    """Whether a push counts: nothing with its number, or a later one, came to this slot before."""
    return sequence > begun


def fence(state: Variables, slot: tf.Tensor, sequence: tf.Tensor) -> tf.Tensor:
    """Lets no push of a number begin any more, on any server.

    Returns:
        [servers] bool, where it had begun before.
    """
    came = []
    for server, begun in enumerate(state.begun):
        with tf.device(state.devices[server]):
            lock = _lock(server)
            with tf.control_dependencies([lock]):
                before = begun.sparse_read(slot)
            written = _write_mark(begun, slot, tf.maximum(before, sequence))
            with tf.control_dependencies([written]):
                released = _release(lock)
            with tf.control_dependencies([released]):
                came.append(tf.identity(before >= sequence))
    return tf.stack(came)


def _lock(server: int) -> tf.Tensor:
    """Takes the mutex of a server; for use on its device."""
    mutex = tf.raw_ops.MutexV2(shared_name=f"headrace/push/{server}")
    independent(mutex)
    return tf.raw_ops.MutexLock(mutex=mutex)


def _release(lock: tf.Tensor) -> tf.Operation:
    released = tf.raw_ops.ConsumeMutexLock(mutex_lock=lock)
    independent(released)
    return released


def _write_mark(marks: tf.Variable, slot: tf.Tensor, value: tf.Tensor) -> tf.Operation:
    return tf.raw_ops.ResourceScatterUpdate(
        resource=marks.handle, indices=slot[tf.newaxis], updates=value[tf.newaxis]
    )


class _Rows(NamedTuple):
    """A change of rows of a table, as it arrived on a server."""

    name: str
    rows: tf.Tensor
    change: Change
    touches: tf.Tensor | None


class ServerChanges:
    """One server's part of a push: first everything arrives, then it is applied under the mutex."""

    def __init__(self, state: Variables, server: int) -> None:
        self._state = state
        self._server = server
        self._device = state.devices[server]
        self._rows: list[_Rows] = []
        self._weights: dict[str, Change] = {}
        self._pushes: tf.Tensor | None = None
        self._frequencies: freq.Summary | None = None
        self._enqueued: tuple[Candidates, tf.Tensor] | None = None

    def _arrived(self, tensor: tf.Tensor) -> tf.Tensor:
        with tf.device(self._device):
            return tf.identity(tensor)

    def _part_arrived(self, tensor: tf.Tensor | None, route: Route) -> tf.Tensor | None:
        if tensor is None:
            return None
        if len(self._state.devices) > 1:
            tensor = tf.gather(tensor, route.positions[self._server])
        return self._arrived(tensor)

    def add_rows(self, name: str, route: Route, change: Change, touches: tf.Tensor | None) -> None:
        rows = self._arrived(route.local_rows[self._server])
        parts = [self._part_arrived(part, route) for part in change]
        self._rows.append(_Rows(name, rows, Change(*parts), self._part_arrived(touches, route)))

    def add_weights(self, changes: Mapping[str, Change], pushes: Sequence[tf.Tensor]) -> None:
        parts = [part for part in tf.nest.flatten(changes) if part is not None]
        if parts:
            arrived = self._arrived(packed(parts))
            with tf.device(self._device):
                rest = iter(unpacked(arrived, [part.shape for part in parts]))
            self._weights = tf.nest.map_structure(
                lambda part: None if part is None else next(rest), dict(changes)
            )
        if pushes:
            self._pushes = self._arrived(pushes[self._server])

    def compose_frequencies(self, route: Route, summary: freq.Summary) -> None:
        # Numbers of mini-batches are small enough for float32 to hold exactly.
        numbers = tf.stack([tf.cast(part, tf.float32) for part in summary[1:]], axis=1)
        buckets = self._arrived(route.local_rows[self._server])
        arrived = self._part_arrived(numbers, route)
        with tf.device(self._device):
            first, last, count, gaps = tf.unstack(arrived, num=4, axis=1)
            self._frequencies = freq.Summary(
                buckets, tf.cast(first, tf.int64), tf.cast(last, tf.int64), count, gaps
            )

    def enqueue(self, rows: Candidates, num_samples: tf.Tensor) -> None:
        arrived = Candidates(*[self._arrived(values) for values in rows])
        self._enqueued = (arrived, self._arrived(num_samples))

    def commit(self, mark: Mark, num_batches: tf.Tensor) -> PushOutcome:
        numbers = self._arrived(tf.stack([mark.slot, mark.sequence, num_batches]))
        begun, applied = self._state.begun[self._server], self._state.applied[self._server]
        arrived = [self._rows, self._weights, self._pushes, self._frequencies, self._enqueued]
        tensors = [part for part in tf.nest.flatten(arrived) if isinstance(part, tf.Tensor)]
        with tf.device(self._device), tf.control_dependencies([numbers, *tensors, *mark.after]):
            slot, sequence, num_batches = tf.unstack(numbers, num=3)
            lock = _lock(self._server)
            # What stands there is read under the lock: of two tries that come at once, the one that
            # is no longer fresh must not put back what it saw before the other.
            with tf.control_dependencies([lock]):
                before = (begun.sparse_read(slot), applied.sparse_read(slot))
                fresh = is_fresh(sequence, before[0])
                torn = (before[0] >= sequence) & (before[1] < sequence)
            opened = _write_mark(begun, slot, tf.where(fresh, sequence, before[0]))
            with tf.control_dependencies([opened]):
                changed = self._apply(fresh, num_batches)
            with tf.control_dependencies(changed):
                closed = _write_mark(applied, slot, tf.where(fresh, sequence, before[1]))
            with tf.control_dependencies([closed]):
                released = _release(lock)
            with tf.control_dependencies([released]):
                return PushOutcome(tf.identity(fresh), tf.identity(torn))

    def _apply(self, fresh: tf.Tensor, num_batches: tf.Tensor) -> list[tf.Operation]:
        done = []
        for part in self._rows:
            done += self._apply_rows(part, fresh)
        done += self._apply_weights(fresh)
        clock = self._state.clocks[self._server]
        if self._frequencies is not None:
            done += self._apply_frequencies(self._frequencies, clock, fresh)
        if self._enqueued is not None and self._state.bank is not None:
            rows, num_samples = self._enqueued
            done += self._state.bank.append(rows, num_samples=num_samples, fresh=fresh)
        with tf.control_dependencies(done):
            ticks = tf.where(fresh, num_batches, tf.zeros_like(num_batches))
            return [*done, tf.raw_ops.AssignAddVariableOp(resource=clock.handle, value=ticks)]

    def _apply_rows(self, part: _Rows, fresh: tf.Tensor) -> list[tf.Operation]:
        table = self._state.tables[part.name].variables[self._server]
        total = self._state.table_sums.get(part.name)
        sums = None if total is None else total.variables[self._server]
        held, touches = None, None
        if merge.reads_held(self._state.rule):
            held = Parameter(
                table.sparse_read(part.rows),
                None if sums is None else sums.sparse_read(part.rows),
            )
        targets: list[tuple[tf.Variable | None, tf.Tensor | None]] = []
        if part.touches is not None:
            counter = self._state.touches[part.name].variables[self._server]
            touches = tf.cast(counter.sparse_read(part.rows) - part.touches, tf.float32)
            targets.append((counter, tf.ones_like(part.touches)))
        change = merge.incoming(self._state.rule, part.change, held=held, touches=touches)
        targets += [(table, change.value), (sums, change.accumulator)]
        # All rows or none: a slice copies nothing.
        count = tf.where(fresh, tf.size(part.rows), 0)
        before = [tensor for tensor in (held, touches, change) if tensor is not None]
        with tf.control_dependencies(_tensors(before)):
            return [
                tf.raw_ops.ResourceScatterAdd(
                    resource=variable.handle, indices=part.rows[:count], updates=updates[:count]
                )
                for variable, updates in targets
                if variable is not None and updates is not None
            ]

    def _apply_weights(self, fresh: tf.Tensor) -> list[tf.Operation]:
        done, touches = [], None
        pushes = self._state.pushes[self._server]
        if self._pushes is not None:
            touches = tf.cast(pushes.read_value() - self._pushes, tf.float32)[tf.newaxis]
            one = tf.where(fresh, 1, 0)
            with tf.control_dependencies([touches]):
                done.append(tf.raw_ops.AssignAddVariableOp(resource=pushes.handle, value=one))
        for name, change in self._weights.items():
            value, sums = self._state.weights[name], self._state.weight_sums.get(name)
            held = Parameter(
                _as_row(value.read_value()), None if sums is None else _as_row(sums.read_value())
            )
            row = Change(*[None if part is None else _as_row(part) for part in change])
            added = merge.incoming(self._state.rule, row, held=held, touches=touches)
            with tf.control_dependencies(_tensors([held, added])):
                for variable, updates in ((value, added.value), (sums, added.accumulator)):
                    if variable is None or updates is None:
                        continue
                    gated = tf.where(fresh, updates, tf.zeros_like(updates))
                    shaped = tf.reshape(gated, variable.shape)
                    done.append(
                        tf.raw_ops.AssignAddVariableOp(resource=variable.handle, value=shaped)
                    )
        return done

    def _apply_frequencies(
        self, summary: freq.Summary, clock: tf.Variable, fresh: tf.Tensor
    ) -> list[tf.Operation]:
        arrays = (self._state.last_seen, self._state.gaps)
        variables = [array.variables[self._server] for array in arrays if array is not None]
        held = [variable.sparse_read(summary.buckets) for variable in variables]
        composed = freq.compose(
            summary,
            last_seen=held[0],
            gaps=held[1],
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


def _as_row(value: tf.Tensor) -> tf.Tensor:
    return tf.reshape(value, [1, -1])


def _tensors(structure: object) -> list[tf.Tensor]:
    return [part for part in tf.nest.flatten(structure) if isinstance(part, tf.Tensor)]
