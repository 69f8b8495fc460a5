"""A verdict must be able to fail: each claim is broken once, in a checkpoint made by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from streaming.checkpoints.store import CheckpointStore
from streaming.config import FrequencyConfig
from streaming.ledger import Ledger, Totals
from streaming.source import Partition, Range

import tensorflow as tf  # isort: skip

from streaming.servers.state import ServerState
from tests.drills.stream import TOPIC
from tests.drills.training import ALPHA, HASHES, INITIAL_GAP
from tests.drills.verdict import Verdict, judge
from tests.streaming.counting.model import WatchedModel

ROWS, SAMPLES, BATCHES, RECORDS = 300, 200, 10, 4
TRUTH = np.array([1] * SAMPLES + [0] * (ROWS - SAMPLES))


# After ten mini-batches with a gap of 1 between them: nine gaps, ten sightings.
GAPS = 1 - 0.999**9


def judged(
    folder: Path,
    *,
    counters=TRUTH,
    torn=0,
    step=BATCHES,
    samples=SAMPLES,
    records=RECORDS,
    last_seen=BATCHES - 1,
    gaps=(GAPS, BATCHES),
    cursor=SAMPLES,
    banked=range(SAMPLES),
) -> Verdict:
    state = ServerState(
        WatchedModel(ROWS),
        ["/device:CPU:0"] * 2,
        frequency=FrequencyConfig(hashes=HASHES, buckets=16, alpha=ALPHA, initial_gap=INITIAL_GAP),
        seed=1,
        num_slots=1,
        floor=0,
    )
    shards = np.split(counters.astype(np.float32)[:, np.newaxis], 2)
    for variable, rows in zip(state.tables["counter"].variables, shards, strict=True):
        variable.assign(rows)
    state.weights["batches"].assign([BATCHES])
    state.step.assign(step)
    for shard, (variable, held) in enumerate(
        zip(state.last_seen.variables, state.gaps.variables, strict=True)
    ):
        for place in (3, 21):  # of two hashes each
            variable[place].assign(last_seen if shard else BATCHES - 1)
            held[place].assign(gaps if shard else (GAPS, BATCHES))
    state.bank.cursor.assign(cursor)
    state.bank.rows.identity[:SAMPLES].assign(np.array(banked))
    state.bank.rows.vectors[:SAMPLES, 0].assign(np.arange(SAMPLES, dtype=np.float32))
    partition = Partition(TOPIC, 0)
    ledger = Ledger({partition: 0}, {})
    totals = Totals(records=records, samples=samples, batches=BATCHES, torn=torn)
    ledger.commit(Range(partition, 0, records), totals)
    store = CheckpointStore(folder, keep=1, fingerprints={"specification": "s"})
    store.save(tf.train.Checkpoint(**state.trackables()), ledger, step=step)
    return judge(folder, truth=TRUTH, ends={0: RECORDS}, range_samples=100)


def with_counts(count: int, rows: slice) -> np.ndarray:
    counters = TRUTH.copy()
    counters[rows] = count
    return counters


def test_all_once_is_a_pass(tmp_path):
    verdict = judged(tmp_path)
    assert verdict.problems == []
    assert (verdict.samples, verdict.lost, verdict.duplicated) == (SAMPLES, 0, 0)


@pytest.mark.parametrize(
    ("broken", "problem"),
    [
        ({"counters": with_counts(0, slice(3, 5))}, "2 samples lost; expected at most 0"),
        ({"counters": with_counts(2, slice(3, 4))}, "1 samples applied more than once"),
        ({"counters": with_counts(1, slice(205, 206))}, "1 samples applied more than once"),
        ({"step": BATCHES - 1}, "clock of the estimator: found 9, expected 10"),
        ({"samples": 199}, "ledger: samples: found 199, expected 200"),
        ({"records": 3}, "ledger: records: found 3, expected 4"),
        ({"last_seen": BATCHES - 2}, "estimator: last seen in [9, 9, 8, 8], expected 9"),
        ({"last_seen": BATCHES}, "estimator: last seen in [9, 9, 10, 10], expected 9"),
        ({"last_seen": -1}, "estimator: found 2 buckets in use, expected 4"),
        ({"gaps": (GAPS + 0.005, BATCHES)}, "estimator: gaps, sightings"),
        ({"gaps": (GAPS, BATCHES - 1)}, "estimator: gaps, sightings"),
        ({"cursor": SAMPLES - 1}, "bank: 199 candidates came in, expected 200"),
        ({"cursor": SAMPLES + 1}, "bank: 201 candidates came in, expected 200"),
        ({"banked": [1, *range(1, SAMPLES)]}, "bank: found a candidate twice"),
        ({"banked": [205, *range(1, SAMPLES)]}, "bank: found a candidate twice"),
        ({"banked": [1, 0, *range(2, SAMPLES)]}, "bank: found a vector that is not of its"),
        ({"counters": with_counts(0, slice(0, 101)), "torn": 1}, "101 samples lost; expected at"),
        ({"counters": with_counts(2, slice(0, 1)), "torn": 1}, "1 samples applied more than once"),
    ],
)
def test_what_does_not_hold_is_named(tmp_path, broken, problem):
    problems = judged(tmp_path, **broken).problems
    assert any(problem in found for found in problems), problems


def test_a_counted_torn_push_may_leave_out_a_range_and_its_batches_but_repeats_nothing(tmp_path):
    verdict = judged(tmp_path, counters=with_counts(0, slice(0, 100)), torn=1, step=BATCHES - 5)
    assert verdict.problems == []
    assert (verdict.lost, verdict.allowed) == (100, 100)
