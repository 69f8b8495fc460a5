"""The feed over a source of lists: ends of a stream, sizes, alignment, what it tells."""

from __future__ import annotations

import contextlib
import logging

import pyarrow as pa
import pytest

from streaming.config import TrainConfig
from streaming.feed import Feed
from streaming.ledger import Totals
from streaming.source import Partition, Place, Range, ReadResult, SourceUnavailableError

A, B = Partition("clicks", 0), Partition("searches", 0)
HOUR = 3_600_000


class TimedSource:
    """Records of two samples; a record's time is its newest sample's."""

    def __init__(
        self, times: dict[Partition, list[int]], *, per_record: dict | None = None
    ) -> None:
        self.times = times
        self.per_record = per_record or {}
        self.arrived_ms: int | None = None
        self.topic_id = "id"
        self.away = False

    def partitions(self):
        return sorted(self.times)

    def start_offsets(self):
        return dict.fromkeys(self.times, 0)

    def end_offsets(self):
        if self.away:
            raise SourceUnavailableError("no broker")
        return {partition: len(times) for partition, times in self.times.items()}

    def offsets_at(self, time_ms):
        return {
            partition: next(Place(o, t) for o, t in enumerate(times) if t >= time_ms)
            for partition, times in self.times.items()
            if any(t >= time_ms for t in times)
        }

    def identity(self, offsets):
        if self.away:
            raise SourceUnavailableError("no broker")
        return {partition.topic: self.topic_id for partition in self.times}

    def read(self, wanted: Range) -> ReadResult:
        times = self.times[wanted.partition][wanted.start : wanted.end]
        size = self.per_record.get(wanted.partition, 2)
        all_ = [time - min(back, 1) for time in times for back in reversed(range(size))]
        table = pa.table({"timestamp_ms": pa.array(all_, pa.int64())})
        return ReadResult(table, [], 0, time_ms=self.arrived_ms)

    def close(self) -> None:
        pass


