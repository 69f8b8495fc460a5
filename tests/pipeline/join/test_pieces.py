"""However a log is cut, and whatever its keys' hashes are, one step gives what loops give."""

from __future__ import annotations

from collections import Counter

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.join.labels import find_positives, with_labels
from pipeline.join.runs import hash_rows
from pipeline.join.step import FOREVER_MS, JoinRule, JoinState, step
from tests.pipeline.event_log import START, event, specification
from tests.pipeline.join.logs import WINDOW_MS, Oracle, cut, event_table, logs, small_pieces

SPEC = specification()


def two_hashes(keys: pl.DataFrame) -> np.ndarray:
    return hash_rows(keys) % np.uint64(2)


def one_hash(keys: pl.DataFrame) -> np.ndarray:
    return np.zeros(len(keys), np.uint64)


class Run:
    """All that came out of the calls of one log."""

    def __init__(self, calls, *, orphans, hasher=hash_rows):
        self.impressions, self.owner, self.positives = Counter(), {}, {}
        self.fates, self.accepted, self.duplicates, self.shown = Counter(), 0, 0, 0
        state = JoinState(JoinRule(window_ms=WINDOW_MS, orphans=orphans, hash_rows=hasher))
        for rows, watermark in calls:
            closed, state = step(state, event_table(rows, SPEC), watermark)
            self._add(closed)
        self.state = state

    def _add(self, closed):
        names = list(closed.impressions.select("event_id", "user_id").iter_rows())
        self.impressions.update(names)
        for row in closed.outcomes.iter_rows(named=True):
            self.owner[row["event_id"], row["user_id"]] = names[row["impression"]]
        found = find_positives(closed.impressions, closed.outcomes, SPEC)
        for row in with_labels(closed.impressions, found).iter_rows(named=True):
            name = (row["event_id"], row["user_id"])
            self.positives[name] = (row["reward"], row["outcome_time_ms"])
        self.fates.update(closed.fates)
        self.accepted += closed.num_accepted
        self.duplicates += closed.num_duplicates
        self.shown += closed.num_shown


def check(run: Run, log: list, orphans: str) -> None:
    oracle = Oracle(log, orphans=orphans)
    assert run.impressions == Counter(oracle.impressions)
    assert run.owner == oracle.owner
    assert +run.fates == oracle.fates
    assert run.accepted == len(oracle.unique) == run.shown + sum(run.fates.values())
    assert run.duplicates == len(log) - len(oracle.unique)
    expected = oracle.positives()
    assert run.positives == {n: (np.float32(r), t) for n, (r, t) in expected.items()}


@pytest.mark.parametrize("hasher", [hash_rows, two_hashes, one_hash])
@pytest.mark.parametrize("orphans", ["drop", "keep"])
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_a_log_in_pieces_and_as_a_whole_gives_what_loops_over_its_rows_give(
    data, orphans, hasher
) -> None:
    log = data.draw(logs())
    calls = data.draw(cut(log))
    check(Run([(log, FOREVER_MS)], orphans=orphans, hasher=hasher), log, orphans)
    with small_pieces():
        check(Run(calls, orphans=orphans, hasher=hasher), log, orphans)


def test_ties_of_one_key_and_time_are_settled_by_id_across_calls() -> None:
    shown = [event("c", 0, 1, 1), event("b", 0, 1, 1), event("a", 0, 1, 1)]
    click = event("click", 5, 1, 1, "click")
    calls = [([row], START) for row in (*shown, click)]
    run = Run([*calls, ([], FOREVER_MS)], orphans="drop")
    assert run.owner == {("click", 1): ("c", 1)}


def test_an_impression_closes_with_the_first_watermark_above_its_window() -> None:
    state = JoinState(JoinRule(window_ms=WINDOW_MS))
    events = event_table([event("a", 0, 1, 1), event("b", 1, 1, 1)], SPEC)
    found = []
    for watermark in (START + WINDOW_MS, START + WINDOW_MS + 1, START + WINDOW_MS + 2):
        closed, state = step(state, events, watermark)
        found.append(closed.impressions["event_id"].to_list())
        events = events.slice(0, 0)
    assert found == [[], ["a"], ["b"]]


def test_an_outcome_s_fate_is_counted_once_it_cannot_change() -> None:
    state = JoinState(JoinRule(window_ms=WINDOW_MS))
    events = event_table([event("orphan", 0, 1, 1, "click")], SPEC)
    found = []
    for watermark in (START + WINDOW_MS, START + WINDOW_MS + 1):
        closed, state = step(state, events, watermark)
        found.append(closed.fates["orphan_dropped"])
        events = events.slice(0, 0)
    assert found == [0, 1]


def test_a_step_leaves_its_state_as_it_was() -> None:
    events = event_table([event("a", 0, 1, 1), event("a!", 1, 1, 1, "click")], SPEC)
    first = JoinState(JoinRule(window_ms=WINDOW_MS))
    _, second = step(first, events, START)
    again = [step(second, events.slice(0, 0), FOREVER_MS)[0] for _ in range(2)]
    assert [len(closed.outcomes) for closed in again] == [1, 1]
    assert first.is_empty
    assert again[0].impressions.equals(again[1].impressions)


def test_a_watermark_that_goes_back_and_an_event_before_it_are_refused() -> None:
    events = event_table([event("a", 0, 1, 1)], SPEC)
    _, state = step(JoinState(JoinRule(window_ms=WINDOW_MS)), events, START + 1)
    with pytest.raises(ValueError, match=f"watermark_ms: found {START} after {START + 1}"):
        step(state, events.slice(0, 0), START)
    with pytest.raises(ValueError, match=f"events: found one of time {START}; expected none"):
        step(state, events, START + 1)


def test_memory_holds_what_the_window_holds_however_long_the_log() -> None:
    sizes = []
    state = JoinState(JoinRule(window_ms=WINDOW_MS))
    with small_pieces():
        for time in range(400):
            rows = [event(f"e{time}", time, 1, time), event(f"c{time}", time, 1, time, "click")]
            _, state = step(state, event_table(rows, SPEC), START + time)
            sizes.append(
                [len(s.everything(pl.DataFrame({"event_id": []}, {"event_id": pl.String})))
                 for s in (state.known, state.shown, state.pending, state.matched)]
            )  # fmt: skip
    assert state.num_open == WINDOW_MS + 1
    assert np.max(sizes, axis=0).tolist() == np.max(sizes[:100], axis=0).tolist()
    assert state.nbytes < 20_000
    assert max(len(state.shown.chunks), len(state.shown.runs)) < 30
