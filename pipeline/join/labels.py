"""Which impressions are positives: the labels that follow from joined outcomes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import polars as pl

from pipeline import schema as s
from pipeline.specification import Specification

OUTCOME_TIME_MS: Final = "outcome_time_ms"
"""Time of the outcome that made an impression a positive."""

IMPRESSION_ROW: Final = "impression"
"""Of a joined outcome: the row of its impression."""


def with_labels(impressions: pl.DataFrame, found: pl.DataFrame) -> pl.DataFrame:
    """Returns the impressions that `find_positives` found, with their labels."""
    rows = impressions[found[IMPRESSION_ROW].to_numpy()]
    return rows.with_columns(found[s.REWARD], found[OUTCOME_TIME_MS])


def find_positives(
    impressions: pl.DataFrame, outcomes: pl.DataFrame, specification: Specification
) -> pl.DataFrame:
    """Returns the row, reward and outcome time of each impression that is a positive.

    By the rule of the impression's scenario: `action` gives reward 1 from the first such outcome
    on. `play_share` takes the plays whose share (play_seconds / duration_seconds, the impression's
    duration where the play has none) reaches the rule's; the first makes the positive and the
    largest share, at most 1, is the reward.

    Args:
        impressions: Of whole users, or those that closed.
        outcomes: All joined outcomes of these, with `impression`, a row number in `impressions`.
        specification: Has the rules.

    Returns:
        [num_positives] `impression`, ascending, `reward` and `outcome_time_ms`.
    """
    rules = _rules(specification.scenarios, specification)
    shown = impressions.select(
        pl.col(s.SCENARIO),
        *([pl.col(s.DURATION_SECONDS).alias("_shown")] if _has_plays(outcomes) else []),
    ).with_row_index(IMPRESSION_ROW)
    graded = (
        outcomes.drop(s.SCENARIO)
        .join(shown, on=IMPRESSION_ROW, how="left")
        .join(rules, on=s.SCENARIO, how="left")
        .with_columns(_share(outcomes).alias("_share"))
    )
    is_play = (pl.col(s.ACTION) == "play") & (pl.col("_share") >= pl.col("_rule_share"))
    qualifying = graded.filter((pl.col(s.ACTION) == pl.col("_rule_action")) | is_play)
    reward = (
        pl.when(pl.col("_rule_share").is_null()).then(1.0).otherwise(pl.col("_share").clip(0, 1))
    )
    positives = qualifying.group_by(IMPRESSION_ROW).agg(
        reward.max().cast(pl.Float32).alias(s.REWARD),
        pl.col(s.TIMESTAMP_MS).min().alias(OUTCOME_TIME_MS),
    )
    return positives.sort(IMPRESSION_ROW)


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
