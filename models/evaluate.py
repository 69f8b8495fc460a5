"""Next-item quality on later samples, exact: every candidate of the corpus is scored.

Protocol. Each sample of the future split is one question: its query's features against its item,
the target, among all candidates. `HitRate@K` is the share of targets in the first K places,
`NDCG@K` the mean of 1 / log2(1 + place) over those (one target each, so the ideal is 1). Equal
scores have no order: a target among ties counts by its expected value over all their orders, which
matters for popularity, where counts repeat. A target outside the corpus is a miss, and is counted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import polars as pl
import pyarrow as pa

from models.index import Parameters, vectors
from models.two_tower import TwoTower
from pipeline.schema import HISTORY_ITEM_ID, ITEM_ID, USER_ID

CUTOFFS = (10, 50, 100)
NUM_DECILES = 10
_SCORES_AT_A_TIME = 1 << 25  # 128 MiB of float32


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Quality:
    """Hit rate and NDCG by cutoff, over a number of samples.

    Attributes:
        num_samples: How many targets.
        hit_rate: By K, in [0, 1]; NaN where there is no sample.
        ndcg: By K, in [0, 1]; NaN where there is no sample.
    """

    num_samples: int
    hit_rate: dict[int, float]
    ndcg: dict[int, float]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """The quality of one way to score.

    Attributes:
        overall: Over all samples.
        by_decile: By the target's popularity: candidates are ordered by their count, most popular
            first, and cut into ten parts of equally many *items*.
        num_outside: Targets that are no candidates; misses in `overall`, in no decile.
    """

    overall: Quality
    by_decile: list[Quality]
    num_outside: int


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Questions:
    """Future samples as places in a corpus.

    Attributes:
        samples: [num_samples] rows with the query features.
        candidates: [num_candidates] rows with the candidate features.
        targets: [num_samples] row of each sample's item in `candidates`, -1 if it is not there.
        popularity: [num_candidates] int64, how often each was seen in training.
        seen_sample: [num_seen] row numbers in `samples`, rising, which `seen_candidate` belong to.
        seen_candidate: [num_seen] rows in `candidates` that are no answer to that sample.
    """

    samples: pa.Table
    candidates: pa.Table
    targets: np.ndarray
    popularity: np.ndarray
    seen_sample: np.ndarray
    seen_candidate: np.ndarray


def questions(
    samples: pa.Table, *, candidates: pa.Table, training: pa.Table, exclude_seen: bool
) -> Questions:
    """Prepares an evaluation.

    Args:
        samples: The future split.
        candidates: The corpus, one row per item.
        training: Samples of the past; their items' counts are the popularity.
        exclude_seen: Whether items that the user has in `training`, or in the sample's history,
            are no answers. The target itself always stays one.
    """
    items = pl.DataFrame({ITEM_ID: pl.from_arrow(candidates.column(ITEM_ID))}).with_row_index("row")
    past = pl.DataFrame({name: pl.from_arrow(training.column(name)) for name in (USER_ID, ITEM_ID)})
    targets = _rows(pl.DataFrame({ITEM_ID: pl.from_arrow(samples.column(ITEM_ID))}), items)
    counts = items.join(past.group_by(ITEM_ID).len(), on=ITEM_ID, how="left", maintain_order="left")
    seen = pl.DataFrame({"sample": [], "row": []}, schema={"sample": pl.Int64, "row": pl.Int64})
    if exclude_seen:
        seen = _seen(samples, past=past, items=items)
        seen = seen.filter(pl.col("row") != pl.Series(targets).gather(seen["sample"]))
    return Questions(
        samples=samples,
        candidates=candidates,
        targets=targets,
        popularity=counts["len"].cast(pl.Int64).fill_null(0).to_numpy(),
        seen_sample=seen["sample"].to_numpy(),
        seen_candidate=seen["row"].to_numpy(),
    )


def _rows(wanted: pl.DataFrame, items: pl.DataFrame) -> np.ndarray:
    found = wanted.join(items, on=ITEM_ID, how="left", maintain_order="left")
    return found["row"].cast(pl.Int64).fill_null(-1).to_numpy()


def _seen(samples: pa.Table, *, past: pl.DataFrame, items: pl.DataFrame) -> pl.DataFrame:
    """Returns distinct (sample, row) pairs, by sample: what each sample's user has seen before."""
    users = pl.DataFrame({USER_ID: pl.from_arrow(samples.column(USER_ID))}).with_row_index("sample")
    pairs = [users.join(past.unique(), on=USER_ID).select("sample", ITEM_ID)]
    if HISTORY_ITEM_ID in samples.column_names:
        history = pl.DataFrame({ITEM_ID: pl.from_arrow(samples.column(HISTORY_ITEM_ID))})
        pairs.append(history.with_row_index("sample").explode(ITEM_ID).drop_nulls())
    known = pl.concat(pairs).unique().join(items, on=ITEM_ID)
    return known.select(pl.col("sample", "row").cast(pl.Int64)).sort("sample", "row")


