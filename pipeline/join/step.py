"""Which outcome belongs to which impression: one step of a join that can go on for ever.

An impression at t is *open* until no outcome of it can come any more, and *closes* with the first
watermark above t + w (w: the join window). It is *remembered* for 2w. All that a step decides
depends on event times and watermarks, never on how the log was cut into calls.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from pipeline import schema as s
from pipeline.join.labels import IMPRESSION_ROW
from pipeline.join.runs import EMPTY, Store, hash_rows
from pipeline.positions import IntArray, UInt64Array, end_positions, start_positions

JOIN_KEYS: Final = (s.REQUEST_ID, s.USER_ID, s.ITEM_ID)
FATE: Final = "fate"
IDENTITY: Final = (s.EVENT_ID, s.USER_ID)

FOREVER_MS: Final = 1 << 62
"""A watermark above all times: everything closes."""
BEGINNING_MS: Final = -FOREVER_MS

FATES: Final = ("joined", "late", "early", "orphan_dropped", "orphan_kept")
"""What becomes of an outcome at u, by the last impression of its key at t <= u. Each has one.

    joined          u <= t + w
    late            t + w < u <= t + 2w: dropped
    early           none in [u - 2w, u], but one in (u, u + w]: dropped
    orphan_dropped  none of these: dropped
    orphan_kept     none in [u - 2w, u], and `orphans: keep`: an impression of its own at u, with
                    itself as its one outcome; no other outcome is ever joined with it
"""

OrphanRule = Literal["drop", "keep"]
BoolArray = npt.NDArray[np.bool_]

_REMEMBERED: Final = (*JOIN_KEYS, s.TIMESTAMP_MS, s.EVENT_ID)
_ID: Final = "_impression_id"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class JoinRule:
    """How impressions and outcomes are joined.

    Attributes:
        window_ms: An outcome counts up to this long after its impression, inclusive.
        orphans: What becomes of an outcome without an impression by its time.
        hash_rows: What keys are found by. Any function of the row is right; a poor one is slow.
    """

    window_ms: int
    orphans: OrphanRule = "drop"
    hash_rows: Callable[[pl.DataFrame], UInt64Array] = hash_rows


@dataclasses.dataclass(frozen=True, slots=True)
class JoinState:
    """What a join knows between two calls: nothing that events from `watermark - 3w` on do not say.

    Memory, measured with the ten columns of `jobs.bench.synthetic` and 2 and 10 million open
    impressions: a process grows by 310 to 320 bytes for each open impression, all else included
    (`nbytes` finds 270 to 295 of them). The key, time and id of a closed one, which stay as long
    again, are in that. So 20,000 events a second, 15,400 of them impressions, take 4.9 MB for each
    second of the window: 49 MB for 10 s, 8.8 GB for 30 minutes.

    Attributes:
        rule: See `JoinRule`.
        watermark_ms: Of the last call. No event of an earlier time comes any more.
        known: Identity of the events of time >= watermark: a redelivery is one of them.
        shown: Impressions of time >= watermark - 2w, whole until they close; and kept orphans.
        pending: Outcomes of time >= watermark: impressions before them may still come.
        waiting: Outcomes without an impression, until it is known whether they are early.
        matched: Joined outcomes of open impressions.
    """

    rule: JoinRule
    watermark_ms: int = BEGINNING_MS
    known: Store = EMPTY
    shown: Store = EMPTY
    pending: Store = EMPTY
    waiting: Store = EMPTY
    matched: Store = EMPTY

    @property
    def num_open(self) -> int:
        """How many impressions have not closed yet, kept orphans included."""
        return self.shown.num_left

    @property
    def is_empty(self) -> bool:
        """Whether there never was an event."""
        return not any(store.end for store in self._stores)

    @property
    def nbytes(self) -> int:
        """Bytes of memory."""
        return sum(store.nbytes for store in self._stores)

    @property
    def _stores(self) -> tuple[Store, ...]:
        return (self.known, self.shown, self.pending, self.waiting, self.matched)


@dataclasses.dataclass(frozen=True, slots=True)
class Closed:
    """What became final in one call.

    Over all calls, `accepted` events are as many as closed impressions that were logged
    (`num_shown`) and outcomes with a fate.

    Attributes:
        impressions: Those that closed, with all event columns; kept orphans among them.
        outcomes: The joined outcomes of these, and kept orphans as their own, with all event
            columns and `impression`, a row number in `impressions`.
        decided: `timestamp_ms` and `fate` of each outcome whose fate became final.
        num_accepted: How many of the events of the call were no duplicates.
        num_duplicates: How many were.
    """

    impressions: pl.DataFrame
    outcomes: pl.DataFrame
    decided: pl.DataFrame
    num_accepted: int
    num_duplicates: int

    @property
    def fates(self) -> dict[str, int]:
        """How many outcomes' fates became final, by fate."""
        counted = self.decided[FATE].value_counts()
        return dict.fromkeys(FATES, 0) | {str(fate): count for fate, count in counted.iter_rows()}

    @property
    def num_shown(self) -> int:
        """How many of the closed impressions were logged as such."""
        return int((self.impressions[s.ACTION] == s.IMPRESSION).sum())


