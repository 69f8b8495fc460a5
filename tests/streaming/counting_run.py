"""`headrace train` with the counting model, and with faults at the worst moments.

    python -m tests.streaming.counting_run --config F [--set ...] --role ... (as headrace train)

COUNTING_FAULTS names a folder. A worker that runs a range looks there for the moment's name and
dies by SIGKILL, once per file: `before-push` has learned a range and pushed nothing; `after-push`
has pushed it and the coordinator does not know; COUNTING_NO_MARKS=1 switches the marks off, which
must be seen to break the count.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import tensorflow as tf
from tensorflow.python.ops import script_ops

from jobs.main import run_job
from jobs.train import TrainingProcess, argument_parser, run_role
from models.contract import Model
from streaming import coordinator
from streaming.servers import state
from streaming.worker import step
from tests.streaming.counting import CountingModel

MOMENTS = ("before-push", "after-push")


class CountingProcess(TrainingProcess):
    """A process of a run whose item ids are sample numbers."""

    def _make_model(self) -> Model:
        return CountingModel(self._specification.tables["counter"].buckets)

    def register_reader(self) -> None:
        super().register_reader()
        for moment in MOMENTS:
            script_ops._py_funcs._funcs[f"test.{moment}"] = _FATES[moment]


def _fate(moment: str):
    def meet_it(value):
        folder = os.environ.get("COUNTING_FAULTS")
        for file in sorted(Path(folder).glob(f"{moment}*")) if folder else []:
            try:
                file.unlink()  # one worker gets it
            except FileNotFoundError:
                continue
            os.kill(os.getpid(), signal.SIGKILL)
        return value

    return meet_it


_FATES = {moment: _fate(moment) for moment in MOMENTS}


def _pass_through(moment: str, value: tf.Tensor) -> tf.Tensor:
    (same,) = tf.raw_ops.PyFunc(input=[value], token=f"test.{moment}", Tout=[value.dtype])
    return tf.ensure_shape(same, value.shape)


class FaultyRangeFunction(step.RangeFunction):
    """The trainer's own function, with two places to die in."""

    def _run(self, mark, topic, numbers):
        report = super()._run(mark, topic, numbers)
        return report._replace(counts=_pass_through("after-push", report.counts))


def _faulty_push(original):
    def push(self, mark, *, num_batches, **changes):
        return original(
            self, mark, num_batches=_pass_through("before-push", num_batches), **changes
        )

    return push


def main() -> int:
    arguments = argument_parser().parse_args()
    coordinator.RangeFunction = FaultyRangeFunction
    state.ServerState.push = _faulty_push(state.ServerState.push)
    if os.environ.get("COUNTING_NO_MARKS"):
        state.is_fresh = lambda sequence, begun: tf.fill(tf.shape(begun), True)
    return run_role(arguments, CountingProcess)


if __name__ == "__main__":
    sys.exit(run_job(lambda _: main()))
