"""Each row once, whatever ends a publisher, with a real broker."""

from __future__ import annotations

import json
import random
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from kafka import KafkaAdminClient, KafkaProducer

from pipeline.publish import Progress, PublishConfig, Published, publish
from pipeline.publish.pacing import SystemClock
from pipeline.publish.transactions import ShutOutError, TransactionalWriter
from pipeline.schema import InputError
from pipeline.topics.connection import BrokerConnection
from tests.kafka.broker import Broker
from tests.pipeline.event_log import START
from tests.pipeline.publish.jobs import (
    PARTITIONS,
    ROWS,
    SCHEMA,
    found,
    options,
    wanted,
    write_folder,
    write_logs,
)
from tests.pipeline.publish.killed import publisher
from tests.waiting import wait_until

pytestmark = pytest.mark.kafka


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    write_logs(tmp_path / "logs")
    return tmp_path / "logs"


class StopError(Exception):
    """Ends a run in the middle."""


def run(settings: dict[str, Any], *, stop_at: int | None = None, **more: Any) -> Published:
    """Publishes; ends with `StopError` at a record."""

    def told(now: Progress) -> None:
        if stop_at is not None and now.records >= stop_at:
            raise StopError

    return publish(PublishConfig(**settings), SCHEMA, on_progress=told, **more)


class EveryRecord(SystemClock):
    """A clock by which each record takes two seconds, so that each is a transaction."""

    def __init__(self) -> None:
        self.time = 0.0

    def now(self) -> float:
        self.time += 1.0
        return self.time


def flat(records: dict[int, list[list[int]]]) -> dict[int, list[int]]:
    return {number: [row for some in each for row in some] for number, each in records.items()}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["samples", "events", "events at a speed"])
def test_killed_at_random_moments_a_job_leaves_neither_gaps_nor_doubles(
    tmp_path: Path, kafka: str, topic: str, kind: str
) -> None:
    events = kind != "samples"
    (write_logs if events else write_folder)(tmp_path / "rows")
    # 4,000 seconds at this speed, by the publisher's fast clock, take about two.
    speed = {"speed": 50.0} if kind.endswith("speed") else {}
    settings = options(tmp_path / "rows", kafka, topic, events=events, **speed)
    draw = random.Random(kind)
    for _ in range(5):
        process, told = publisher(settings)
        for _ in range(draw.randrange(30, 76)):  # of about 400 records
            told.recv()
        time.sleep(draw.uniform(0, 0.05))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    process, told = publisher(settings)
    with pytest.raises(EOFError):
        while True:
            told.recv()
    process.join()
    assert process.exitcode == 0
    records = found(kafka, topic)
    assert flat(records) == wanted()
    # The records are those of a run that nobody killed, too.
    run(options(tmp_path / "rows", kafka, f"{topic}-whole", events=events) | speed_of(speed))
    assert records == found(kafka, f"{topic}-whole")
    assert run(settings).was_finished


def speed_of(speed: dict[str, float]) -> dict[str, float]:
    """Returns a speed at which records are the same ones: those of ten rows are never too old."""
    return {name: value * 1000 for name, value in speed.items()}


def test_where_a_run_stopped_the_next_goes_on(logs: Path, kafka: str, topic: str) -> None:
    settings = options(logs, kafka, topic, events=True)
    with pytest.raises(StopError):
        run(settings, stop_at=7, clock=EveryRecord())
    # The seventh record's transaction was aborted.
    wait_until(lambda: sum(map(len, found(kafka, topic).values())) == 6, seconds=20)
    done = run(settings)
    assert (done.before, sum(count.samples for count in done.counts)) == (60, ROWS)
    assert flat(found(kafka, topic)) == wanted()


def test_killed_in_its_first_transaction_a_job_knows_its_topic_again(
    logs: Path, kafka: str, topic: str
) -> None:
    settings = options(logs, kafka, topic, events=True)
    with pytest.raises(StopError):
        run(settings, stop_at=1)
    # The topic is not empty: it has what was aborted.
    assert run(settings).before == 0
    assert flat(found(kafka, topic)) == wanted()


