"""A run's figures as a table that stays at the foot of the terminal."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

TABLE_SHOWN = "HEADRACE_TABLE"
"""Set for processes whose launcher shows the table: they need not tell the same in lines."""

_POLL_SECONDS = 0.5
_Figures = Mapping[str, float]


def table(figures: _Figures, *, age_seconds: float = 0.0) -> RenderableType:
    """Returns all that a person asks first: does it learn, how fast, how far behind, is it whole.

    Args:
        figures: A line of `metrics.jsonl`; what it has not is left out.
        age_seconds: How old the line is.
    """
    rows = [(name, show(figures)) for name, keys, show in _ROWS if set(keys) <= set(figures)]
    half = -(-len(rows) // 2)
    grid = Table.grid(padding=(0, 2))
    for place in range(half):
        left = rows[place]
        right = rows[half + place] if half + place < len(rows) else ("", "")
        grid.add_row(Text(left[0], "dim"), left[1], Text(right[0], "dim"), right[1])
    title = Text(f"{age_seconds:.0f} s ago", "dim") if age_seconds > 2 else Text()  # noqa: PLR2004
    return Group(Text("─" * 60, "dim"), grid, *_topics(figures), title)


def _topics(figures: _Figures) -> list[Table]:
    prefix = "stream/topic_lag_records/"
    topics = [name.removeprefix(prefix) for name in figures if name.startswith(prefix)]
    if len(topics) < 2:  # noqa: PLR2004 -- one topic's figures are the run's
        return []
    shown = Table("topic", "lag, records", "event-time watermark", box=None, header_style="dim")
    for topic in topics:
        watermark = figures.get(f"stream/topic_watermark_ms/{topic}")
        moment = "" if watermark is None else _moment(watermark)
        shown.add_row(topic, f"{figures[prefix + topic]:,.0f}", moment)
    return [shown]


def _moment(time_ms: float) -> str:
    return f"{datetime.datetime.fromtimestamp(time_ms / 1e3, datetime.UTC):%Y-%m-%d %H:%M:%S} UTC"


def _number(name: str, digits: int = 0) -> Callable[[_Figures], str]:
    return lambda figures: f"{figures[name]:,.{digits}f}"


_ROWS: list[tuple[str, list[str], Callable[[_Figures], str]]] = [
    ("samples", ["stream/samples"], _number("stream/samples")),
    ("samples/s", ["stream/samples_per_second"], _number("stream/samples_per_second")),
    ("loss", ["train/loss"], _number("train/loss", 4)),
    ("feature drift", ["train/drift_1"], _number("train/drift_1", 4)),
    ("lag, records", ["stream/lag_records"], _number("stream/lag_records")),
    ("records to go", ["stream/records_remaining"], _number("stream/records_remaining")),
    (
        "event-time watermark",
        ["stream/watermark_ms"],
        lambda figures: _moment(figures["stream/watermark_ms"]),
    ),
    ("skew, s", ["stream/skew_seconds"], _number("stream/skew_seconds", 1)),
    (
        "staleness p50 / p99, s",
        ["stream/staleness_p50_seconds", "stream/staleness_p99_seconds"],
        lambda figures: (
            f"{figures['stream/staleness_p50_seconds']:,.1f} /"
            f" {figures['stream/staleness_p99_seconds']:,.1f}"
        ),
    ),
    (
        "workers heard, of all",
        ["cluster/workers_heard", "cluster/workers"],
        lambda figures: (
            f"{figures['cluster/workers_heard']:.0f} of {figures['cluster/workers']:.0f}"
        ),
    ),
    ("ranges in flight", ["cluster/ranges_in_flight"], _number("cluster/ranges_in_flight")),
    (
        "rejected / lost / torn",
        ["stream/rejects", "stream/lost", "stream/torn"],
        lambda figures: " / ".join(
            f"{figures[f'stream/{name}']:,.0f}" for name in ("rejects", "lost", "torn")
        ),
    ),
    ("checkpoint age, s", ["checkpoint/age_seconds"], _number("checkpoint/age_seconds")),
    ("its stall, s", ["checkpoint/stall_seconds"], _number("checkpoint/stall_seconds", 2)),
]


@contextlib.contextmanager
def shown(metrics: Path) -> Iterator[None]:
    """Shows the latest line of a run's metrics at the foot of this terminal.

    What this process and those that it starts write meanwhile scrolls above it. Without a terminal
    nothing is shown, and nothing changes.

    Args:
        metrics: The run's `metrics.jsonl`; what it has already is not shown.
    """
    if not sys.stderr.isatty():
        yield
        return
    sys.stdout.flush()
    sys.stderr.flush()
    kept, (read, write) = (os.dup(1), os.dup(2)), os.pipe()
    for stream in (1, 2):
        os.dup2(write, stream)
    os.close(write)
    os.environ[TABLE_SHOWN] = "1"
    over = threading.Event()
    known = metrics.stat().st_size if metrics.exists() else 0
    with os.fdopen(os.dup(kept[1]), "w") as terminal:
        console = Console(file=terminal)
        # Gone at the end: the run's last words are the ledger's, and newer.
        with Live(console=console, auto_refresh=False, transient=True) as live:
            lines = threading.Thread(target=_print_lines, args=[read, console], daemon=True)
            figures = threading.Thread(
                target=_follow, args=[metrics, known, live, over], daemon=True
            )
            lines.start()
            figures.start()
            try:
                yield
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                for stream, original in zip((1, 2), kept, strict=True):
                    os.dup2(original, stream)
                    os.close(original)
                os.environ.pop(TABLE_SHOWN)
                over.set()
                figures.join()
                lines.join(timeout=5)  # until the last child has closed its end


def _print_lines(descriptor: int, console: Console) -> None:
    with os.fdopen(descriptor, errors="replace") as lines:
        for line in lines:
            console.print(Text(line.rstrip("\n")), soft_wrap=True)


def _follow(metrics: Path, place: int, live: Live, over: threading.Event) -> None:
    rest, written = "", time.time()
    figures: dict[str, float] = {}
    while not over.wait(_POLL_SECONDS):
        if not metrics.exists():
            continue
        with metrics.open() as file:
            file.seek(place)
            text = rest + file.read()
            place = file.tell()
        *lines, rest = text.split("\n")
        if lines:
            newest = json.loads(lines[-1])
            written = newest["time"]
            figures = figures | newest  # what was not learned this second has its last value
        if figures:
            live.update(table(figures, age_seconds=time.time() - written), refresh=True)
