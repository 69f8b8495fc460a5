"""The stream as it happens: each event is sent when it is due, and no sooner.

`python -m jobs.bench.join.producer`: reads what to send as JSON from standard input, says `begins`
on a line when it begins, and ends at the stream's end or at SIGTERM with a line of what it did.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Final, Self

import numpy as np
import pyarrow as pa

from jobs.bench.join.events import ARRIVAL_MS, Stream, make_stream
from jobs.bench.join.topics import Sender

_TICK_MS: Final = 20
_LEAD_SECONDS: Final = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Sent:
    """What a producer did.

    Attributes:
        start_ms: Event time of the stream's first moment.
        events: How many of the stream's events were sent; those that come first.
        seconds: From its first moment to its last event.
        worst_behind_ms: How late it was at worst with handing events to Kafka's client.
        behind_p99_ms: The 99th percentile of that.
    """

    start_ms: int
    events: int
    seconds: float
    worst_behind_ms: float
    behind_p99_ms: float

    @property
    def rate(self) -> float:
        """Events per second."""
        return self.events / self.seconds if self.seconds else 0.0


class Producer:
    """A process that sends a stream in real time."""

    def __init__(self, address: str, topic: str, stream: Stream) -> None:
        """Starts it, and waits until it begins."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "jobs.bench.join.producer"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        content = {"address": address, "topic": topic, "stream": dataclasses.asdict(stream)}
        if self._process.stdin is not None:
            self._process.stdin.write(json.dumps(content))
            self._process.stdin.close()
            self._process.stdin = None
        if self._line() != "begins":
            raise RuntimeError(f"the producer ended with {self._process.wait()}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    @property
    def running(self) -> bool:
        """Whether it still sends."""
        return self._process.poll() is None

    def stop(self) -> Sent:
        """Has it end now, and returns what it did."""
        self._process.send_signal(signal.SIGTERM)
        return self.wait()

    def wait(self) -> Sent:
        """Waits for the stream's end, and returns what was sent."""
        said = self._line()
        if self._process.wait() or not said:
            raise RuntimeError(f"the producer ended with {self._process.returncode}")
        return Sent(**json.loads(said))

    def _line(self) -> str:
        return self._process.stdout.readline().strip() if self._process.stdout else ""


def main() -> int:
    """Sends until the end, or until it is told to end."""
    content = json.load(sys.stdin)
    stream = Stream.from_json(content["stream"])
    over = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: over.set())
    events = make_stream(stream, start_ms=0)
    with Sender(content["address"], content["topic"], stream.partitions) as sender:
        start_ms = round(1000 * (time.time() + _LEAD_SECONDS))
        sys.stdout.write("begins\n")
        sys.stdout.flush()
        sent, behind = 0, [0.0]
        for due, part in _ticks(events, start_ms):
            if over.wait(max(0.0, due - time.time())):
                break
            behind.append(1000 * max(0.0, time.time() - due))
            sender.send_json(part)
            sent += part.num_rows
        seconds = time.time() - start_ms / 1000
        sender.flush()
    done = Sent(
        start_ms=start_ms,
        events=sent,
        seconds=seconds,
        worst_behind_ms=max(behind),
        behind_p99_ms=float(np.percentile(behind, 99)),
    )
    sys.stdout.write(f"{json.dumps(dataclasses.asdict(done))}\n")
    return 0


def _ticks(events: pa.Table, start_ms: int) -> Iterator[tuple[float, pa.Table]]:
    """Yields events that arrive together, with real times, and when that is."""
    arrivals = events[ARRIVAL_MS].to_numpy()
    last = int(arrivals[-1]) if len(arrivals) else 0
    for first_ms in range(0, last + 1, _TICK_MS):
        start, end = np.searchsorted(arrivals, [first_ms, first_ms + _TICK_MS])
        part = moved(events.slice(start, end - start), start_ms)
        yield (start_ms + first_ms + _TICK_MS) / 1000, part


def moved(events: pa.Table, by_ms: int) -> pa.Table:
    """Returns events of a stream that starts so much later."""
    place = events.schema.get_field_index("timestamp_ms")
    times = pa.array(events["timestamp_ms"].to_numpy() + by_ms)
    return events.set_column(place, "timestamp_ms", times)


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        sys.exit(main())
