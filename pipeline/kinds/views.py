"""Views: a user, or an item, as it is seen in one scenario (SASS).

    of a user in a scenario
      feature columns              those of `features.query` and `features.context` that events or
                                   the users' table have
      scenario_history_item_id     the user's last positives there, oldest first
      scenario_impressions         how often the user was shown something there
      scenario_positives           how many positives the user had there
      scenario_preferred_COLUMN    the most frequent values of an item's column among these
                                   positives; of equally frequent ones the newer, then the smaller
    of an item in a scenario
      item columns                 `Specification.item_columns`: of the newest impression there, or
                                   of the items' table
      item_scenario_impressions    how often it was shown there
      item_scenario_positives      how often it was taken there

What a user did is known to the event: an impression from its own time on, a positive from its
outcome's, and what was known before a time is what is strictly older. An item is known as of the
end of a day. `scenario` samples and pairs have these columns alike, so one encoder reads both.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import polars as pl
import pyarrow as pa

from pipeline import schema as s
from pipeline.join.labels import OUTCOME_TIME_MS
from pipeline.kinds.part import UserPart
from pipeline.known.facts import IMPRESSIONS
from pipeline.known.history import Recent, find_recent
from pipeline.known.preferences import most_frequent
from pipeline.positions import IntArray, encode_keys
from pipeline.specification import Specification

ITEM_COUNTS: Final = (s.ITEM_SCENARIO_IMPRESSIONS, s.ITEM_SCENARIO_POSITIVES)

_IDENTITY: Final = (s.EVENT_ID, s.TIMESTAMP_MS, s.USER_ID, s.ITEM_ID, s.SCENARIO)
_ALL: Final = 1 << 62


def user_features(specification: Specification) -> list[str]:
    """Returns columns of impressions that say who asks, and where."""
    context = [feature.name for feature in specification.features.context]
    derived = s.derived_column_types(item_id=specification.item_id)
    names = dict.fromkeys([*specification.user_columns, *context])
    return [name for name in names if name not in derived and name not in _IDENTITY]


def user_columns(specification: Specification) -> dict[str, str]:
    """Returns the columns of a user in a scenario, all but its id and the scenario, with types."""
    types = specification.column_types
    columns = {name: types[name] for name in user_features(specification)}
    columns |= {
        s.SCENARIO_HISTORY: f"list<{specification.item_id}>",
        s.SCENARIO_IMPRESSIONS: "int64",
        s.SCENARIO_POSITIVES: "int64",
    }
    for name in specification.scenario_views.preferences:
        found = types[name]
        columns[f"{s.PREFERRED}{name}"] = found if found.startswith("list<") else f"list<{found}>"
    return columns


def item_features(specification: Specification) -> list[str]:
    """Returns the columns that say what an item is."""
    return [name for name in specification.item_columns if name not in _IDENTITY]


def item_columns(specification: Specification) -> dict[str, str]:
    """Returns the columns of an item in a scenario, all but its id and the scenario, with types."""
    types = specification.column_types
    columns = {name: types[name] for name in item_features(specification)}
    return columns | dict.fromkeys(ITEM_COUNTS, "int64")


class UserViews:
    """What the users of a part did in each scenario, before any time."""

    def __init__(self, part: UserPart) -> None:
        """Looks nothing up yet.

        Args:
            part: The users. Its facts end where its span begins.
        """
        self._part = part
        self._positives = part.known_positives
        start, _ = part.span.bounds
        shown = part.impressions.filter(pl.col(s.TIMESTAMP_MS) >= start)
        names = [s.USER_ID, s.SCENARIO, s.TIMESTAMP_MS, IMPRESSIONS]
        self._shown = pl.concat(
            [
                part.facts.seen.select(names),
                shown.with_columns(pl.lit(1, pl.Int64).alias(IMPRESSIONS)).select(names),
            ],
            how="vertical_relaxed",
        )

    def known(self) -> pl.DataFrame:
        """Returns the users and scenarios that anything is known of, each pair once."""
        names = [s.USER_ID, s.SCENARIO]
        return pl.concat([self._shown.select(names), self._positives.select(names)]).unique()

    def counts(self, queries: pl.DataFrame, times: IntArray) -> tuple[IntArray, IntArray]:
        """Returns how many impressions and positives users had in scenarios before times.

        Args:
            queries: [num_queries] users and scenarios.
            times: [num_queries] milliseconds.
        """
        taken = self._find(self._positives, OUTCOME_TIME_MS, queries, times)
        return self._num_shown(queries, times), taken.ends - taken.starts

    def _num_shown(self, queries: pl.DataFrame, times: IntArray) -> IntArray:
        shown = self._find(self._shown, s.TIMESTAMP_MS, queries, times)
        numbers = self._shown[IMPRESSIONS].to_numpy()[shown.order]
        total = np.concatenate([np.zeros(1, np.int64), np.cumsum(numbers)])
        return total[shown.ends] - total[shown.starts]

    def _find(self, log: pl.DataFrame, time: str, queries: pl.DataFrame, times: IntArray) -> Recent:
        log_keys, keys = _keys(log, queries)
        since = self._part.facts.since(times)
        return find_recent(
            (log_keys, log[time].to_numpy()), (keys, times), length=_ALL, since=since
        )

    def columns(self, queries: pl.DataFrame, times: IntArray) -> dict[str, pa.Array]:
        """Returns the columns of users in scenarios that are computed.

        Args:
            queries: [num_queries] users and scenarios.
            times: [num_queries] milliseconds; what is known before them counts.
        """
        views = self._part.specification.scenario_views
        taken = self._find(self._positives, OUTCOME_TIME_MS, queries, times)
        last = np.maximum(taken.starts, taken.ends - views.history)
        items = self._values(s.ITEM_ID)
        columns = {
            s.SCENARIO_HISTORY: Recent(taken.order, last, taken.ends).gather(items),
            s.SCENARIO_IMPRESSIONS: pa.array(self._num_shown(queries, times)),
            s.SCENARIO_POSITIVES: pa.array(taken.ends - taken.starts),
        }
        log_keys, keys = _keys(self._positives, queries)
        known_at = self._positives[OUTCOME_TIME_MS].to_numpy()
        for name, length in views.preferences.items():
            columns[f"{s.PREFERRED}{name}"] = most_frequent(
                (log_keys, known_at, self._values(name)),
                (keys, times),
                length=length,
                since=self._part.facts.since(times),
            )
        return columns

    def _values(self, name: str) -> pa.Array:
        kind = s.ARROW_TYPES[self._part.specification.column_types[name]]
        return self._positives[name].to_arrow().cast(kind)


def _keys(log: pl.DataFrame, queries: pl.DataFrame) -> tuple[pa.Array, pa.Array]:
    """Returns numbers that are equal where user and scenario are."""
    users = encode_keys(log[s.USER_ID].to_arrow(), queries[s.USER_ID].to_arrow())
    scenarios = encode_keys(log[s.SCENARIO].to_arrow(), queries[s.SCENARIO].to_arrow())
    width = 1 + max((int(codes.max()) for codes in scenarios if len(codes)), default=0)
    log_keys, keys = (u * width + c for u, c in zip(users, scenarios, strict=True))
    return pa.array(log_keys), pa.array(keys)


def plain(table: pa.Table, columns: dict[str, str]) -> pa.Table:
    """Returns columns in their order, in Arrow's plain types."""
    wanted = s.arrow_schema(columns)
    return table.select(wanted.names).cast(wanted)