def step(
    state: JoinState, events: pl.DataFrame | pa.Table, watermark_ms: int
) -> tuple[Closed, JoinState]:
    """Takes in events and gives out what the watermark makes final.

    A redelivery has the event_id *and the user* of a former event: an event_id names one action of
    one user. The first stays. Across calls, redeliveries are known by events of time >= the former
    watermark, so one that repeats its event's time, as it should, is always found.

    Args:
        state: Of the call before; `JoinState(rule)` at first. It stays as it is.
        events: Validated events of time >= the former watermark, in any order; the columns are the
            same in every call.
        watermark_ms: No event of an earlier time will come any more. `FOREVER_MS`: none at all.

    Returns:
        What became final, and the state for the next call.

    Raises:
        ValueError: If the watermark goes back, or an event is older than the former one.
    """
    frame = events if isinstance(events, pl.DataFrame) else pl.DataFrame(pl.from_arrow(events))
    _require_order(state, frame, watermark_ms)
    fresh = _without_duplicates(state, frame)
    is_shown = fresh[s.ACTION] == s.IMPRESSION
    impressions, outcomes = fresh.filter(is_shown), fresh.filter(~is_shown)
    if watermark_ms == FOREVER_MS and state.is_empty:
        impressions, outcomes, decided = _join_all(impressions, outcomes, state.rule)
        state = JoinState(state.rule, watermark_ms)
    else:
        shown = state.shown.add(impressions, _times(impressions), hashes=_hash(state, impressions))
        following = dataclasses.replace(
            state, known=_remember_identity(state, fresh, watermark_ms), shown=shown
        )
        decided, following = _decide(following, outcomes, watermark_ms)
        impressions, outcomes, state = _close(following, fresh, watermark_ms)
    return Closed(impressions, outcomes, decided, len(fresh), len(frame) - len(fresh)), state


def _require_order(state: JoinState, frame: pl.DataFrame, watermark_ms: int) -> None:
    if watermark_ms < state.watermark_ms:
        raise ValueError(
            f"watermark_ms: found {watermark_ms} after {state.watermark_ms}; expected no less:"
            " a watermark never goes back"
        )
    if len(frame) and (earliest := int(_times(frame).min())) < state.watermark_ms:
        raise ValueError(
            f"events: found one of time {earliest}; expected none before the watermark"
            f" {state.watermark_ms}: drop and count stale events before the join"
        )


def _hash(state: JoinState, frame: pl.DataFrame) -> UInt64Array:
    return state.rule.hash_rows(frame.select(JOIN_KEYS))


def _times(frame: pl.DataFrame) -> IntArray:
    return _ints(frame[s.TIMESTAMP_MS])


def _ints(column: pl.Series) -> IntArray:
    return column.cast(pl.Int64).to_numpy()


