"""The rival of `headrace bench stream`: the same model in one process, without a cluster.

Everything is in its favour: samples are tensors in memory before the clock starts, nothing is
pulled or pushed, and the optimizer updates the variables in place.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence

import tensorflow as tf

from jobs.bench.in_place import estimate, handles
from jobs.bench.stream.synthetic import DIM, FREQUENCY, specification
from models.config import TwoTowerConfig
from models.contract import FeatureValue
from models.features import arrow_features
from models.two_tower import TwoTower
from streaming.config import FrequencyConfig
from streaming.servers.state import ServerState
from streaming.source import Range
from streaming.sources.archive import ArchiveSource
from streaming.worker.mini_batches import MiniBatches

_CHUNK = 8192
_WARM_UP_CHUNKS = 4


def main(argv: Sequence[str]) -> int:
    """Trains on `FOLDER BATCH_SIZE SAMPLES OPTIMIZER`; prints the two figures of a `Speed`."""
    folder, batch_size, count = argv[0], int(argv[1]), int(argv[2])
    config = TwoTowerConfig.model_validate({"dim": DIM, "hidden": [64], "optimizer": argv[3]})
    model = TwoTower(specification(), config)
    source = ArchiveSource(folder, specification().sample_schema)
    chunks = [
        arrow_features(source.read(Range(partition, start, start + _CHUNK)).samples, model.inputs)
        for partition, end in source.end_offsets().items()
        for start in range(0, end - _CHUNK, _CHUNK)
    ]
    learn = Alone(model, batch_size=batch_size).build()
    for chunk in chunks[:_WARM_UP_CHUNKS]:
        learn(chunk)
    todo = chunks[: max(1, count // _CHUNK)]
    started, used = time.perf_counter(), time.process_time()
    for chunk in todo:
        learn(chunk)
    seconds, spent = time.perf_counter() - started, time.process_time() - used
    learned = len(todo) * _CHUNK
    sys.stdout.write(f"{json.dumps([learned / seconds, spent / learned * 1e6])}\n")
    return 0


class Alone:
    """A whole trainer in one process."""

    def __init__(self, model: TwoTower, *, batch_size: int) -> None:
        self._model = model
        self._batch_size = batch_size
        self._config = FrequencyConfig(**FREQUENCY)
        self._state = ServerState(
            model,
            ["/device:CPU:0"],
            frequency=self._config,
            seed=1,
            num_slots=1,
            floor=0,
        )
        self._batches = MiniBatches(model, batch_size=batch_size)

    def build(self) -> tf.types.experimental.PolymorphicFunction:
        """Returns the function that learns a chunk of samples, in place."""
        return tf.function(self._learn, autograph=False, reduce_retracing=True)

    def build_estimator(self) -> tf.types.experimental.PolymorphicFunction:
        """Returns the estimator's part alone: ids [num] to their sampling probabilities."""
        return tf.function(self._probability, autograph=False, reduce_retracing=True)

    def _learn(self, raw: Mapping[str, FeatureValue]) -> tf.Tensor:
        num_samples = tf.size(raw["item_id"], out_type=tf.int64)
        probability = self._probability(raw["item_id"])
        return self._batches.learn(
            self._model.encode(raw),
            handles(self._state),
            probability=probability,
            num_samples=num_samples,
        ).loss_sum

    def _probability(self, ids: tf.Tensor) -> tf.Tensor:
        likely = estimate(self._state, ids, batch_size=self._batch_size)
        num_samples = tf.size(ids, out_type=tf.int64)
        self._state.step.assign_add(-(-num_samples // self._batch_size))
        return likely


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