def test_times_that_are_shifted_stay_shifted_as_far_when_a_run_goes_on(
    logs: Path, kafka: str, topic: str
) -> None:
    settings = options(logs, kafka, topic, events=True, speed=1, shift="now")

    class Late(SystemClock):
        """A clock that begins later than the log, and moves only when somebody sleeps."""

        def __init__(self, start: int) -> None:
            self.time = START / 1000 + start

        def now(self) -> float:
            return self.time

        def sleep(self, seconds: float) -> None:
            self.time += seconds

    with pytest.raises(StopError):
        run(settings, stop_at=20, clock=Late(100_000))
    wait_until(lambda: sum(map(len, found(kafka, topic).values())) > 10, seconds=20)
    # An hour and more later what is overdue goes out at once, with the times it should have had.
    clock = Late(103_900)
    run(settings, clock=clock)
    moved = {number: [row + 100_000 for row in rows] for number, rows in wanted().items()}
    assert flat(found(kafka, topic)) == moved
    assert clock.time == START / 1000 + 100_000 + ROWS - 1


def test_a_run_that_is_finished_but_for_the_last_word_sends_nothing_more(
    logs: Path, kafka: str, topic: str
) -> None:
    settings = options(logs, kafka, topic, events=True, samples_per_record=1000)
    with pytest.raises(StopError):
        # Six records: 1,000 a partition, and what is left of each. All but the last are committed.
        run(settings, stop_at=6, clock=EveryRecord())
    done = run(settings)
    assert not done.was_finished
    assert run(settings).was_finished
    assert flat(found(kafka, topic)) == wanted()


def test_of_two_publishers_the_older_one_ends(logs: Path, kafka: str, topic: str) -> None:
    settings = options(logs, kafka, topic, events=True, speed=100.0)
    stands, go_on = threading.Event(), threading.Event()

    class Standing(SystemClock):
        """Stands still when some has been sent and is not yet committed."""

        def __init__(self) -> None:
            self.slept = 0

        def sleep(self, seconds: float) -> None:
            self.slept += 1
            if self.slept == 12:
                stands.set()
                assert go_on.wait(60)

    raised: list[BaseException] = []

    def older() -> None:
        try:
            run(settings, clock=Standing())
        except InputError as error:
            raised.append(error)

    thread = threading.Thread(target=older)
    thread.start()
    assert stands.wait(60)
    newer = run(settings | {"speed": 1e6})
    go_on.set()
    thread.join(60)
    (error,) = raised
    assert isinstance(error, ShutOutError)
    assert f"headrace-publish.{topic}.publish: found that this writer is shut out" in str(error)
    assert not newer.was_finished
    # The older one did not take it back, either.
    assert run(settings).was_finished
    assert flat(found(kafka, topic)) == wanted()


def test_a_broker_that_is_killed_and_comes_back_loses_nothing(
    logs: Path, own_broker: Broker, topic: str
) -> None:
    settings = options(logs, own_broker.bootstrap, topic, events=True)
    times = []

    def told(now: Progress) -> None:
        if now.records == 100:
            own_broker.kill()
            own_broker.start()
            times.append(now.records)

    publish(PublishConfig(**settings), SCHEMA, on_progress=told, clock=EveryRecord())
    assert times == [100]
    assert flat(found(own_broker.bootstrap, topic)) == wanted()


