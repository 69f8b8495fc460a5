"""What a drill proved: the counters in the last checkpoint against the topic's own content."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import tensorflow as tf

from streaming.checkpoints.store import LoadedCheckpoint, load_checkpoint
from tests.drills.stream import TOPIC
from tests.drills.training import ALPHA, BATCHES_PER_RANGE, HASHES

_GAP_TOLERANCE = 0.002  # what float32 leaves of a moving average; a lost range shows as 0.005


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Counts, and what is wrong with them.

    Attributes:
        samples: Samples in the topic.
        lost: Samples that were learned less often than they stand in the topic.
        duplicated: Samples that were learned more often.
        torn: Pushes to a server that the ledger counts as torn.
        allowed: How many samples torn pushes may have left out: those of the ranges they were of.
        problems: What does not hold; empty if all does.
    """

    samples: int
    lost: int
    duplicated: int
    torn: int
    allowed: int
    problems: list[str]


def judge(
    checkpoints: Path, *, truth: np.ndarray, ends: dict[int, int], range_samples: int
) -> Verdict:
    """Compares the newest checkpoint with the topic.

    Args:
        checkpoints: The run's.
        truth: How often each sample stands in the topic, by its number.
        ends: The topic's end offset, per partition.
        range_samples: Samples in the largest range.
    """
    loaded = load_checkpoint(checkpoints)
    totals = loaded.ledger["totals"]
    counters = loaded.parameters["counter"][:, 0]
    torn = int(totals["torn"])
    lost = int(np.count_nonzero(counters < truth))
    duplicated = int(np.count_nonzero(counters > truth))
    allowed = torn * range_samples
    problems = []
    if lost > allowed:
        problems.append(f"{lost} samples lost; expected at most {allowed}, of {torn} torn pushes")
    if duplicated:
        problems.append(f"{duplicated} samples applied more than once")
    offsets = {
        entry["partition"]: entry["offset"]
        for entry in loaded.ledger["offsets"]
        if entry["topic"] == TOPIC
    }
    expected = {"offsets": (offsets, ends), "samples": (totals["samples"], int(truth.sum()))}
    expected |= {"records": (totals["records"], sum(ends.values()))}
    expected |= {name: (totals[name], 0) for name in ("rejects", "lost")}
    for name, (found, wanted) in expected.items():
        if found != wanted:
            problems.append(f"ledger: {name}: found {found}, expected {wanted}")
    # A torn push may have left a server's clock, and its dense weight, behind by one range.
    clocks = {"clock of the estimator": loaded.step, "weight": loaded.parameters["batches"][0]}
    for name, found in clocks.items():
        behind = totals["batches"] - int(found)
        if not 0 <= behind <= torn * BATCHES_PER_RANGE:
            problems.append(f"{name}: found {int(found)}, expected {totals['batches']}")
    problems += _estimator_problems(loaded, torn=torn)
    problems += _bank_problems(checkpoints / loaded.name, truth, allowed=allowed)
    return Verdict(
        samples=int(truth.sum()),
        lost=lost,
        duplicated=duplicated,
        torn=torn,
        allowed=allowed,
        problems=problems,
    )


def _estimator_problems(loaded: LoadedCheckpoint, *, torn: int) -> list[str]:
    """A user who is in every mini-batch: last seen in the last one, all gaps 1, on every server."""
    assert loaded.last_seen is not None
    assert loaded.gaps is not None
    met = loaded.last_seen >= 0
    seen = loaded.last_seen[met]
    problems = []
    if len(seen) != HASHES:
        problems.append(f"estimator: found {len(seen)} buckets in use, expected {HASHES}")
    elif np.abs(seen - (loaded.step - 1)).max() > torn * BATCHES_PER_RANGE:
        problems.append(f"estimator: last seen in {seen.tolist()}, expected {loaded.step - 1}")
    elif not torn:
        expected = [1 - (1 - ALPHA) ** (loaded.step - 1), loaded.step]
        found = loaded.gaps[met]
        if np.abs(found - expected).max() > _GAP_TOLERANCE:
            problems.append(f"estimator: gaps, sightings {found.tolist()}, expected {expected}")
    return problems


def _bank_problems(folder: Path, truth: np.ndarray, *, allowed: int) -> list[str]:
    """As many candidates as samples came in, and those that it holds are samples, each once."""
    reader = tf.train.load_checkpoint(str(folder / "state"))
    cursor, numbers, vectors = (
        reader.get_tensor(f"bank.S{name}/.ATTRIBUTES/VARIABLE_VALUE")
        for name in ("cursor", "identity", "vectors")
    )
    problems = []
    if not 0 <= truth.sum() - cursor <= allowed:
        problems.append(f"bank: {cursor} candidates came in, expected {truth.sum()}")
    held = numbers[: min(int(cursor), len(numbers))]
    if len(np.unique(held)) < len(held) or not truth[held].all():
        problems.append("bank: found a candidate twice, or one that is no sample")
    if not np.array_equal(vectors[: len(held), 0], held.astype(np.float32)):
        problems.append("bank: found a vector that is not of its candidate")
    return problems
