"""The idempotent exchange between workers and the training state on the parameter servers.

A worker *pulls* what a range needs, once, and *pushes* the differences, once. A push is idempotent
per server: two marks, `begun` and `applied`, have one cell per slot, and a push with sequence
number n takes effect only where `begun[slot] < n`. The coordinator gives every range in flight a
slot of its own and an ever-growing sequence number, so a range that is retried counts once on every
server, whether its first try had reached none, some or all of them. A push that was cut in the
middle leaves `applied[slot] < begun[slot]`: its retry reports it as torn. A mutex per server makes
check and change one step, so a worker that was given up and wakes up again cannot slip between; the
merge rule looks at the state under it, too. A range that is given up, to be learned later, is
*withdrawn* first: no try of it that is still on its way counts then.

What goes to or from a server goes in few tensors: each costs two remote calls, whatever its size.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from models.contract import Candidates
from streaming.servers import frequency as freq
from streaming.servers import merge
from streaming.servers.merge import Parameter
from streaming.servers.push import Mark, PushOutcome, ServerChanges, fence
from streaming.servers.variables import Route, Shards, Variables, packed, unpacked


class Pulled(NamedTuple):
    """What a worker knows of the state when it begins to learn a range.

    Attributes:
        routes: Where the rows of each table live.
        parameters: Rows of the tables, and dense weights, by name.
        touches: Per table, int32 pushes that had touched each row; empty unless they count.
        pushes: Per server, int32 pushes that it had applied; empty unless they count.
        bank: The bank's rows, its cursor, and the number of mini-batches applied; None without.
    """

    routes: dict[str, Route]
    parameters: dict[str, Parameter]
    touches: dict[str, tf.Tensor]
    pushes: list[tf.Tensor]
    bank: tuple[Candidates, tf.Tensor, tf.Tensor] | None


class Sightings(NamedTuple):
    """What a range of samples says to the estimator, and asks of it.

    Attributes:
        route: The servers where its buckets live.
        summary: What the range adds to them.
        positions: [num_hashes, num_distinct] where in the summary each distinct id's buckets are.
        which: [num_samples] which of the distinct ids each sample has.
    """

    route: Route
    summary: freq.Summary
    positions: tf.Tensor
    which: tf.Tensor


class ServerState(Variables):
    """The state on its devices, and the pull and push of a range; see `Variables`."""

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

    def note_try(self, slot: tf.Tensor, sequence: tf.Tensor) -> tf.Operation:
        """Counts that a worker begins a range: one that ends all of them is found by its tries."""
        with tf.device(self.devices[0]):
            slot, sequence = tf.identity(slot), tf.identity(sequence)
            number, count = tf.unstack(self.tries.sparse_read(slot))
            count = tf.where(number == sequence, count + 1, tf.ones_like(count))
            return tf.raw_ops.ResourceScatterUpdate(
                resource=self.tries.handle,
                indices=slot[tf.newaxis],
                updates=tf.stack([sequence, count])[tf.newaxis],
            )

    def tried(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns `tries`, and [num_slots] the last number of each slot that was begun to push."""
        return self.tries.numpy(), self.begun[0].numpy()

    def withdraw(self, slot: int, sequence: int) -> int:
        """Sees that a push which has come to no server never counts.

        A worker that was given up may still be on its way with it. Between the look and the fence
        of the last server it may come to some: those that were fenced then find it torn.

        Returns:
            To how many servers it has come: with 0 it counts nowhere, now and later.
        """
        came = [int(begun.sparse_read(slot)) >= sequence for begun in self.begun]
        if not any(came):
            numbers = [tf.constant(number, tf.int64) for number in (slot, sequence)]
            came = list(self._fence(*numbers).numpy())
        return sum(came)

    @functools.cached_property
    def _fence(self) -> tf.types.experimental.PolymorphicFunction:
        return tf.function(functools.partial(fence, self), autograph=False)

    def pull(self, rows: Mapping[str, tf.Tensor]) -> Pulled:
        """Pulls all that a range learns: rows of the tables ([n] int64 distinct), all weights."""
        routes = {name: self.route(wanted, self.tables[name]) for name, wanted in rows.items()}
        parameters = {}
        for name, route in routes.items():
            total = self.table_sums.get(name)
            sums = None if total is None else self.pull_rows(total, route)
            parameters[name] = Parameter(self.pull_rows(self.tables[name], route), sums)
        parameters |= self._pull_weights()
        touches = {
            name: self.pull_rows(count, routes[name]) for name, count in self.touches.items()
        }
        counted = merge.counts_pushes(self.rule)
        pushes = [count.read_value() for count in self.pushes] if counted else []
        bank = None if self.bank is None else (*self.bank.pull(), self.step.read_value())
        return Pulled(routes, parameters, touches, pushes, bank)

    def pull_rows(self, array: Shards, route: Route) -> tf.Tensor:
        """Returns the routed rows of an array, in the order of the request."""
        parts = []
        for variable, device, rows in zip(
            array.variables, self.devices, route.local_rows, strict=True
        ):
            with tf.device(device):
                parts.append(variable.sparse_read(tf.identity(rows)))
        return parts[0] if len(parts) == 1 else tf.dynamic_stitch(route.positions, parts)

    def weights_on(self, server: int) -> list[str]:
        """Returns the names of the dense weights that a server holds."""
        return [name for name, where in self.server_of.items() if where == server]

    def _pull_weights(self) -> dict[str, Parameter]:
        pulled = {}
        for server, device in enumerate(self.devices):
            if not (names := self.weights_on(server)):
                continue
            with tf.device(device):
                parts = [
                    part.read_value()
                    for name in names
                    for part in (self.weights[name], self.weight_sums.get(name))
                    if part is not None
                ]
                vector = packed(parts)
            rest = iter(unpacked(vector, [part.shape for part in parts]))
            for name in names:
                pulled[name] = Parameter(
                    next(rest), next(rest) if name in self.weight_sums else None
                )
        return pulled

    def sight(
        self,
        ids: tf.Tensor,
        *,
        batch_size: int,
        num_batches: tf.Tensor,
        scenario: tf.Tensor | None = None,
    ) -> Sightings | None:
        """Condenses a range's candidates for the estimator; None without one.

        Args:
            ids: [num_samples] int64 or string.
            batch_size: Samples per mini-batch.
            num_batches: int64 scalar, mini-batches in the range.
            scenario: [num_samples] string, with `frequency.per_scenario`.
        """
        if self.gaps is None:
            return None
        buckets, which = freq.distinct_buckets(ids, self.frequency, scenario=scenario)
        summary, positions = freq.summarise(
            buckets,
            which,
            batch_size=batch_size,
            num_batches=num_batches,
            alpha=self.frequency.alpha,
        )
        return Sightings(self.route(summary.buckets, self.gaps), summary, positions, which)

    def likely(self, sightings: Sightings | None) -> tuple[tf.Tensor | None, tf.Tensor | None]:
        """Returns [num_samples] estimates as of now, and of how many the id was never seen."""
        if sightings is None or self.gaps is None:
            return None, None
        held = tf.gather(self.pull_rows(self.gaps, sightings.route), sightings.positions)
        found = freq.probability(held, self.frequency, clock=self.step.read_value())
        new = tf.gather(tf.cast(freq.never_seen(held), tf.float32), sightings.which)
        return tf.gather(found, sightings.which), tf.reduce_sum(new)

    def likely_drawn(self, ids: tf.Tensor) -> tf.Tensor | None:
        """Returns [num] estimates for ids drawn from elsewhere, 0 for those never seen."""
        if self.gaps is None:
            return None
        buckets, which = freq.distinct_buckets(ids, self.frequency)
        distinct, positions = tf.unique(tf.reshape(buckets, [-1]))
        held = self.pull_rows(self.gaps, self.route(distinct, self.gaps))
        held = tf.gather(held, tf.reshape(positions, tf.shape(buckets)))
        clock = self.step.read_value()
        return tf.gather(freq.probability(held, self.frequency, clock=clock, unseen=0.0), which)

    def push(
        self,
        mark: Mark,
        *,
        pulled: Pulled,
        learned: Mapping[str, Parameter],
        sightings: Sightings | None,
        enqueued: tuple[Candidates, tf.Tensor] | None = None,
        num_batches: tf.Tensor,
    ) -> PushOutcome:
        """Merges what a range learned into the state: once per server, however often it is tried.

        Args:
            mark: Which range it is.
            pulled: As the range began.
            learned: What became of the parameters in it, by name.
            sightings: The range's, None without an estimator.
            enqueued: What comes into the bank, as `Bank.append` takes it, and the range's number of
                samples; None without a bank.
            num_batches: int64 scalar, mini-batches in the range.
        """
        sent = {
            name: merge.outgoing(self.rule, pulled=pulled.parameters[name], learned=after)
            for name, after in learned.items()
        }
        outcomes = []
        for server in range(len(self.devices)):
            changes = ServerChanges(self, server)
            for name, route in pulled.routes.items():
                changes.add_rows(name, route, sent[name], pulled.touches.get(name))
            names = self.weights_on(server)
            changes.add_weights({name: sent[name] for name in names}, pulled.pushes)
            if sightings is not None:
                changes.compose_frequencies(sightings.route, sightings.summary)
            if enqueued is not None and server == self.bank_server:
                changes.enqueue(*enqueued)
            outcomes.append(changes.commit(mark, num_batches))
        applied = tf.add_n([tf.cast(outcome.applied, tf.int64) for outcome in outcomes])
        torn = tf.add_n([tf.cast(outcome.torn, tf.int64) for outcome in outcomes])
        return PushOutcome(applied, torn)
