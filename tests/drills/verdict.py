"""What a drill proved: the counters in the last checkpoint against the topic's own content."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from streaming.checkpoints.store import load_checkpoint
from tests.drills.stream import TOPIC
from tests.drills.training import BATCHES_PER_RANGE


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
    if loaded.last_seen is not None and int(loaded.last_seen.max()) > loaded.step:
        problems.append("the estimator has seen an id after the last mini-batch")
    return Verdict(
        samples=int(truth.sum()),
        lost=lost,
        duplicated=duplicated,
        torn=torn,
        allowed=allowed,
        problems=problems,
    )
