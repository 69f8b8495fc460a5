"""A stream in real time: how long samples take, and what becomes of them when processes die."""

from __future__ import annotations

import contextlib
import dataclasses
import random
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import numpy as np
import pyarrow as pa

from jobs.bench.join import headrace, rival
from jobs.bench.join.events import Stream, Verdict, judge, make_stream, naive_join
from jobs.bench.join.headrace import Join, end_process, kill
from jobs.bench.join.producer import Producer, Sent, moved
from jobs.bench.join.rival import QuixJoin
from jobs.bench.join.topics import GroupOffsets, Watcher, create_topic
from jobs.bench.report import Cell
from jobs.bench.stream.processor import processor_seconds
from pipeline import schema as s

_FIRST_SECONDS: Final = 120.0
_MOST_STALL_SECONDS: Final = 180.0
_MOST_WAIT_SECONDS: Final = 4.0
_EVERY: Final = 4
_SETTLE_SECONDS: Final = 60.0
_POLL_SECONDS: Final = 0.05
_QUIET_SECONDS: Final = 3.0
_MARGIN_SECONDS: Final = 0.5  # the last events may be no newer


def expected_samples(stream: Stream, sent: Sent) -> pa.Table:
    """Returns the samples in what a producer sent."""
    events = moved(make_stream(stream, start_ms=0).slice(0, sent.events), sent.start_ms)
    return naive_join(events, stream.window_ms)


@contextlib.contextmanager
def _watched(join: Join | QuixJoin) -> Iterator[Watcher]:
    """Makes a join's topics, and watches what it writes."""
    create_topic(join.address, join.events_topic, join.stream.partitions)
    create_topic(join.address, join.samples_topic, join.stream.partitions)
    with Watcher(join.address, join.samples_topic) as watcher:
        yield watcher


@contextlib.contextmanager
def _flowing(join: Join | QuixJoin) -> Iterator[tuple[Watcher, Producer]]:
    """The same, and sends it its stream as it happens."""
    with (
        _watched(join) as watcher,
        Producer(join.address, join.events_topic, join.stream) as producer,
    ):
        yield watcher, producer


def delays(join: Join) -> dict[str, Cell]:
    """Joins a stream as it happens; tells how long after its window's closing a sample is there.

    A window closes at its impression's time + window + lateness. What closes about the stream's
    end or after it, by the clock alone, is joined and compared, but not timed.
    """
    with _watched(join) as watcher:
        process = join.start()
        try:
            _await_ready(join, process)
            with Producer(join.address, join.events_topic, join.stream) as producer:
                before = processor_seconds(process.pid)
                sent = producer.wait()
                used = processor_seconds(process.pid) - before
            while watcher.wait_for_more(time.time(), timeout=_QUIET_SECONDS) is not None:
                pass
            if process.poll() is not None:
                raise join.failure(process.returncode)
        finally:
            end_process(process)
        join.run(end="closed")
        watcher.drain()
        late = _delays(watcher.seen, join.stream, sent)
        found = headrace.samples_of(watcher.values())
    verdict = judge(found, expected_samples(join.stream, sent))
    row: dict[str, Cell] = {
        "way": "headrace, json",
        "events": sent.events,
        "events/s sent": round(sent.rate),
        "sent late, worst ms": round(sent.worst_behind_ms),
        "timed": len(late),
        "p50 s": _percentile(late, 50),
        "p99 s": _percentile(late, 99),
        "max s": _percentile(late, 100),
        "join CPU s": round(used, 1),
        "stale": join.totals()["stale"],
    }
    return row | verdict.cells()


def _await_ready(join: Join, process: subprocess.Popen[bytes]) -> None:
    """Waits until it has taken its partitions."""
    deadline = time.monotonic() + _FIRST_SECONDS
    while not join.progress():
        if process.poll() is not None or time.monotonic() > deadline:
            raise join.failure(end_process(process))
        time.sleep(_POLL_SECONDS)


def _delays(seen: Sequence[tuple[float, list[bytes]]], stream: Stream, sent: Sent) -> np.ndarray:
    # As event time is counted: a producer that is behind ends later, without newer events.
    over_ms = sent.start_ms + 1000 * (min(stream.seconds, sent.seconds) - _MARGIN_SECONDS)
    found = [np.empty(0)]
    for at, values in seen:
        for samples in headrace.samples_of(values):
            closed = samples[s.TIMESTAMP_MS].to_numpy() + stream.window_ms + stream.disorder_ms
            found.append(at - closed[closed <= over_ms] / 1000)
    return np.concatenate(found)


def _percentile(values: np.ndarray, percent: float) -> float:
    return round(float(np.percentile(values, percent)), 3) if len(values) else float("nan")


@dataclasses.dataclass(frozen=True, slots=True)
class _Killed:
    """What came of kills: seconds without a new sample after each, and how many more there were."""

    stalls: list[float]
    amid_start: int


