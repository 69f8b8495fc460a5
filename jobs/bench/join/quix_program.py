"""The rival's program: the same join on quixstreams. Runs in an environment of its own.

`python quix_program.py SETTINGS.json`. It imports nothing of ours. Settings: `address`, `group`,
`events_topic`, `samples_topic`, `window_ms`, `disorder_ms`, `state_dir`, `restarts`, and `mode`:

  outcome   a sample comes out as soon as its outcome is there. State is kept by user, request and
            item. Events may come in any order: outcomes wait for their impression, too.
  closing   what was shown comes out when its window has closed, with or without an outcome. The
            one thing in quixstreams that does this by event time for keys that never come back
            is a session window that its partition's time closes. It needs events that have
            user, request and item as key. Each step of time looks at all sessions, so time goes
            in steps of a tenth of the window.
"""

from __future__ import annotations

import json
import sys
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import Any

IMPRESSION, POSITIVE = "impression", "click"
COMMIT_SECONDS = 1.0

Row = dict[str, Any]


def make_application(settings: Row) -> Any:
    """Returns the application, with what makes it fast and quick to come back.

    A member with a name of its own gets its partitions back at once, and a transactional id of its
    own ends the transaction of the life before, for which readers would wait otherwise.
    """
    quixstreams: Any = import_module("quixstreams")
    consumer: Row = {"queued.min.messages": 200_000, "fetch.wait.max.ms": 50}
    producer: Row = {
        "linger.ms": 20,
        "batch.size": 1_000_000,
        "compression.type": "lz4",
        "queue.buffering.max.messages": 1_000_000,
    }
    if settings["restarts"] == "static":
        consumer |= {"group.instance.id": settings["group"], "session.timeout.ms": 6000}
        producer |= {"transactional.id": settings["group"], "transaction.timeout.ms": 10_000}
    return quixstreams.Application(
        broker_address=settings["address"],
        consumer_group=settings["group"],
        auto_offset_reset="earliest",
        processing_guarantee="exactly-once",
        commit_interval=COMMIT_SECONDS,
        state_dir=settings["state_dir"],
        consumer_extra_config=consumer,
        producer_extra_config=producer,
        consumer_poll_timeout=0.05,
        loglevel="WARNING",
    )


def join_at_outcome(window_ms: int, remembered: timedelta) -> Any:
    """Returns the join of one event with what is remembered of its request and item."""

    def join(row: Row, state: Any) -> list[Row]:
        action = row["action"]
        if action not in (IMPRESSION, POSITIVE):
            return []
        key = f"{row['request_id']}/{row['item_id']}"
        known: list[list[Any]] = state.get(key) or [[], []]
        shown, waiting = known
        time_ms, name = row["timestamp_ms"], row["event_id"]
        if action == IMPRESSION:
            if any(each[1] == name for each in shown):
                return []
            shown.append([time_ms, name, row["scenario"], False])
            outcomes, waiting = waiting, []
        else:
            outcomes = [time_ms]
        found: list[Row] = []
        for outcome_ms in outcomes:
            before = [each for each in shown if each[0] <= outcome_ms]
            if not before:
                waiting.append(outcome_ms)
                continue
            last = max(before, key=lambda each: (each[0], each[1]))
            if outcome_ms - last[0] <= window_ms and not last[3]:
                last[3] = True
                found.append(_sample(row, last))
        state.set(key, [shown, waiting], ttl=remembered)
        return found

    return join


def _sample(row: Row, shown: list[Any]) -> Row:
    return {
        "event_id": shown[1],
        "timestamp_ms": shown[0],
        "user_id": row["user_id"],
        "item_id": row["item_id"],
        "scenario": shown[2],
        "reward": 1.0,
    }


def samples_at_closing(window_ms: int) -> Any:
    """Returns what becomes of a closed session: all events of one user, request and item."""

    def samples(session: Row) -> list[Row]:
        rows: list[Row] = session["value"]
        shown = {
            row["event_id"]: [row["timestamp_ms"], row["event_id"], row["scenario"]]
            for row in rows
            if row["action"] == IMPRESSION
        }
        positive = set()
        for row in rows:
            before = [e for e in shown.values() if e[0] <= row["timestamp_ms"]]
            if row["action"] == POSITIVE and before:
                last = max(before, key=lambda each: (each[0], each[1]))
                if row["timestamp_ms"] - last[0] <= window_ms:
                    positive.add(last[1])
        return [_sample(rows[0], each) for name, each in shown.items() if name in positive]

    return samples


def main() -> None:
    """Joins until it is killed."""
    settings: Row = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    window_ms, disorder_ms = settings["window_ms"], settings["disorder_ms"]
    app = make_application(settings)
    closing = settings["mode"] == "closing"
    step_ms = window_ms // 10
    events = app.topic(
        settings["events_topic"],
        key_deserializer="str",
        value_deserializer="json",
        timestamp_extractor=(lambda _, __, time_ms, ___: time_ms // step_ms * step_ms)
        if closing
        else None,
    )
    samples = app.topic(settings["samples_topic"], value_serializer="json")
    frame = app.dataframe(events)
    if not closing:
        remembered = timedelta(milliseconds=2 * window_ms + disorder_ms)
        join = join_at_outcome(window_ms, remembered)
        frame = frame.apply(join, stateful=True, expand=True)
    else:
        gap_ms, grace_ms = window_ms + step_ms, disorder_ms + step_ms
        window = frame.session_window(inactivity_gap_ms=gap_ms, grace_ms=grace_ms)
        closed = window.collect().final(closing_strategy="partition")
        frame = closed.apply(samples_at_closing(window_ms), expand=True)
    frame.to_topic(samples)
    app.run()


if __name__ == "__main__":
    main()
