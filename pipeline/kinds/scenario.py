"""Scenario samples: a positive and negatives of its scenario, side by side (SASS, fine-tuning).

    event_id, timestamp_ms, user_id, scenario    of the positive, the same in all rows of a group
    item_id                 the candidate
    label                   1 for the positive, 0 for a negative
    candidate_number        0 for the positive, then 1 to n: rows of a group stand in this order
    user columns            of the user in this scenario before the positive's impression, the same
                            in all rows; see `pipeline.kinds.views`
    item columns            of the candidate in this scenario as of the end of the day before

Negatives are drawn with replacement, each item as likely as its share of the impressions in the
scenario in the days before; never an item that the user took, in any scenario, with an outcome at
most a join window before or after the impression. Which ones are drawn is a function of event, user
and `kinds.scenario.seed` alone, so that a sample is the same in any run.

An item that was not shown in the scenario before the day, which only the positive can be, counts 0
impressions and has the columns of the impression itself.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import schema as s
from pipeline.days import MS_PER_DAY, name_of
from pipeline.declarations import ScenarioKind
from pipeline.join.labels import OUTCOME_TIME_MS
from pipeline.kinds.dropped import Dropped, with_dropped
from pipeline.kinds.part import UserPart
from pipeline.kinds.views import (
    ITEM_COUNTS,
    UserViews,
    item_columns,
    item_features,
    plain,
    user_columns,
    user_features,
)
from pipeline.known.items import HASH, ItemDays, ItemLookup
from pipeline.positions import IntArray, UInt64Array, end_positions, start_positions
from pipeline.shuffle import hash_keys, mix_in, uniform
from pipeline.specification import Specification

ROUNDS: Final = 64
"""How often a negative is drawn again that the user took. A user who took nine tenths of what a
scenario shows loses one negative of a thousand, and its group with it."""

NO_EXPOSURE: Final = "no_exposure_before"
NO_NEGATIVE: Final = "no_eligible_negative"

_IS_SAMPLE: Final = "is_sample"
_FROM: Final = "excluded_from_ms"
_UNTIL: Final = "excluded_until_ms"


def schema(specification: Specification) -> pa.Schema:
    """See the module."""
    return s.arrow_schema(_identity(specification) | _features(specification))


def _identity(specification: Specification) -> dict[str, str]:
    types = specification.column_types
    names = (s.EVENT_ID, s.TIMESTAMP_MS, s.USER_ID, s.SCENARIO, s.ITEM_ID)
    return {name: types[name] for name in names} | {s.LABEL: "int64", s.CANDIDATE: "int64"}


def _features(specification: Specification) -> dict[str, str]:
    return user_columns(specification) | item_columns(specification)


def _kind(specification: Specification) -> ScenarioKind:
    kind = specification.kinds.scenario
    if kind is None:
        raise ValueError("the specification declares no scenario samples")
    return kind


def make(part: UserPart) -> pa.Table:
    """Returns what `with_items` needs of the users.

    First a row for each positive of the span's days, by (timestamp_ms, event_id), with the user's
    columns and those of its item as the impression has them. Then, with little more than user and
    item, the other positives that exclude a negative: each row says from when until when it does.
    """
    start, end = part.span.bounds
    window = part.span.window_ms
    names = [s.EVENT_ID, s.TIMESTAMP_MS, s.USER_ID, s.ITEM_ID, s.SCENARIO]
    names += [*user_features(part.specification), *item_features(part.specification)]
    known_at = pl.col(OUTCOME_TIME_MS)
    near = known_at.is_between(start - window, end + window)
    is_sample = pl.col(s.TIMESTAMP_MS).is_between(start, end, closed="left")
    positives = (
        part.positives.filter(near)
        .select(
            *names,
            (known_at - window).alias(_FROM),
            (known_at + window).alias(_UNTIL),
            is_sample.alias(_IS_SAMPLE),
        )
        .sort(s.TIMESTAMP_MS, s.EVENT_ID, s.USER_ID)
    )
    samples = positives.filter(_IS_SAMPLE)
    others = positives.filter(~pl.col(_IS_SAMPLE)) if len(samples) else positives.clear()
    table = samples.to_arrow()
    views = UserViews(part).columns(samples, samples[s.TIMESTAMP_MS].to_numpy())
    for name, values in views.items():
        table = table.append_column(name, values)
    rest = others.select(s.USER_ID, s.ITEM_ID, _FROM, _UNTIL, _IS_SAMPLE).to_arrow()
    return pa.concat_tables([table, rest], promote_options="default")


def with_items(asked: pa.Table, specification: Specification, items: ItemDays) -> pa.Table:
    """Draws negatives, and adds what is known of each candidate."""
    kind = _kind(specification)
    users, things = hash_keys(asked[s.USER_ID]), hash_keys(asked[s.ITEM_ID])
    taken = _Taken(mix_in(users, things), asked[_FROM].to_numpy(), asked[_UNTIL].to_numpy())
    samples = asked.filter(asked[_IS_SAMPLE])
    seeds = mix_in(
        mix_in(hash_keys(samples[s.EVENT_ID]), users[: samples.num_rows]), kind.seed % (1 << 64)
    )
    days = samples[s.TIMESTAMP_MS].to_numpy() // MS_PER_DAY
    wanted = _identity(specification) | _features(specification)
    whole, dropped = [s.arrow_schema(wanted).empty_table()], Dropped()
    for day in np.unique(days):
        rows = np.flatnonzero(days == day)
        lookup = items.before(int(day))
        draw = _Draw(samples.take(pa.array(rows)), users[rows], seeds[rows], lookup, taken)
        drawn, reasons = draw.all(kind.negatives)
        if reasons:
            dropped[name_of(int(day))] = reasons
        kept = np.flatnonzero((drawn >= 0).all(axis=1))
        if len(kept):
            whole.append(plain(_expand(draw.samples, kept, drawn, lookup, specification), wanted))
    return with_dropped(pa.concat_tables(whole), dropped)


class _Taken:
    """Which items each user took, and for which times this excludes them."""

    def __init__(self, keys: UInt64Array, from_ms: IntArray, until_ms: IntArray) -> None:
        """Sorts them.

        Args:
            keys: [num_rows] hashes of user and item. Were two of one hash, an item too many would
                be excluded, never one too few.
            from_ms: [num_rows] first millisecond, inclusive.
            until_ms: [num_rows] last millisecond, inclusive; equally far behind the first in all.
        """
        order = np.lexsort((until_ms, keys))
        self._distinct, codes = np.unique(keys[order], return_inverse=True)
        self._codes = codes.astype(np.int64)
        self._from, self._until = from_ms[order], until_ms[order]

    def excludes(self, keys: UInt64Array, times: IntArray) -> npt.NDArray[np.bool_]:
        """Says of each hash of user and item whether it is excluded at a time."""
        places = np.minimum(np.searchsorted(self._distinct, keys), len(self._distinct) - 1)
        found = np.flatnonzero(self._distinct[places] == keys)
        codes, moments = places[found].astype(np.int64), times[found]
        # The first that is not over at the time: if it has not begun, neither has a later one.
        first = end_positions((self._codes, self._until), (codes, moments), inclusive=False)
        last = start_positions(self._codes, codes + 1) - 1
        begun = self._from[np.minimum(first, last)] <= moments
        result = np.zeros(len(keys), bool)
        result[found] = (first <= last) & begun
        return result


class _Draw:
    """Negatives of the samples of one day."""

    def __init__(
        self,
        samples: pa.Table,
        users: UInt64Array,
        seeds: UInt64Array,
        lookup: ItemLookup,
        taken: _Taken,
    ) -> None:
        """Takes [num_samples] samples, with hashes of their users, and seeds; draws nothing yet."""
        self.samples = samples
        self._users, self._seeds = users, seeds
        self._lookup, self._taken = lookup, taken
        self._times = samples[s.TIMESTAMP_MS].to_numpy()
        scenarios = samples[s.SCENARIO].combine_chunks().dictionary_encode()
        self._scenario = scenarios.indices.to_numpy()
        self._names = scenarios.dictionary.to_pylist()

    def all(self, num: int) -> tuple[IntArray, dict[str, int]]:
        """Draws so many negatives for each sample.

        Returns:
            [num_samples, num] rows of the look-up, -1 where there is none; and how many samples
            lack some, by reason.
        """
        shown = np.array([self._lookup.exposure(name) > 0 for name in self._names])
        is_shown = shown[self._scenario]
        drawn = np.full((len(self._times), num), -1)
        missing = np.flatnonzero(np.repeat(is_shown, num))
        for turn in range(ROUNDS):
            if not len(missing):
                break
            samples, slots = np.divmod(missing, num)
            rows = self._once(samples, turn * num + slots)
            hashes = self._lookup.take(rows, [HASH])[HASH].to_numpy()
            keys = mix_in(self._users[samples], hashes)
            again = self._taken.excludes(keys, self._times[samples])
            drawn.ravel()[missing[~again]] = rows[~again]
            missing = missing[again]
        reasons = {
            NO_EXPOSURE: int((~is_shown).sum()),
            NO_NEGATIVE: len(np.unique(missing // num)),
        }
        return drawn, {reason: count for reason, count in reasons.items() if count}

    def _once(self, samples: IntArray, numbers: IntArray) -> IntArray:
        """Returns a row for each sample, by its draw of that number."""
        fractions = uniform(mix_in(self._seeds[samples], numbers))
        rows = np.empty(len(samples), np.int64)
        scenarios = self._scenario[samples]
        for code in np.unique(scenarios):
            mine = np.flatnonzero(scenarios == code)
            rows[mine] = self._lookup.draw(self._names[code], fractions[mine])
        return rows


def _expand(
    samples: pa.Table,
    kept: IntArray,
    drawn: IntArray,
    lookup: ItemLookup,
    specification: Specification,
) -> pa.Table:
    """Returns a row for each candidate.

    Args:
        samples: [num_samples] of a day.
        kept: Those that have all their negatives.
        drawn: [num_samples, num_negatives] rows of the look-up.
        lookup: The items as of the day before.
        specification: Says which columns.
    """
    chosen = samples.take(pa.array(kept))
    own = lookup.find(
        pl.Series(pl.from_arrow(chosen[s.SCENARIO])), pl.Series(pl.from_arrow(chosen[s.ITEM_ID]))
    )
    rows = np.concatenate([own[:, None], drawn[kept]], axis=1)
    numbers = np.tile(np.arange(rows.shape[1]), len(kept))
    table = chosen.take(pa.array(np.repeat(np.arange(len(kept)), rows.shape[1])))
    rows = rows.ravel()
    names = [s.ITEM_ID, *item_features(specification)]
    found = lookup.take(rows, [*names, *ITEM_COUNTS])
    # A positive may have become known of an item that was last shown before the lookback.
    shown = pc.fill_null(found[s.ITEM_SCENARIO_IMPRESSIONS], 0)
    is_unknown = pc.equal(shown, 0)
    for name in names:
        position = table.column_names.index(name)
        kind = s.ARROW_TYPES[specification.column_types[name]]
        own_values, values = table[name].cast(kind), found[name].cast(kind)
        table = table.set_column(position, name, pc.if_else(is_unknown, own_values, values))
    for name in ITEM_COUNTS:
        table = table.append_column(name, pc.fill_null(found[name], 0))
    table = table.append_column(s.LABEL, pa.array((numbers == 0).astype(np.int64)))
    return table.append_column(s.CANDIDATE, pa.array(numbers))
