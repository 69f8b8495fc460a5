"""Impressions with their outcomes, and the labels that follow.

All of it is columnar and knows one part of the users at a time: an impression and its outcomes
have the same user, so a part needs no other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

import numpy as np
import polars as pl

from pipeline import schema as s
from pipeline.shuffle import IntArray, end_positions, start_positions
from pipeline.specification import Specification

JOIN_KEYS: Final = (s.REQUEST_ID, s.USER_ID, s.ITEM_ID)

OUTCOME_TIME_MS: Final = "outcome_time_ms"
"""Time of the outcome that made an impression a positive."""

FATES: Final = ("joined", "late", "early", "orphan_dropped", "orphan_kept")
"""What becomes of an outcome. Every outcome has one of them.

    joined          came within the window after its impression
    late            came after the window: dropped
    early           older than every impression of its key: dropped
    orphan_dropped  no impression with its key in the log: dropped
    orphan_kept     no impression with its key by then, and `orphans: keep`: its own impression, or
                    within the window after such a one

Which of the two an outcome without a former impression is, early or orphan, its future decides. So
`keep` keeps both: else a later impression would unmake a sample that stands before it.
"""

OrphanRule = Literal["drop", "keep"]


def deduplicate(events: pl.DataFrame) -> tuple[pl.DataFrame, int]:
    """Returns the events without redeliveries, and how many these were.

    A redelivery has the event_id *and the user* of a former event: an event_id names one action of
    one user. So duplicates meet in the user's part and cost no shuffle of their own. The first
    in the order of the input files stays.
    """
    unique = events.unique([s.EVENT_ID, s.USER_ID], keep="first", maintain_order=True)
    return unique, len(events) - len(unique)


def join_outcomes(
    events: pl.DataFrame, *, window_ms: int, orphans: OrphanRule
) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """Joins each outcome with the last impression of its key at or before it.

    The key is (request_id, user_id, item_id). Where two impressions of a key have the same time,
    the one with the greater event_id has the outcomes.

    Args:
        events: Deduplicated events of whole users.
        window_ms: An outcome counts up to this long after its impression, inclusive.
        orphans: What to do with an outcome that has no impression by its time: drop it, or make it
            (the first of its key) an impression at its own time.

    Returns:
        The impressions; the joined outcomes, each with `impression`, the row number of its
        impression; and `timestamp_ms` and `fate` of every outcome.
    """
    is_impression = pl.col(s.ACTION) == s.IMPRESSION
    impressions, outcomes = events.filter(is_impression), events.filter(~is_impression)
    num_logged = len(impressions)
    last = _last_impressions(impressions, outcomes)
    if orphans == "keep":
        first = outcomes.filter(last < 0).sort(s.TIMESTAMP_MS, s.EVENT_ID)
        first = first.unique(JOIN_KEYS, keep="first", maintain_order=True)
        impressions = pl.concat([impressions, first])
        last = _last_impressions(impressions, outcomes)
    shown_ms = np.append(_ints(impressions[s.TIMESTAMP_MS]), 0)[last]
    late = (last >= 0) & (_ints(outcomes[s.TIMESTAMP_MS]) > shown_ms + window_ms)
    joined = (last >= 0) & ~late
    keys = impressions.select(JOIN_KEYS).unique()
    unknown = outcomes.select(JOIN_KEYS).with_row_index("row").filter(last < 0)
    is_early = unknown.join(keys, on=JOIN_KEYS, how="semi")["row"]
    names = np.full(len(outcomes), FATES.index("orphan_dropped"))
    names[is_early.to_numpy()] = FATES.index("early")
    names[late] = FATES.index("late")
    names[joined] = FATES.index("joined")
    names[joined & (last >= num_logged)] = FATES.index("orphan_kept")
    fates = outcomes.select(
        s.TIMESTAMP_MS, pl.Series("fate", FATES).gather(pl.Series(names)).alias("fate")
    )
    matched = outcomes.with_columns(impression=pl.Series(last, dtype=pl.UInt32, strict=False))
    return impressions, matched.filter(joined), fates


def _last_impressions(impressions: pl.DataFrame, outcomes: pl.DataFrame) -> IntArray:
    """Returns, for each outcome, the row of the last impression of its key by then, or -1."""
    keys = outcomes.select(JOIN_KEYS).unique(maintain_order=True).with_row_index("key")
    coded = outcomes.join(keys, on=JOIN_KEYS, how="left", maintain_order="left")
    # Few impressions have outcomes, so only those are sorted.
    log = (
        impressions.select(*JOIN_KEYS, s.TIMESTAMP_MS, s.EVENT_ID)
        .with_row_index("impression")
        .join(keys, on=JOIN_KEYS, how="inner")
        .sort("key", s.TIMESTAMP_MS, s.EVENT_ID)
    )
    log_keys, out_keys = _ints(log["key"]), _ints(coded["key"])
    ends = end_positions(
        (log_keys, _ints(log[s.TIMESTAMP_MS])),
        (out_keys, _ints(coded[s.TIMESTAMP_MS])),
        inclusive=True,
    )
    rows = np.append(_ints(log["impression"]), -1)
    found = ends > start_positions(log_keys, out_keys)
    return rows[np.where(found, ends - 1, len(rows) - 1)]


def _ints(column: pl.Series) -> IntArray:
    return column.cast(pl.Int64).to_numpy()


def label(
    impressions: pl.DataFrame, outcomes: pl.DataFrame, specification: Specification
) -> pl.DataFrame:
    """Returns the impressions that are positives, with their reward and when they became so.

    By the rule of the impression's scenario: `action` gives reward 1 from the first such outcome
    on. `play_share` takes the plays whose share (play_seconds / duration_seconds, the impression's
    duration where the play has none) reaches the rule's; the first makes the positive and the
    largest share, at most 1, is the reward.

    Args:
        impressions: Of whole users.
        outcomes: Joined outcomes with `impression`, a row number in `impressions`.
        specification: Has the rules.

    Returns:
        The positives in the order of `impressions`, with `reward` and `outcome_time_ms`.
    """
    rules = _rules(specification.scenarios, specification)
    shown = impressions.select(
        pl.col(s.SCENARIO),
        *([pl.col(s.DURATION_SECONDS).alias("_shown")] if _has_plays(outcomes) else []),
    ).with_row_index("impression")
    graded = (
        outcomes.drop(s.SCENARIO)
        .join(shown, on="impression", how="left")
        .join(rules, on=s.SCENARIO, how="left")
        .with_columns(_share(outcomes).alias("_share"))
    )
    is_play = (pl.col(s.ACTION) == "play") & (pl.col("_share") >= pl.col("_rule_share"))
    qualifying = graded.filter((pl.col(s.ACTION) == pl.col("_rule_action")) | is_play)
    reward = (
        pl.when(pl.col("_rule_share").is_null()).then(1.0).otherwise(pl.col("_share").clip(0, 1))
    )
    positives = qualifying.group_by("impression").agg(
        reward.max().cast(pl.Float32).alias(s.REWARD),
        pl.col(s.TIMESTAMP_MS).min().alias(OUTCOME_TIME_MS),
    )
    return (
        impressions.with_row_index("impression")
        .join(positives, on="impression", how="inner")
        .sort("impression")
        .drop("impression")
    )


def _has_plays(events: pl.DataFrame) -> bool:
    return s.PLAY_SECONDS in events.columns


def _share(events: pl.DataFrame) -> pl.Expr:
    if not _has_plays(events):
        return pl.lit(None, pl.Float64)
    duration = pl.coalesce(s.DURATION_SECONDS, "_shown").cast(pl.Float64)
    return pl.when(duration > 0).then(pl.col(s.PLAY_SECONDS).cast(pl.Float64) / duration)


def _rules(scenarios: Sequence[str], specification: Specification) -> pl.DataFrame:
    rules = [specification.label_rule(scenario) for scenario in scenarios]
    return pl.DataFrame(
        {
            s.SCENARIO: list(scenarios),
            "_rule_action": [rule.action for rule in rules],
            "_rule_share": [rule.play_share for rule in rules],
        },
        schema={s.SCENARIO: pl.String, "_rule_action": pl.String, "_rule_share": pl.Float64},
    )
