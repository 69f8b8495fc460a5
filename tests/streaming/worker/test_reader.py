"""What a worker reads: order, times, and how much ahead."""

from __future__ import annotations

import numpy as np
import pytest

from streaming.config import StreamConfig
from streaming.source import Partition, Range, Reject
from streaming.worker.dead_letters import DeadLetterFiles
from streaming.worker.reader import COUNTS, NO_TIME, RangeReader, Status, shuffled

import tensorflow as tf  # isort: skip

from models.contract import Input
from tests.streaming.worker.ranges import NumberSource

CLICKS, VIEWS = Partition("clicks", 0), Partition("views", 1)


def make(tmp_path, **stream: int) -> tuple[NumberSource, RangeReader]:
    source = NumberSource()
    inputs = [Input(name="item_id", dtype=tf.int64, table="any")]
    return source, RangeReader(
        source, inputs, dead_letters=DeadLetterFiles(tmp_path), stream=StreamConfig(**stream)
    )


def read(reader: RangeReader, wanted: Range, likely: Range | None = None) -> list[np.ndarray]:
    following = likely or Range(wanted.partition, 0, 0)
    topics = np.array([r.partition.topic.encode() for r in (wanted, following)], object)
    numbers = [n for r in (wanted, following) for n in (r.partition.number, r.start, r.end)]
    return reader._read_for_graph(topics, np.array(numbers))


def settle(reader: RangeReader) -> None:
    """Waits for a read ahead."""
    if reader._ahead is not None:
        reader._ahead[1].result()


def test_a_range_tells_the_times_of_its_oldest_and_newest_sample(tmp_path):
    _, reader = make(tmp_path)
    assert read(reader, Range(CLICKS, 3, 9))[0].tolist() == [Status.OK, 6, 0, 0, 30, 80, 0]
    none = [Status.OK, 0, 0, 0, NO_TIME, NO_TIME, 0]
    assert read(reader, Range(CLICKS, 3, 3))[0].tolist() == none


def test_without_a_window_the_order_is_the_streams(tmp_path):
    _, reader = make(tmp_path, shuffle_window=0)
    assert read(reader, Range(CLICKS, 3, 9))[2].tolist() == [3, 4, 5, 6, 7, 8]


def test_samples_change_places_within_their_window_and_never_beyond():
    order = shuffled(Range(CLICKS, 0, 100), 100, window=20)
    assert sorted(order) == list(range(100))
    for start in range(0, 100, 20):
        block = order[start : start + 20].tolist()
        assert sorted(block) == list(range(start, start + 20))
        assert block != sorted(block)


def test_a_retry_sees_the_same_order_and_another_range_another():
    first = shuffled(Range(CLICKS, 7, 50), 43, window=1000).tolist()
    assert shuffled(Range(CLICKS, 7, 50), 43, window=1000).tolist() == first
    assert shuffled(Range(CLICKS, 8, 51), 43, window=1000).tolist() != first
    assert shuffled(Range(CLICKS, 7, 50), 43, window=1000, seed=2).tolist() != first
    assert shuffled(Range(VIEWS, 7, 50), 43, window=1000).tolist() != first
    # In every process, today and tomorrow: not by the builtin hash.
    assert shuffled(Range(CLICKS, 7, 50), 6, window=3).tolist() == [1, 0, 2, 4, 5, 3]


def test_a_range_of_another_topic_is_read_ahead_and_used(tmp_path):
    source, reader = make(tmp_path)
    likely = Range(VIEWS, 0, 10)
    read(reader, Range(CLICKS, 0, 10), likely)
    settle(reader)
    assert source.reads[-1] == likely
    assert sorted(read(reader, likely)[2]) == list(range(10))
    assert len(source.reads) == 2


def test_a_hint_that_was_wrong_costs_a_read_and_nothing_else(tmp_path):
    _, reader = make(tmp_path)
    read(reader, Range(CLICKS, 0, 10), Range(VIEWS, 0, 10))
    settle(reader)
    assert sorted(read(reader, Range(VIEWS, 5, 9))[2]) == [5, 6, 7, 8]


