"""A state whose every number tells where it came from, to be saved and to be found again."""

from __future__ import annotations

import numpy as np

from streaming.config import FrequencyConfig

import tensorflow as tf  # isort: skip

from streaming.servers.state import ServerState
from tests.streaming.counting.model import CountingModel

ROWS = 10


def make_state(servers: int) -> tuple[ServerState, tf.train.Checkpoint]:
    state = ServerState(
        CountingModel(ROWS),
        ["/device:CPU:0"] * servers,
        frequency=FrequencyConfig(hashes=2, buckets=5),
        seed=1,
        num_slots=1,
        floor=0,
    )
    return state, tf.train.Checkpoint(**state.trackables())


def fill(state: ServerState, number: float) -> None:
    """Row r of every sharded array becomes number + r."""
    for array in (state.tables["counter"], state.last_seen):
        for start, variable in zip(array.starts, array.variables, strict=True):
            rows = number + np.arange(start, start + int(variable.shape[0]))
            variable.assign(rows.reshape(variable.shape).astype(variable.dtype.as_numpy_dtype))
    for start, variable in zip(state.gaps.starts, state.gaps.variables, strict=True):
        rows = number + np.arange(start, start + int(variable.shape[0]), dtype=np.float32)
        variable.assign(np.stack([rows, rows + 100], axis=1))
    state.weights["batches"].assign([number])
    for clock in state.clocks:
        clock.assign(int(number))


def values(array) -> np.ndarray:
    return np.concatenate([shard.numpy() for shard in array.variables])
