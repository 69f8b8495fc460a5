"""How fast what has piled up in a topic is joined, and whether it is joined right."""

from __future__ import annotations

import dataclasses
import time
from typing import Final, Literal

import pyarrow as pa
import pyarrow.compute as pc

from jobs.bench.join import headrace, rival
from jobs.bench.join.events import Stream, Verdict, judge, make_stream, naive_join
from jobs.bench.join.headrace import Join, end_process
from jobs.bench.join.rival import QuixJoin
from jobs.bench.join.topics import GroupOffsets, Sender, Watcher, create_topic, read_committed
from jobs.bench.report import Cell
from pipeline import schema as s
from streaming.joining.progress import EVENTS, STALE

_ROWS_PER_RECORD: Final = 1000
_POLL_SECONDS: Final = 0.2
_AGO_MS: Final = 3_600_000

Form = Literal["arrow", "json", "shown"]
"""Arrow batches, JSON objects with users as keys, or with all of what was shown as keys."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Backlog:
    """Events that lie in a topic before anything reads them.

    Attributes:
        events: The events, in the order in which they arrived.
        expected: The samples in them.
        stream: How they flowed.
    """

    events: pa.Table
    expected: pa.Table
    stream: Stream


def make_backlog(stream: Stream) -> Backlog:
    """Returns events of the last hours."""
    start_ms = round(1000 * (time.time() - stream.seconds)) - _AGO_MS
    events = make_stream(stream, start_ms=start_ms)
    return Backlog(events=events, expected=naive_join(events, stream.window_ms), stream=stream)


def publish(backlog: Backlog, address: str, topic: str, form: Form) -> int:
    """Makes a topic and sends all events to it; returns how many records that are.

    With `shown`, keys are user, request and item; and to each partition one more event is sent, of
    so much later that all windows close.
    """
    stream, events = backlog.stream, backlog.events
    create_topic(address, topic, stream.partitions)
    with Sender(address, topic, stream.partitions) as sender:
        if form == "arrow":
            sender.send_arrow(events, rows=_ROWS_PER_RECORD)
        elif form == "json":
            sender.send_json(events)
        else:
            events = pa.concat_tables([events, _much_later(events, stream)])
            sender.send_json(events, keys=(s.USER_ID, s.REQUEST_ID, s.ITEM_ID))
        sender.flush()
    return events.num_rows


def _much_later(events: pa.Table, stream: Stream) -> pa.Table:
    last_ms = pc.max(events[s.TIMESTAMP_MS]).as_py() + 10 * stream.window_ms
    row = events.slice(0, 1).to_pylist()[0] | {s.TIMESTAMP_MS: last_ms, s.ACTION: "favourite"}
    rows = [
        row | {s.EVENT_ID: f"end-{n}", s.REQUEST_ID: "end", s.USER_ID: n}
        for n in range(stream.partitions)
    ]
    return pa.Table.from_pylist(rows, events.schema)


def of_headrace(backlog: Backlog, join: Join, form: Literal["arrow", "json"]) -> dict[str, Cell]:
    """Joins a backlog with one process of `headrace join`, and closes all windows.

    The rate is that from its first transaction, which takes the partitions, to its last one.
    """
    publish(backlog, join.address, join.events_topic, form)
    started = time.monotonic()
    join.run(end="closed")
    seconds = time.monotonic() - started
    progress = join.progress()
    done = {each.unit: each for each in progress}
    before = {each.unit: each for each in reversed(progress)}
    events = sum(
        each.totals.get(kind, 0) - before[unit].totals.get(kind, 0)
        for unit, each in done.items()
        for kind in (EVENTS, STALE)
    )
    first = min(each.written_ms for each in before.values())
    last = max(each.written_ms for each in done.values())
    found = headrace.samples_of(read_committed(join.address, join.samples_topic))
    way = f"headrace, {form}" + (f", history of {join.history}" if join.history else "")
    row = _row(way, events, 1000 * events / max(1, last - first), judge(found, backlog.expected))
    return row | {"process s": round(seconds, 1)}


def of_rival(backlog: Backlog, join: QuixJoin, *, most_seconds: float) -> dict[str, Cell]:
    """Joins a backlog with one process of quixstreams.

    The rate is that from its first commit to its last one, without its start.
    """
    form: Form = "json" if join.mode == "outcome" else "shown"
    total = publish(backlog, join.address, join.events_topic, form)
    create_topic(join.address, join.samples_topic, backlog.stream.partitions)
    seen: list[tuple[float, int]] = []
    started = time.monotonic()
    process = join.start()
    try:
        with GroupOffsets(join.address, join.name, join.events_topic) as group:
            while time.monotonic() - started < most_seconds and (not seen or seen[-1][1] < total):
                time.sleep(_POLL_SECONDS)
                done = group.done()
                if done > (seen[-1][1] if seen else 0):
                    seen.append((time.monotonic(), done))
                if process.poll() is not None:
                    raise RuntimeError(f"{join.name} ended\n{join.log[-4000:]}")
    finally:
        end_process(process, seconds=5.0)
    seconds = time.monotonic() - started
    rate, last = 0.0, 0
    if len(seen) > 1:
        (begin, first), (end, last) = seen[0], seen[-1]
        rate = (last - first) / (end - begin)
    with Watcher(join.address, join.samples_topic) as watcher:
        watcher.drain()
        found = rival.samples_of(watcher.values())
    way = f"quixstreams, json, {join.mode}" + ("" if last >= total else ", not finished")
    return _row(way, last, rate, judge(found, backlog.expected)) | {"process s": round(seconds, 1)}


def _row(way: str, events: int, rate: float, verdict: Verdict) -> dict[str, Cell]:
    row: dict[str, Cell] = {"way": way, "events": events, "events/s": round(rate)}
    return row | verdict.cells()