@pytest.mark.parametrize(("read_ahead_bytes", "ahead"), [(80, True), (79, False), (0, False)])
def test_no_range_is_read_ahead_that_would_take_more_bytes_than_allowed(
    tmp_path, read_ahead_bytes, ahead
):
    source, reader = make(tmp_path, read_ahead_bytes=read_ahead_bytes)
    likely = Range(CLICKS, 10, 20)  # ten numbers of eight bytes
    read(reader, Range(CLICKS, 0, 10), likely)
    settle(reader)
    assert (likely in source.reads) == ahead


def test_a_range_that_turns_out_larger_than_allowed_is_not_kept(tmp_path):
    source, reader = make(tmp_path, read_ahead_bytes=100)
    large = Range(CLICKS, 10, 20)
    read(reader, Range(CLICKS, 0, 10))
    source.samples_per_record = 2  # the ten of before had 80 bytes, these have 160
    read(reader, Range(CLICKS, 5, 5), large)
    assert reader._ahead is not None
    assert reader._ahead[1].result() is None
    assert len(read(reader, large)[2]) == 20
    assert source.reads.count(large) == 2
    read(reader, large, Range(CLICKS, 20, 30))  # records are known to be larger by now
    assert reader._ahead is None


def test_a_range_says_whether_it_had_been_read_ahead(tmp_path):
    _, reader = make(tmp_path)
    ranges = [Range(CLICKS, start, start + 10) for start in (0, 10, 30, 20)]
    hits = []
    for wanted, likely in zip(ranges, [ranges[1], Range(CLICKS, 20, 30), None, None], strict=True):
        hits.append(read(reader, wanted, likely)[0][COUNTS.index("ahead")])
    assert hits == [0, 1, 0, 0]


def test_rejects_are_kept_when_a_range_is_run_and_not_when_it_is_read_ahead(tmp_path):
    source, reader = make(tmp_path)
    source.rejects = [Reject(5, "undecodable", "found nothing", b"?")]
    read(reader, Range(CLICKS, 0, 5), Range(CLICKS, 5, 10))
    settle(reader)
    assert [path.name for path in tmp_path.iterdir()] == ["clicks-0-0-5.parquet"]
    counts = read(reader, Range(CLICKS, 5, 10))[0]
    assert counts[COUNTS.index("rejects")] == counts[COUNTS.index("ahead")] == 1
    assert {path.name for path in tmp_path.iterdir()} == {
        "clicks-0-0-5.parquet",
        "clicks-0-5-10.parquet",
    }


READER = "streaming.worker.reader"


def test_rejects_are_told_at_once_and_then_every_ten_seconds(tmp_path, caplog, monkeypatch):
    source, reader = make(tmp_path)
    now = 100.0
    monkeypatch.setattr("streaming.worker.reader.time.monotonic", lambda: now)
    source.rejects = [Reject(4, "undecodable", "found 3 bytes", b"?")]
    for start in range(0, 20, 5):
        read(reader, Range(CLICKS, start, start + 5))
    (line,) = [record.getMessage() for record in caplog.records if record.name == READER]
    assert line == (
        "rejected 1 records, the latest of clicks, partition 0, offsets 0 to 4: offset 4,"
        " undecodable: found 3 bytes"
    )
    source.rejects, now = [], 111.0
    read(reader, Range(CLICKS, 20, 25))
    read(reader, Range(CLICKS, 25, 30))
    _, line = [record.getMessage() for record in caplog.records if record.name == READER]
    assert line.startswith(
        "rejected 3 records, the latest of clicks, partition 0, offsets 15 to 19"
    )


def test_a_range_whose_rejects_cannot_be_kept_is_not_learned(tmp_path):
    source, reader = make(tmp_path / "dead")
    source.rejects = [Reject(5, "undecodable", "found nothing", b"?")]
    (tmp_path / "dead").write_text("a file where a folder should be")
    counts, detail, *columns = read(reader, Range(CLICKS, 0, 10))
    assert counts[0] == Status.UNAVAILABLE
    assert b"dead" in detail.item()
    assert columns[0].size == 0