class Run:
    """A feed and its ledger."""

    def __init__(
        self,
        source: TimedSource,
        *,
        samples_per_range: int = 4,
        batch_size: int = 2,
        kafka: list[str] | None = None,
        **stream,
    ) -> None:
        self.source = source
        brokers = {"bootstrap_servers": ["not-used:1"], "topics": kafka}
        config = TrainConfig(
            directory="d",
            source={"kafka": brokers} if kafka else {"archive": {"directory": "not-used"}},
            batch_size=batch_size,
            batches_per_range=samples_per_range // batch_size,
            stream=stream,
        )
        self.feed = Feed(source, config, ledger_lock=contextlib.nullcontext())
        self.feed.open()
        self.ledger = self.feed.first_ledger()
        self.feed.begin(self.ledger)
        self.now = 1e6

    def take(self) -> Range | None:
        self.now += 2.0
        self.feed.refresh(self.now)
        taken = self.feed.take(look_ahead=0, now=self.now)
        return None if taken is None else taken[0]

    def apply(self, done: Range) -> None:
        times = self.source.read(done).samples.column("timestamp_ms").to_pylist()
        totals = Totals(records=done.end - done.start, samples=len(times))
        self.ledger.commit(done, totals)
        batches = -(-len(times) // self.feed._config.batch_size)
        counts = {"samples": len(times), "batches": batches, "lost": 0}
        self.feed.note(done, counts | {"first_ms": min(times), "last_ms": max(times)})

    def drain(self) -> dict[Partition, int]:
        while (taken := self.take()) is not None:
            self.apply(taken)
        return self.ledger.offsets


def test_now_is_where_the_source_ended_when_the_run_began():
    run = Run(TimedSource({A: [1, 2, 3], B: [1]}), end="now")
    run.source.times[A].append(4)
    assert not run.feed.finished
    assert run.drain() == {A: 3, B: 1}
    assert run.feed.finished


def test_never_goes_on_with_what_comes_and_with_partitions_that_are_added():
    run = Run(TimedSource({A: [1, 2]}), end="never")
    assert run.drain() == {A: 2}
    run.source.times[A] += [3, 4]
    run.source.times[B] = [1, 2]
    run.now += 10
    assert run.drain() == {A: 4, B: 2}
    assert not run.feed.finished


def test_latest_begins_with_what_comes():
    run = Run(TimedSource({A: [1, 2]}), start="latest", end="never")
    assert run.drain() == {A: 2}
    assert run.ledger.totals.samples == 0
    run.source.times[A] += [3, 4]
    assert run.drain() == {A: 4}
    assert run.ledger.totals.samples == 4


def test_a_timestamp_ends_each_partition_before_the_first_record_that_reaches_it():
    end = {"timestamp": "1970-01-01T00:00:10Z"}
    run = Run(TimedSource({A: [9_000, 9_999, 10_000, 9_500], B: [1, 10_001]}), end=end)
    assert run.drain() == {A: 2, B: 1}
    assert run.feed.finished


def test_a_timestamp_to_come_is_waited_for():
    soon = "2100-01-01T00:00:00Z"
    run = Run(TimedSource({A: [1, 2], B: [1]}), end={"timestamp": soon})
    assert run.drain() == {A: 2, B: 1}
    assert not run.feed.finished
    run.source.times[A] += [3, 5_000_000_000_000]
    run.source.times[B] += [5_000_000_000_000]
    assert run.drain() == {A: 3, B: 1}
    assert run.feed.finished


@pytest.mark.parametrize(("wanted", "found"), [(1, 2), (8, 8), (9, 10), (13, 14)])
def test_so_many_samples_are_applied_rounded_up_to_records(wanted, found):
    run = Run(TimedSource({A: list(range(10)), B: list(range(10))}), end={"samples": wanted})
    in_flight = []
    while not run.feed.finished:
        while (taken := run.take()) is not None:
            in_flight.append(taken)
        run.apply(in_flight.pop())
    assert not in_flight
    assert run.ledger.totals.samples == found


def test_what_is_left_of_so_many_samples_is_told_in_records():
    source = TimedSource({A: [1] * 100, B: [1] * 100}, per_record={B: 6})
    run = Run(source, samples_per_range=12, end={"samples": 80})
    assert run.feed.remaining == 20  # 4 samples a record on average
    taken = run.take()
    before = run.feed.remaining
    assert before < 20
    run.apply(taken)
    assert run.feed.remaining == pytest.approx(before, abs=1)
    run.drain()
    assert (run.feed.remaining, run.feed.finished) == (0, True)
    assert Run(source, end={"samples": 10**6}).feed.remaining == 200  # no more than there is
    assert Run(source, end="never").feed.remaining == 200


def test_a_timestamp_to_begin_at():
    run = Run(
        TimedSource({A: [1, 5_000, 9_000], B: [1]}), start={"timestamp": "1970-01-01T00:00:05Z"}
    )
    assert run.ledger.offsets == {A: 1, B: 1}
    assert run.drain() == {A: 3, B: 1}


def test_a_run_that_begins_in_the_middle_keeps_its_partitions_together_from_there():
    times = {A: [h * HOUR for h in range(100)], B: [h * HOUR for h in range(100)]}
    run = Run(TimedSource(times), max_skew_seconds=4 * 3600)
    run.ledger.offsets |= {A: 90, B: 10}  # as a checkpoint may have it
    run.feed.begin(run.ledger)
    order = []
    while (taken := run.take()) is not None:
        order.append(taken.partition)
        run.apply(taken)
        assert run.feed.position().skew_ms < 81 * HOUR
    assert order.index(A) >= 36  # two records each: B comes from hour 10 to within four of A's 90
    assert run.ledger.offsets == {A: 100, B: 100}


def test_the_position_tells_watermark_skew_and_lag():
    run = Run(TimedSource({A: [1_000, 2_000, 3_000, 4_000], B: [1_500] * 4}))
    assert run.feed.position().watermark_ms is None  # nothing is applied
    run.apply(Range(A, 0, 2))
    run.apply(Range(A, 2, 4))
    run.apply(Range(B, 2, 4))  # before B's first: it has reached no time yet
    position = run.feed.position()
    assert position.lag == {"clicks": 0, "searches": 4}
    assert position.watermarks_ms == {"clicks": 4_000, "searches": None}
    assert position.watermark_ms is None
    run.apply(Range(B, 0, 1))
    position = run.feed.position()
    assert position.watermark_ms == 1_500
    assert position.newest_ms == 4_000
    assert position.skew_ms == 2_500
    run.apply(Range(B, 1, 2))
    position = run.feed.position()
    assert position.skew_ms == 0  # all have ended: nobody is ahead of anybody
    assert position.max_skew_ms == 2_500
    assert position.watermark_ms == 4_000


def test_a_source_that_is_away_is_waited_for_and_said_to_be_away():
    run = Run(TimedSource({A: [1]}), end="never")
    run.take()
    run.source.away = True
    assert run.take() is None
    assert run.feed.away
    run.source.away = False
    run.take()
    assert not run.feed.away
    run.source.away = True
    run.now += 1_000
    with pytest.raises(SourceUnavailableError):
        run.take()


def test_ranges_hold_the_same_samples_whatever_the_size_of_a_topics_records():
    source = TimedSource({A: [1] * 8, B: [1] * 640}, per_record={A: 160, B: 1})
    run = Run(source, samples_per_range=320, batch_size=32)
    lengths: dict[Partition, list[int]] = {A: [], B: []}
    while (taken := run.take()) is not None:
        lengths[taken.partition].append(taken.end - taken.start)
        run.apply(taken)
    assert lengths == {A: [2, 2, 2, 2], B: [320, 320]}


def test_ranges_follow_the_reports_of_ranges_when_records_change():
    source = TimedSource({A: [1] * 400}, per_record={A: 1})
    run = Run(source, samples_per_range=40, batch_size=4)
    run.apply(run.take())
    source.per_record[A] = 20
    run.apply(run.take())  # 40 records of 20 samples: nothing could know
    assert [(taken.start, taken.end) for taken in (run.take(), run.take())] == [(80, 82), (82, 84)]


def test_so_many_samples_are_applied_over_records_of_many_sizes():
    source = TimedSource({A: [1] * 8, B: [1] * 640}, per_record={A: 160, B: 1})
    run = Run(source, samples_per_range=320, batch_size=32, end={"samples": 1001})
    run.drain()
    assert run.feed.finished
    assert 1001 <= run.ledger.totals.samples <= 1160


def test_small_mini_batches_are_warned_of(caplog):
    run = Run(TimedSource({A: [1] * 1200}), samples_per_range=2, batch_size=2)
    run.drain()
    assert not caplog.messages
    run = Run(TimedSource({A: [1] * 1200}, per_record={A: 1}), samples_per_range=8, batch_size=8)
    with caplog.at_level(logging.WARNING):
        for start in range(600):
            run.apply(Range(A, start, start + 1))
    assert "the last 500 mini-batches held 1 samples" in caplog.text
    assert len(caplog.messages) == 1


@pytest.mark.parametrize(
    ("topics", "stream", "kept"),
    [
        (["clicks", "searches"], {}, True),
        (["clicks", "searches"], {"max_skew_seconds": None}, False),
        (["clicks"], {}, False),
        (None, {}, False),
    ],
)
def test_several_topics_of_kafka_are_kept_together_unless_switched_off(topics, stream, kept):
    times = {A: [h * HOUR for h in range(100)], B: [h * HOUR for h in range(50, 100)]}
    run = Run(TimedSource(times), kafka=topics, **stream)
    firsts = []
    for _ in range(4):
        firsts.append(run.take())
        run.apply(firsts[-1])
    assert ({taken.partition for taken in firsts} == {A}) is kept


def test_record_times_that_are_not_event_times_are_told_and_nothing_is_kept_together(caplog):
    source = TimedSource({A: [h * HOUR for h in range(100)], B: [1] * 50})
    source.arrived_ms = 1_000 * HOUR
    run = Run(source, kafka=["clicks", "searches"])
    assert run.feed._plan.watermark_ms is None
    assert "topic clicks partition 0 offset 0: found record time 3600000000, +3600000 s" in (
        caplog.text
    )
    assert "not kept together" in caplog.text
    caplog.clear()
    Run(source, kafka=["clicks"])  # nothing goes by record times
    assert not caplog.messages
    Run(source, kafka=["clicks"], start={"timestamp": "1970-01-01T00:00:00Z"})
    assert "expected the same" in caplog.text
    caplog.clear()
    source.times, source.arrived_ms = {A: [1], B: [1]}, 60_001  # a minute is nothing
    Run(source, kafka=["clicks", "searches"])
    assert not caplog.messages


def test_a_source_that_is_away_is_known_by_what_it_was_when_last_seen():
    run = Run(TimedSource({A: [1]}), end="never")
    run.take()
    run.source.away = True
    assert run.feed.identity({A: 1}) == {"clicks": "id"}
    assert run.feed.away
    run.source.away, run.source.topic_id = False, "other"
    run.take()
    assert run.feed.identity({A: 1}) == {"clicks": "other"}


def test_a_partition_that_is_gone_neither_holds_the_watermark_nor_is_waited_for():
    end = {"timestamp": "1970-01-01T00:00:10Z"}
    run = Run(TimedSource({A: [1_000, 20_000], B: []}), end=end)
    del run.source.times[B]
    run.apply(run.take())
    assert run.drain() == {A: 1, B: 0}
    run.feed.refresh(run.now + 10)
    assert run.feed.finished
