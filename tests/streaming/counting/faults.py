"""The places in a counting run's graphs where faults strike; see `run`."""

from __future__ import annotations

import os
import time
from pathlib import Path

import tensorflow as tf
from tensorflow.python.ops import script_ops

from jobs.train import TrainingProcess
from models.contract import Model
from streaming import coordinator
from streaming.ledger import Ledger
from streaming.servers import push, state
from streaming.worker import step
from tests.streaming.counting.model import WatchedModel
from tests.streaming.counting.run import CUT, HELD, RELEASED, claim, die, wait_for


class CountingProcess(TrainingProcess):
    """A process of a run whose item ids are sample numbers."""

    def _make_model(self) -> Model:
        return WatchedModel(self._specification.tables["counter"].buckets)


def install() -> None:
    """Puts the faults into this process's trainer, whatever its role."""
    coordinator.RangeFunction = FaultyRangeFunction
    state.ServerState.push = _faulty_push(state.ServerState.push)
    push.ServerChanges.commit = _known_pusher(push.ServerChanges.commit)
    push.ServerChanges._apply = _torn_apply(push.ServerChanges._apply)
    if os.environ.get("COUNTING_NO_MARKS"):
        push.is_fresh = lambda sequence, begun: tf.fill(tf.shape(begun), True)
    if os.environ.get("COUNTING_TRACE"):
        Ledger.commit = _traced(Ledger.commit)
    script_ops._py_funcs._funcs.update(_FATES)


class FaultyRangeFunction(step.RangeFunction):
    """The trainer's own function, with two more places to die in."""

    def _run(self, marks, topics, numbers):
        report = super()._run(marks, topics, numbers)
        return report._replace(counts=_pass("after-push", report.counts))

    def _finish(self, ready, **order):
        report = super()._finish(ready, **order)
        return report._replace(counts=_pass("in-flight", report.counts))


def _faulty_push(original):
    def push(self, mark, *, learned, num_batches, **changes):
        parts = [part for part in tf.nest.flatten(learned) if part is not None]
        with tf.control_dependencies(parts):
            for moment in ("before-push", "hold-push"):
                num_batches = _pass(moment, num_batches)
        with tf.control_dependencies([num_batches]):
            self.pusher = _pass("pusher", tf.constant(0, tf.int64))
        return original(self, mark, learned=learned, num_batches=num_batches, **changes)

    return push


def _known_pusher(original):
    def commit(self, mark, num_batches):
        # It arrives with everything else, before the push begins.
        self.pusher = self._arrived(self._state.pusher)
        with tf.control_dependencies([self.pusher]):
            return original(self, mark, tf.identity(num_batches))

    return commit


def _torn_apply(original):
    def apply(self, fresh, num_batches):
        early = _pass("tear-early", self.pusher)
        with tf.control_dependencies([early]):
            done = original(self, fresh, tf.identity(num_batches))
        with tf.control_dependencies(done):
            return [*done, _pass("tear-late", self.pusher)]

    return apply


def _traced(original):
    trace = Path(os.environ["COUNTING_TRACE"]) / "commits"

    def commit(self, done, totals):
        original(self, done, totals)
        with trace.open("a") as file:
            file.write(f"{time.monotonic()} {os.getpid()} {self.totals.samples}\n")

    return commit


def _pass(moment: str, value: tf.Tensor) -> tf.Tensor:
    (same,) = tf.raw_ops.PyFunc(input=[value], token=f"test.{moment}", Tout=[value.dtype])
    return tf.ensure_shape(same, value.shape)


def _dying(moment: str):
    def meet_it(value):
        if claim(moment):
            die()
        return value

    return meet_it


def _hold(value):
    if claim("hold-push"):
        folder = Path(os.environ["COUNTING_FAULTS"])
        (folder / HELD).write_text(f"{os.getpid()}")
        wait_for((folder / RELEASED).exists)
    return value


def _tearing(moment: str):
    def meet_it(pusher):
        if claim(moment):
            held = Path(os.environ["COUNTING_FAULTS"]) / HELD
            aside = held.with_suffix(".new")
            aside.write_text(f"{os.getpid()} {int(pusher)}")
            aside.rename(held)
            wait_for(lambda: not held.exists())
            if claim(CUT):
                raise MemoryError("the server could not finish this push")
        return pusher

    return meet_it


def _pusher(value):
    trace = os.environ.get("COUNTING_TRACE")
    if trace and not (first := Path(trace) / f"worker-{os.getpid()}").exists():
        first.write_text(f"{time.monotonic()}")
    return value + os.getpid()


_FATES = {
    "test.before-push": _dying("before-push"),
    "test.in-flight": _dying("in-flight"),
    "test.after-push": _dying("after-push"),
    "test.hold-push": _hold,
    "test.pusher": _pusher,
    "test.tear-early": _tearing("tear-early"),
    "test.tear-late": _tearing("tear-late"),
}