def evaluate_model(
    model: TwoTower,
    parameters: Parameters,
    asked: Questions,
    *,
    cutoffs: Sequence[int] = CUTOFFS,
) -> Evaluation:
    """Scores every candidate for every sample by a model."""
    query = vectors(model, parameters, asked.samples, side="query")
    candidate = vectors(model, parameters, asked.candidates, side="candidate")
    batches = (query[rows] @ candidate.T for rows in _batches(asked))
    return _evaluate(asked, batches, cutoffs=cutoffs)


def evaluate_popularity(asked: Questions, *, cutoffs: Sequence[int] = CUTOFFS) -> Evaluation:
    """Scores every candidate by its count in training: the baseline, under the same protocol."""
    counts = asked.popularity.astype(np.float32)
    batches = (np.tile(counts, (rows.stop - rows.start, 1)) for rows in _batches(asked))
    return _evaluate(asked, batches, cutoffs=cutoffs)


def _batches(asked: Questions) -> Iterator[slice]:
    total, size = len(asked.targets), max(1, _SCORES_AT_A_TIME // max(1, len(asked.popularity)))
    return (slice(start, min(start + size, total)) for start in range(0, total, size))


def _evaluate(
    asked: Questions, score_batches: Iterator[np.ndarray], *, cutoffs: Sequence[int]
) -> Evaluation:
    above, ties = np.zeros((2, len(asked.targets)), np.int64)
    for rows, scores in zip(_batches(asked), score_batches, strict=True):
        seen = slice(*np.searchsorted(asked.seen_sample, [rows.start, rows.stop]))
        scores[asked.seen_sample[seen] - rows.start, asked.seen_candidate[seen]] = -np.inf
        above[rows], ties[rows] = places(scores, asked.targets[rows])
    gains = _expected_gains(above, ties, cutoffs=cutoffs)
    gains = {name: np.where(asked.targets >= 0, gain, 0.0) for name, gain in gains.items()}
    decile = np.where(asked.targets >= 0, _deciles(asked.popularity)[asked.targets], -1)
    return Evaluation(
        overall=_quality(gains, np.ones(len(decile), bool), cutoffs),
        by_decile=[_quality(gains, decile == number, cutoffs) for number in range(NUM_DECILES)],
        num_outside=int((asked.targets < 0).sum()),
    )


def places(scores: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Counts how many candidates stand above each target, and how many others tie with it.

    Args:
        scores: [num_queries, num_candidates] float32.
        targets: [num_queries] columns; -1 gives a meaningless result.

    Returns:
        Two arrays [num_queries] int64.
    """
    own = np.take_along_axis(scores, targets[:, np.newaxis], axis=1)
    return (scores > own).sum(axis=1), (scores == own).sum(axis=1) - 1


def _expected_gains(
    above: np.ndarray, ties: np.ndarray, *, cutoffs: Sequence[int]
) -> dict[tuple[str, int], np.ndarray]:
    """Returns each sample's expected gain: the mean over the places that its ties share."""
    gains = {}
    for cutoff in cutoffs:
        place = np.arange(1, cutoff + 1)
        for name, gain in (("hit_rate", np.ones(cutoff)), ("ndcg", 1.0 / np.log2(1.0 + place))):
            up_to = np.concatenate([[0.0], np.cumsum(gain)])
            last, first = np.minimum(above + ties + 1, cutoff), np.minimum(above, cutoff)
            gains[name, cutoff] = (up_to[last] - up_to[first]) / (ties + 1)
    return gains


def _deciles(popularity: np.ndarray) -> np.ndarray:
    """Returns each candidate's decile, 0 for the most popular tenth of the items."""
    decile = np.empty(len(popularity), np.int64)
    order = np.argsort(-popularity, kind="stable")
    decile[order] = np.arange(len(popularity)) * NUM_DECILES // max(1, len(popularity))
    return decile


def _quality(
    gains: dict[tuple[str, int], np.ndarray], chosen: np.ndarray, cutoffs: Sequence[int]
) -> Quality:
    def mean(name: str, cutoff: int) -> float:
        return float(gains[name, cutoff][chosen].mean()) if chosen.any() else float("nan")

    return Quality(
        num_samples=int(chosen.sum()),
        hit_rate={cutoff: mean("hit_rate", cutoff) for cutoff in cutoffs},
        ndcg={cutoff: mean("ndcg", cutoff) for cutoff in cutoffs},
    )
