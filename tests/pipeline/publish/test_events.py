"""Event logs to topics: forms, partitions, order, and rows that are no events."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.events.json_lines import parse_json_lines
from pipeline.publish import PublishConfig, publish
from pipeline.publish.pacing import Clock
from pipeline.schema import InputError
from pipeline.shuffle import hash_keys
from pipeline.topics.record import ARROW_FORMAT, JSON_FORMAT, decode
from tests.pipeline.event_log import START, event, specification
from tests.pipeline.publish.reading import committed, forms
from tests.sample_folder import write_samples
from tests.waiting import wait_until

SPECIFICATION = specification(columns={"ids": "list<int64>", "text": "string"})
SCHEMA = SPECIFICATION.event_schema
TYPES = SPECIFICATION.event_types


def log() -> list[dict[str, Any]]:
    """Sixty events of seven users over a minute; ids, texts and optional columns here and there."""
    rows = []
    for number in range(60):
        row = event(f"e{number:02}", 997 * number, number % 7, number, text=f'"{number}"\nü')
        if number % 3 == 0:
            row |= {"action": "click", "play_seconds": 0.1, "ids": [number, 1]}
        rows.append(row)
    return rows


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    """The events in no order, in a file of each kind."""
    folder = tmp_path / "logs"
    (folder / "later").mkdir(parents=True)
    rows = log()
    # Another order, and the files' names are not in that of time either.
    shuffled = [rows[(number * 37) % 60] for number in range(60)]
    table = pa.Table.from_pylist(shuffled[:20], SCHEMA)
    pq.write_table(table, folder / "later" / "a.parquet", row_group_size=7)
    (folder / "b.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in shuffled[20:40]))
    with gzip.open(folder / "c.jsonl.gz", "wt") as file:
        file.writelines(f"{json.dumps(row)}\n" for row in shuffled[40:])
    return folder


def config(logs: Path, kafka: str, topic: str, **options: Any) -> PublishConfig:
    options = {"create_partitions": 3, "samples_per_record": 4, "events": [str(logs)]} | options
    return PublishConfig(bootstrap_servers=[kafka], topic=topic, **options)


def events(kafka: str, topic: str) -> dict[int, list[dict[str, Any]]]:
    """Returns the events of each partition, from Arrow or JSON records."""
    found = {}
    for number, records in committed(kafka, topic).items():
        tables = [SCHEMA.empty_table()]
        for record in records:
            if dict(record.headers)["headrace-format"] == ARROW_FORMAT:
                tables.append(decode(record.value, schema=SCHEMA, where="here"))
            else:
                table, rows, rejects, _ = parse_json_lines(record.value, TYPES)
                assert (list(rows), rejects) == ([0], [])
                tables.append(table)
        found[number] = pa.concat_tables(tables).to_pylist()
    return found


def wanted(rows: list[dict[str, Any]]) -> dict[int, list[dict[str, Any]]]:
    """Returns these events, in their order, by the partition of their users."""
    table = pa.Table.from_pylist(rows, SCHEMA)
    numbers = (hash_keys(table["user_id"]) % 3).tolist()
    return {n: table.filter(pa.array([m == n for m in numbers])).to_pylist() for n in range(3)}


@pytest.mark.kafka
@pytest.mark.parametrize("value_format", ["arrow", "json"])
def test_events_of_all_files_arrive_once_by_user_and_in_the_order_of_time(
    logs: Path, kafka: str, topic: str, value_format: str
) -> None:
    found = publish(config(logs, kafka, topic, value_format=value_format), SCHEMA)
    assert events(kafka, topic) == wanted(log())
    assert {len(rows) for rows in wanted(log()).values()} != {0}
    records = committed(kafka, topic)
    assert forms(records) == {ARROW_FORMAT if value_format == "arrow" else JSON_FORMAT}
    per_record = 4 if value_format == "arrow" else 1
    for count in found.counts:
        rows = wanted(log())[count.partition]
        times = [row["timestamp_ms"] for row in rows]
        assert (count.samples, count.records) == (len(rows), -(-len(rows) // per_record))
        # A record's time is that of its newest event.
        newest = [max(times[n : n + per_record]) for n in range(0, len(times), per_record)]
        assert [record.timestamp for record in records[count.partition]] == newest
        assert count.bytes == sum(len(record.value) for record in records[count.partition])


@pytest.mark.kafka
def test_a_topic_for_each_group_of_actions(logs: Path, kafka: str, topic: str) -> None:
    publish(config(logs, kafka, topic, actions=["impression"]), SCHEMA)
    publish(config(logs, kafka, f"{topic}-o", actions=["click", "purchase"]), SCHEMA)
    shown = [row for row in log() if row["action"] == "impression"]
    taken = [row for row in log() if row["action"] == "click"]
    assert (len(shown), len(taken)) == (40, 20)
    assert events(kafka, topic) == wanted(shown)
    assert events(kafka, f"{topic}-o") == wanted(taken)
    with pytest.raises(InputError, match=r"found no event of follow in 3 files; expected some"):
        publish(config(logs, kafka, f"{topic}-f", actions=["follow"]), SCHEMA)


GOOD = [event(f"g{n}", 1000 * n, 5, n) for n in range(3)]
BAD = {
    "no json": b'{"event_id": "x", ',
    "no user": json.dumps(event("n", 7, None, 1)).encode(),
    "no event id": json.dumps(event("n", 7, 1, 1) | {"event_id": None}).encode(),
    "another unit": json.dumps(event("s", 0, 1, 1) | {"timestamp_ms": START // 1000}).encode(),
    "another type": json.dumps(event("t", 7, "u", 1)).encode(),
}
# What is wrong with these is for those to find who read them.
ODD = event("o", 1500, 5, None) | {"scenario": "nowhere", "action": "smile"}


@pytest.fixture
def dirty(tmp_path: Path) -> Path:
    """A log with rows that have no place in a topic behind the first and the last good one."""
    lines = [json.dumps(row).encode() for row in (*GOOD, ODD)]
    bad = list(BAD.values())
    text = b"\n".join([lines[0], *bad[:3], lines[1], lines[2], *bad[3:], lines[3]])
    (tmp_path / "dirty.jsonl").write_bytes(text + b"\n")
    return tmp_path / "dirty.jsonl"


@pytest.mark.kafka
def test_rows_that_have_no_place_are_counted_and_left_out(
    dirty: Path, kafka: str, topic: str, caplog: pytest.LogCaptureFixture
) -> None:
    found = publish(config(dirty, kafka, topic, create_partitions=1), SCHEMA)
    assert [row["event_id"] for row in events(kafka, topic)[0]] == ["g0", "g1", "o", "g2"]
    assert found.rejects == {
        "not_json": 1,
        "missing_column_value": 2,
        "implausible_timestamp": 1,
        "wrong_type": 1,
    }
    (said,) = [r.getMessage() for r in caplog.records if r.name.endswith("events")]
    assert said.startswith(f"{dirty}: row 2: not_json: ")
    assert said.endswith("such rows are left out, and counted")


@pytest.mark.kafka
def test_rows_that_have_no_place_are_sent_as_they_are_behind_those_before_them(
    dirty: Path, kafka: str, topic: str
) -> None:
    options: dict[str, Any] = {"value_format": "json", "malformed": "send"}
    publish(config(dirty, kafka, topic, create_partitions=1, **options), SCHEMA)
    (records,) = committed(kafka, topic).values()
    names = {value: name for name, value in BAD.items()}
    names |= {json.dumps(row, separators=(",", ":")).encode(): row["event_id"] for row in GOOD}
    found = [names.get(record.value) or json.loads(record.value)["event_id"] for record in records]
    # Beside the event before them in the file: what has no time of its own takes that one's.
    assert found == [*list(BAD)[:3], "g0", "g1", "o", *list(BAD)[3:], "g2"]


@pytest.mark.kafka
def test_a_parquet_row_without_a_user_is_sent_as_an_object(
    tmp_path: Path, kafka: str, topic: str
) -> None:
    rows = [event("g", 1000, 5, 1), event("n", 2000, None, 2)]
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), tmp_path / "a.parquet")
    options: dict[str, Any] = {"value_format": "json", "malformed": "send"}
    publish(config(tmp_path, kafka, topic, create_partitions=1, **options), SCHEMA)
    found = [json.loads(record.value) for record in committed(kafka, topic)[0]]
    assert {row["event_id"]: row["user_id"] for row in found} == {"g": 5, "n": None}


@pytest.mark.kafka
def test_files_that_are_no_logs_are_named(tmp_path: Path, kafka: str, topic: str) -> None:
    with pytest.raises(InputError, match=r"publish.events: 'nowhere': found no file"):
        publish(config(tmp_path, kafka, topic, events=["nowhere"]), SCHEMA)
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(InputError, match=r"a.parquet: found no whole Parquet file"):
        publish(config(tmp_path, kafka, topic), SCHEMA)
    (tmp_path / "a.parquet").unlink()
    (tmp_path / "a.jsonl").write_text('{"event_id": "e"}\n')
    with pytest.raises(InputError, match=r"a.jsonl: .*user_id.*: found no such column"):
        publish(config(tmp_path, kafka, topic), SCHEMA)


class Hands:
    """A clock that moves only when somebody sleeps."""

    def __init__(self, now: float) -> None:
        self.time = now
        self.slept: list[float] = []

    def now(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        assert seconds >= 0
        self.slept.append(seconds)
        self.time += seconds


@pytest.mark.kafka
def test_at_speed_6_a_minute_takes_ten_seconds_and_records_are_at_most_one_old(
    logs: Path, kafka: str, topic: str
) -> None:
    clock = Hands(5e8)
    _: Clock = clock
    sent: list[tuple[float, int]] = []
    publish(
        config(logs, kafka, topic, speed=6.0, samples_per_record=1000),
        SCHEMA,
        clock=clock,
        on_progress=lambda now: now.event_ms and sent.append((clock.time - 5e8, now.event_ms)),
    )
    assert events(kafka, topic) == wanted(log())
    # Event time passes six times as fast: a record is sent when the clock has come to its time.
    first = START
    for seconds, event_ms in sent:
        assert seconds == pytest.approx((event_ms - first) / 6000, abs=1e-6)
    assert clock.time - 5e8 == pytest.approx(59 * 997 / 6000, abs=1.0)
    for records in committed(kafka, topic).values():
        for record in records:
            times = decode(record.value, schema=SCHEMA, where="")["timestamp_ms"].to_pylist()
            # At most a second old when it is sent: six of event time.
            assert times[-1] - times[0] < 6000
        assert len(records) >= 9


@pytest.mark.kafka
def test_a_full_record_does_not_wait_for_its_second(logs: Path, kafka: str, topic: str) -> None:
    clock = Hands(5e8)
    options: dict[str, Any] = {"speed": 60, "samples_per_record": 2, "create_partitions": 1}
    publish(config(logs, kafka, topic, **options), SCHEMA, clock=clock)
    sizes = [
        decode(record.value, schema=SCHEMA, where="").num_rows
        for record in committed(kafka, topic)[0]
    ]
    assert sizes == [2] * 30


@pytest.mark.kafka
def test_what_is_sent_is_committed_before_a_long_wait(
    tmp_path: Path, kafka: str, topic: str
) -> None:
    rows = [event("a", 0, 1, 1), event("b", 3_600_000, 1, 2)]
    (tmp_path / "a.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    long: list[float] = []

    class Watching(Hands):
        def sleep(self, seconds: float) -> None:
            if seconds > 1000:
                long.append(seconds)
                wait_until(lambda: sum(map(len, committed(kafka, topic).values())) == 1, seconds=20)
            super().sleep(seconds)

    publish(config(tmp_path, kafka, topic, speed=1), SCHEMA, clock=Watching(5e8))
    assert len(long) == 1
    assert sum(map(len, committed(kafka, topic).values())) == 2


@pytest.mark.kafka
def test_shifted_events_are_of_the_moment_they_are_sent(logs: Path, kafka: str, topic: str) -> None:
    # Later than the log's own time, by seventeen days and a bit.
    moment = START / 1000 + 1_500_000.123
    clock = Hands(moment)
    options: dict[str, Any] = {"speed": 1, "shift": "now", "value_format": "json"}
    publish(config(logs, kafka, topic, **options), SCHEMA, clock=clock)
    moved = [row | {"timestamp_ms": row["timestamp_ms"] + 1_500_000_123} for row in log()]
    assert events(kafka, topic) == wanted(moved)
    assert clock.time - moment == pytest.approx(59 * 0.997, abs=0.1)


@pytest.mark.kafka
def test_samples_at_a_speed_come_in_the_order_of_time_over_all_files(
    tmp_path: Path, kafka: str, topic: str
) -> None:
    schema = pa.schema([("timestamp_ms", pa.int64()), ("user_id", pa.int64())])

    def part(user: int, *times: int) -> pa.Table:
        return pa.table([times, [user] * len(times)], schema=schema)

    tables = {("2026-01-01", 0): part(0, 1, 5), ("2026-01-01", 2): part(2, 2, 3, 9)}
    tables |= {("2026-01-01", 1): part(1, 4), ("2026-01-02", 0): part(0, 20)}
    write_samples(tmp_path, tables)
    options: dict[str, Any] = {"events": None, "directory": tmp_path, "create_partitions": 2}
    publish(config(tmp_path, kafka, topic, speed=1e6, **options), schema, clock=Hands(0))
    found = {
        number: [
            (row["timestamp_ms"], row["user_id"])
            for record in records
            for row in decode(record.value, schema=schema, where="").to_pylist()
        ]
        for number, records in committed(kafka, topic).items()
    }
    assert found == {0: [(1, 0), (2, 2), (3, 2), (5, 0), (9, 2), (20, 0)], 1: [(4, 1)]}