def _without_duplicates(state: JoinState, frame: pl.DataFrame) -> pl.DataFrame:
    """Returns the events that are the first of their identity, among these and the known ones."""
    identity = frame.select(IDENTITY).with_row_index("row")
    hashes = state.rule.hash_rows(frame.select(IDENTITY))
    order = np.argsort(hashes)
    repeated = np.flatnonzero(hashes[order[1:]] == hashes[order[:-1]])
    stays = np.ones(len(frame), np.bool_)
    # Few events share a hash with another: only those are compared by their ids.
    suspects = np.unique(order[np.concatenate([repeated, repeated + 1])])
    stays[suspects] = False
    first = identity[suspects].unique(IDENTITY, keep="first", maintain_order=True)
    stays[first["row"].to_numpy()] = True
    like = frame.select(*IDENTITY, s.TIMESTAMP_MS).clear()
    _, known = state.known.find(hashes, like)
    known = known.filter(pl.col(s.TIMESTAMP_MS) >= state.watermark_ms)
    if len(known):
        stays[identity.join(known, on=IDENTITY, how="semi")["row"].to_numpy()] = False
    return frame if stays.all() else frame.filter(pl.Series(stays))


def _remember_identity(state: JoinState, fresh: pl.DataFrame, watermark_ms: int) -> Store:
    young = fresh.select(*IDENTITY, s.TIMESTAMP_MS).filter(pl.col(s.TIMESTAMP_MS) >= watermark_ms)
    hashes = state.rule.hash_rows(young.select(IDENTITY))
    return state.known.add(young, _times(young), hashes=hashes).forget_before(watermark_ms)


def _join_all(
    impressions: pl.DataFrame, outcomes: pl.DataFrame, rule: JoinRule
) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """The step for a whole log: no state to look into, none to leave behind."""
    verdict = _judge(impressions, outcomes, rule.window_ms)
    last = verdict.last
    if rule.orphans == "keep":
        last = np.where(verdict.lost, len(impressions) - 1 + np.cumsum(verdict.lost), last)
        impressions = pl.concat([impressions, outcomes.filter(pl.Series(verdict.lost))])
        belongs = verdict.joined | verdict.lost
    else:
        belongs = verdict.joined
    linked = outcomes.with_columns(pl.Series(IMPRESSION_ROW, last))
    linked = linked.filter(pl.Series(belongs)).with_columns(pl.col(IMPRESSION_ROW).cast(pl.UInt32))
    return impressions, linked, _name_fates(outcomes, verdict, rule)


def _name_fates(outcomes: pl.DataFrame, verdict: _Verdict, rule: JoinRule) -> pl.DataFrame:
    """Returns the time and the fate of each outcome."""
    lost = "orphan_kept" if rule.orphans == "keep" else "orphan_dropped"
    codes = np.full(len(outcomes), FATES.index(lost))
    if rule.orphans == "drop":
        codes[verdict.early] = FATES.index("early")
    codes[verdict.late] = FATES.index("late")
    codes[verdict.joined] = FATES.index("joined")
    names = pl.Series(FATE, FATES, pl.String)
    return outcomes.select(s.TIMESTAMP_MS, names.gather(pl.Series(codes, dtype=pl.Int64)))


def _decide(
    state: JoinState, outcomes: pl.DataFrame, watermark_ms: int
) -> tuple[pl.DataFrame, JoinState]:
    """Decides all outcomes before the watermark: every impression that could have them is known."""
    rule = state.rule
    _, due, pending = state.pending.take_before(watermark_ms, outcomes)
    _, expired, waiting = state.waiting.take_before(watermark_ms - rule.window_ms, outcomes)
    young = outcomes[s.TIMESTAMP_MS] >= watermark_ms
    pending = pending.add(outcomes.filter(young), _times(outcomes)[young.to_numpy()])
    asked = pl.concat([due, expired, outcomes.filter(~young)])
    ids, seen = state.shown.find(_hash(state, asked), outcomes.select(_REMEMBERED))
    verdict = _judge(seen, asked, rule.window_ms)
    decided = _name_fates(asked, verdict, rule)
    rows = verdict.last[verdict.joined]
    matched = _match(
        state.matched, asked.filter(pl.Series(verdict.joined)), ids[rows], _times(seen)[rows]
    )
    lost = asked.filter(pl.Series(verdict.lost))
    shown = state.shown
    if rule.orphans == "keep":
        # Not in the index: nobody is joined with them.
        own = shown.end + np.arange(len(lost))
        shown, matched = shown.add(lost, _times(lost)), _match(matched, lost, own, _times(lost))
    else:
        waits = verdict.lost & (_times(asked) >= watermark_ms - rule.window_ms)
        decided = decided.filter(pl.Series(~waits))
        later = asked.filter(pl.Series(waits))
        waiting = waiting.add(later, _times(later))
    return decided, dataclasses.replace(
        state, shown=shown, pending=pending, waiting=waiting, matched=matched
    )