def test_a_change_of_files_or_settings_is_refused_with_its_name(
    logs: Path, kafka: str, topic: str
) -> None:
    settings = options(logs, kafka, topic, events=True)
    with pytest.raises(StopError):
        run(settings, stop_at=3, clock=EveryRecord())

    def refused(change: dict[str, Any], *texts: str, schema: pa.Schema = SCHEMA) -> None:
        with pytest.raises(InputError) as caught:
            publish(PublishConfig(**(settings | change)), schema)
        for text in (*texts, "Job 'publish' of topic", "began so, and goes on with nothing else"):
            assert text in str(caught.value)

    refused({"value_format": "json"}, "publish.value_format: found json; expected arrow")
    refused({"actions": ["click"]}, "publish.actions: found click; expected all")
    refused(
        {"value_format": "json", "malformed": "send"},
        "publish.malformed: found send; expected skip",
        "column 'headrace-raw'",
    )
    refused({"shift": "now", "speed": 1}, "publish.shift: found now; expected none")
    wider = SCHEMA.append(pa.field("age", pa.int64()))
    refused({}, "specification: column 'age': found int64; expected none", schema=wider)

    first, second = (logs / "0.jsonl").read_bytes(), (logs / "1.jsonl").read_bytes()
    (logs / "0.jsonl").write_bytes(first + first.splitlines(keepends=True)[0])
    (logs / "1.jsonl").rename(logs / "9.jsonl")
    refused(
        {},
        "publish.events: found files 1 changed (0.jsonl), 1 more (9.jsonl), 1 missing (1.jsonl);"
        " expected the 3 files as they were",
    )
    (logs / "0.jsonl").write_bytes(first)
    (logs / "9.jsonl").rename(logs / "1.jsonl")
    assert (logs / "1.jsonl").read_bytes() == second
    moved = logs.with_name("moved")
    logs.rename(moved)
    admin = KafkaAdminClient(bootstrap_servers=kafka)
    # What shapes no row may change: where the files are, record sizes, compression, pace.
    free = {"samples_per_record": 33, "compression": "zstd", "speed": 1e9, "append": True}
    run(settings | {"events": [str(moved)]} | free)
    assert flat(found(kafka, topic)) == wanted()
    admin.create_partitions({topic: PARTITIONS + 1})
    admin.close()
    with pytest.raises(InputError, match=r"publish.topic: found 4 partitions; expected 3 part"):
        run(settings | {"events": [str(moved)], "create_partitions": None})


def test_changed_samples_are_refused_with_the_names_of_their_files(
    tmp_path: Path, kafka: str, topic: str
) -> None:
    write_folder(tmp_path)
    settings = options(tmp_path, kafka, topic, events=False)
    with pytest.raises(StopError):
        run(settings, stop_at=3, clock=EveryRecord())
    manifest = (tmp_path / "manifest.json").read_text()
    digest = json.loads(manifest)["files"][1]["sha256"]
    (tmp_path / "manifest.json").write_text(manifest.replace(digest, "0" * 64))
    name = json.loads(manifest)["files"][1]["path"]
    with pytest.raises(InputError, match=rf"publish.directory: found files 1 changed \({name}\)"):
        run(settings)
    (tmp_path / "manifest.json").write_text(manifest)
    with pytest.raises(InputError, match=r"publish.speed: found one; expected none"):
        run(settings | {"speed": 1e6})
    run(settings)
    assert flat(found(kafka, topic)) == wanted()


def test_a_word_behind_another_jobs_open_transaction_is_not_overlooked(
    logs: Path, kafka: str, topic: str
) -> None:
    progress = f"{topic}-progress"
    settings = options(logs, kafka, topic, events=True, progress_topic=progress)
    other = KafkaProducer(bootstrap_servers=kafka, transactional_id=f"{topic}-other")
    other.init_transactions()

    def told(now: Progress) -> None:
        if now.records == 10:
            other.begin_transaction()
            other.send(progress, b"{}", key=b"other", partition=0).get(30)
        if now.records == 50:
            raise StopError

    with pytest.raises(StopError):
        publish(PublishConfig(**settings), SCHEMA, on_progress=told, clock=EveryRecord())
    ends = threading.Timer(3.0, other.commit_transaction)
    ends.start()
    done = run(settings)
    ends.join()
    other.close()
    assert done.before == 490
    assert flat(found(kafka, topic)) == wanted()


def test_a_writer_reads_its_newest_words_and_nobody_elses(kafka: str, topic: str) -> None:
    connection = BrokerConnection(bootstrap_servers=[kafka])

    def writer(name: str) -> TransactionalWriter:
        return TransactionalWriter(connection, f"{topic}-{name}", topic=topic)

    first = writer("a")
    assert first.take_over(["a", "b"]) == {}
    first.commit({"a": b"1", "b": b"1"})
    first.commit({"a": b"2"})
    second = writer("b")
    assert second.take_over(["b"]) == {"b": b"1"}
    second.commit({"c": b"3"})
    again = writer("a")
    assert again.take_over(["a", "b", "c"]) == {"a": b"2", "b": b"1", "c": b"3"}
    with pytest.raises(ShutOutError):
        first.commit({"a": b"4"})
    again.commit({"a": b"5"})
    for each in (first, second, again):
        each.close()