def kills_of_headrace(join: Join, kills: int, *, seed: int) -> dict[str, Cell]:
    """Kills joiners at random moments under load; every fourth one while it starts or replays."""
    with _flowing(join) as (watcher, producer):
        killed = _kill_often(join.start, watcher, kills=kills, seed=seed, amid_start=True)
        loaded = producer.running
        sent = producer.stop() if loaded else producer.wait()
        join.run(end="closed")
        watcher.drain()
        found = headrace.samples_of(watcher.values())
    verdict = judge(found, expected_samples(join.stream, sent))
    return _kill_row("headrace, json", killed, sent, verdict, loaded=loaded)


def kills_of_rival(join: QuixJoin, kills: int, *, seed: int) -> dict[str, Cell]:
    """The same of quixstreams, but none while it starts: it would not come out of that."""
    with _flowing(join) as (watcher, producer):
        killed = _kill_often(join.start, watcher, kills=kills, seed=seed, amid_start=False)
        loaded = producer.running
        sent = producer.stop() if loaded else producer.wait()
        process = join.start()
        try:
            deadline = time.monotonic() + _MOST_STALL_SECONDS
            with GroupOffsets(join.address, join.name, join.events_topic) as group:
                while group.done() < sent.events and time.monotonic() < deadline:
                    time.sleep(_POLL_SECONDS)
        finally:
            end_process(process, seconds=5.0)
        watcher.drain()
        found = rival.samples_of(watcher.values())
    verdict = judge(found, expected_samples(join.stream, sent))
    way = f"quixstreams, json, {join.mode}, {join.restarts} restarts"
    return _kill_row(way, killed, sent, verdict, loaded=loaded)


def _kill_often(
    start: Callable[[], subprocess.Popen[bytes]],
    watcher: Watcher,
    *,
    kills: int,
    seed: int,
    amid_start: bool,
) -> _Killed:
    draw = random.Random(seed)
    stalls: list[float] = []
    amid = 0
    process = start()
    try:
        since = time.time()
        if watcher.wait_for_more(since, timeout=_FIRST_SECONDS) is None:
            raise RuntimeError("found no first sample")
        while len(stalls) + amid < kills:
            time.sleep(draw.uniform(0.0, _MOST_WAIT_SECONDS))
            since = kill(process)
            process = start()
            if amid_start and len(stalls) % _EVERY == _EVERY - 1 and len(stalls) + amid + 1 < kills:
                time.sleep(draw.uniform(0.0, statistics.median(stalls)))
                since = kill(process)
                amid += 1
                process = start()
            again = watcher.wait_for_more(since, timeout=_MOST_STALL_SECONDS)
            stalls.append((again or time.time()) - since)
    finally:
        end_process(process)
    return _Killed(stalls, amid)


def _kill_row(
    way: str, killed: _Killed, sent: Sent, verdict: Verdict, *, loaded: bool
) -> dict[str, Cell]:
    row: dict[str, Cell] = {
        "way": way,
        "kills": len(killed.stalls) + killed.amid_start,
        "events": sent.events,
        "events/s": round(sent.rate),
        "under load": "to the end" if loaded else "not to the end",
        "stall p50 s": round(statistics.median(killed.stalls), 1),
        "stall max s": round(max(killed.stalls), 1),
    }
    return row | verdict.cells()


def two_at_once(join: Join) -> dict[str, Cell]:
    """Starts a second joiner beside one that runs, then two more at the same moment."""
    running: list[subprocess.Popen[bytes]] = []
    try:
        with _flowing(join) as (watcher, producer):
            running.append(join.start())
            if watcher.wait_for_more(time.time(), timeout=_FIRST_SECONDS) is None:
                raise RuntimeError(f"found no first sample\n{join.log[-4000:]}")
            ends = []
            for more in (1, 2):
                started = time.monotonic()
                running += [join.start() for _ in range(more)]
                ends += list(_all_but_one_end(running, started))
            watcher.wait_for_more(time.time(), timeout=_SETTLE_SECONDS)
            left = sum(process.poll() is None for process in running)
            sent = producer.stop() if producer.running else producer.wait()
            for process in running:
                end_process(process)
            join.run(end="closed")
            watcher.drain()
            found = headrace.samples_of(watcher.values())
    finally:
        for process in running:
            end_process(process)
    verdict = judge(found, expected_samples(join.stream, sent))
    row: dict[str, Cell] = {
        "way": "headrace, json",
        "started": 4,
        "ended by themselves": len(ends),
        "with code": ", ".join(sorted({str(code) for code, _ in ends})),
        "after, worst s": round(max((after for _, after in ends), default=float("nan")), 1),
        "left": left,
        "events": sent.events,
    }
    return row | verdict.cells()


def _all_but_one_end(
    running: list[subprocess.Popen[bytes]], started: float
) -> Iterator[tuple[int, float]]:
    """Waits for it; yields their exit codes and after how many seconds they ended."""
    while len(running) > 1 and time.monotonic() - started < _SETTLE_SECONDS:
        for process in list(running):
            if process.poll() is not None and len(running) > 1:
                running.remove(process)
                yield process.returncode, time.monotonic() - started
        time.sleep(_POLL_SECONDS)