def _match(matched: Store, outcomes: pl.DataFrame, ids: IntArray, times: IntArray) -> Store:
    """Keeps outcomes with the number and, to be taken by, the time of their impression."""
    return matched.add(outcomes.with_columns(pl.Series(_ID, ids, pl.Int64)), times)


def _close(
    state: JoinState, like: pl.DataFrame, watermark_ms: int
) -> tuple[pl.DataFrame, pl.DataFrame, JoinState]:
    """Takes the impressions that close, and their outcomes; forgets what nobody can ask for."""
    window_ms = state.rule.window_ms
    bound = watermark_ms - window_ms
    ids, impressions, shown = state.shown.take_before(bound, like)
    with_id = like.clear().with_columns(pl.lit(None, pl.Int64).alias(_ID))
    _, outcomes, matched = state.matched.take_before(bound, with_id)
    rows = np.searchsorted(ids, _ints(outcomes[_ID]))
    linked = outcomes.drop(_ID).with_columns(pl.Series(IMPRESSION_ROW, rows, pl.UInt32))
    state = dataclasses.replace(
        state,
        watermark_ms=watermark_ms,
        shown=shown.forget_before(bound - window_ms, keep=_REMEMBERED),
        pending=state.pending.forget_before(watermark_ms),
        waiting=state.waiting.forget_before(bound),
        matched=matched.forget_before(bound),
    )
    return impressions, linked, state


@dataclasses.dataclass(frozen=True, slots=True)
class _Verdict:
    """Of each outcome: the row of its last impression or -1, and its fate.

    `lost` outcomes have no impression in [u - 2w, u]; `early` are those of them with one in
    (u, u + w].
    """

    last: IntArray
    joined: BoolArray
    late: BoolArray
    lost: BoolArray
    early: BoolArray


def _judge(impressions: pl.DataFrame, outcomes: pl.DataFrame, window_ms: int) -> _Verdict:
    """Compares outcomes with impressions, among which are all that matter for them.

    Of impressions of one key and time, the one with the greatest event_id is the last.
    """
    keys = outcomes.select(JOIN_KEYS).unique(maintain_order=True).with_row_index("key")
    coded = outcomes.select(*JOIN_KEYS, s.TIMESTAMP_MS).join(
        keys, on=JOIN_KEYS, how="left", maintain_order="left"
    )
    # Few impressions have outcomes, so only those are sorted.
    log = (
        impressions.select(_REMEMBERED)
        .with_row_index(IMPRESSION_ROW)
        .join(keys, on=JOIN_KEYS, how="inner")
        .sort("key", s.TIMESTAMP_MS, s.EVENT_ID)
    )
    log_keys, log_times = _ints(log["key"]), _times(log)
    out_keys, out_times = _ints(coded["key"]), _times(coded)
    ends = end_positions((log_keys, log_times), (out_keys, out_times), inclusive=True)
    # One row more at the end stands for none, older or younger than all.
    times = np.append(log_times, 0)
    has_last = ends > start_positions(log_keys, out_keys)
    has_next = ends < start_positions(log_keys, out_keys + 1)
    passed = out_times - times[ends - 1]
    joined = has_last & (passed <= window_ms)
    late = has_last & (passed > window_ms) & (passed <= 2 * window_ms)
    lost = ~(joined | late)
    early = lost & has_next & (times[ends] - out_times <= window_ms)
    last = np.where(joined | late, np.append(_ints(log[IMPRESSION_ROW]), -1)[ends - 1], -1)
    return _Verdict(last, joined, late, lost, early)
