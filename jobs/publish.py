"""`headrace publish`: sample files, and for rehearsals event logs, to a Kafka topic."""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Final

from pydantic import BaseModel
from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table

from jobs.main import run_job
from jobs.settings import EXIT_DONE, add_config_arguments, load_settings
from pipeline.kinds.registry import wanted
from pipeline.publish import PartitionCount, Progress, PublishConfig, Published, publish
from pipeline.schema import InputError
from pipeline.specification import Specification
from pipeline.topics.connection import BrokerUnavailableError
from streaming.source import SourceUnavailableError

_SECTIONS: Final[dict[str, type[BaseModel]]] = {
    "specification": Specification,
    "publish": PublishConfig,
}
_EVERY_SECONDS: Final = 10.0
_EPILOG: Final = """\
Samples of `publish.directory`, in the order of their files:
  headrace publish --config C
A day of them in 24 minutes, in the order of event time:
  headrace publish --config C --speed 60
Event logs instead, impressions and outcomes to a topic each, as single JSON objects:
  headrace publish --config C --set publish.directory=null --set 'publish.events=[data/logs]' \\
    --set publish.value_format=json --set publish.topic=impressions \\
    --set 'publish.actions=[impression]' --set publish.create_partitions=8
As if they happened now, to measure what reads them:
  headrace publish --config C ... --speed 1 --set publish.shift=now

Records, and how far the command is, are in one Kafka transaction: ended in any way and started
again, it goes on where it was, and nothing is there twice for readers of what is committed
(isolation.level=read_committed). With other files or settings it refuses to go on, and names them.
Two at a time: the older ends. Exit codes: 0 all is there, 2 wrong input, 75 no broker: run again.
"""

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Sends what a configuration names and prints what went where."""
    parser = argparse.ArgumentParser(
        prog="headrace publish",
        description="Sample files, or event logs, to a Kafka topic: Arrow batches of many rows, or"
        " single tf.Examples or JSON objects (publish.value_format).",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_config_arguments(parser, _SECTIONS)
    parser.add_argument(
        "--speed",
        type=float,
        metavar="N",
        help="event time passes N times as fast as the clock; the same as --set publish.speed=N",
    )
    args = parser.parse_args(argv)
    overrides = args.overrides + ([] if args.speed is None else [f"publish.speed={args.speed}"])
    settings = load_settings(args.config, overrides, _SECTIONS)
    config: PublishConfig = settings["publish"]
    specification: Specification = settings["specification"]
    if config.events is not None:
        schema = specification.event_schema
    else:
        kinds = wanted(specification)
        if config.kind not in kinds:
            raise InputError(
                f"publish.kind: found {config.kind!r}; expected one of {', '.join(kinds)}, as"
                " specification.kinds declares"
            )
        schema = kinds[config.kind].schema(specification)
    console = Console()
    start = time.monotonic()
    try:
        with _shown(console, config.topic) as show:
            found = publish(config, schema, on_progress=show)
    except BrokerUnavailableError as error:
        raise SourceUnavailableError(f"{error}; run again, and it goes on where it was") from error
    _print(console, found, config, seconds=time.monotonic() - start)
    return EXIT_DONE


@contextlib.contextmanager
def _shown(console: Console, topic: str) -> Iterator[Callable[[Progress], None]]:
    """Shows progress: a bar in a terminal, a line every ten seconds elsewhere."""
    if not console.is_terminal:
        yield Lines(topic)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[text]}"),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=console, transient=True) as bar:
        task = bar.add_task(f"publishing to {topic}", total=None, text="")

        def show(now: Progress) -> None:
            bar.update(task, completed=now.rows, total=now.total, text=_text(now))

        yield show


class Lines:
    """Logs how far a job is, a line now and then."""

    def __init__(self, topic: str, *, now: Callable[[], float] = time.monotonic) -> None:
        """Begins to wait for the first line.

        Args:
            topic: For the lines.
            now: Tells the time, in seconds.
        """
        self._topic = topic
        self._now = now
        self._last = now()
        self._rows = 0

    def __call__(self, progress: Progress) -> None:
        """Logs a line if the last one was long ago."""
        seconds = self._now() - self._last
        if seconds < _EVERY_SECONDS:
            return
        # Rows read are not rows sent.
        rate = max(0, progress.rows - self._rows) / seconds
        logger.info("%s: %s, %s/s", self._topic, _text(progress), f"{rate:,.0f}")
        self._last, self._rows = self._now(), progress.rows


def _text(progress: Progress) -> str:
    if progress.doing == "reading":
        return f"{progress.rows:,} rows read, to be sorted by time"
    sent = f"{progress.rows:,} rows of {progress.total or 0:,} sent"
    if progress.event_ms is None:
        return sent
    time_ = datetime.fromtimestamp(progress.event_ms / 1e3, UTC)
    return f"{sent}, event time {time_:%Y-%m-%d %H:%M:%S}"


def _print(console: Console, found: Published, config: PublishConfig, *, seconds: float) -> None:
    if found.was_finished:
        console.print(
            f"all is there: job {config.job!r} has sent all rows to topic {config.topic} before"
        )
    for reason, count in found.rejects.items():
        fate = "sent as they are" if config.malformed == "send" else "left out"
        console.print(f"{count:,} rows that are no events: {reason}; {fate}")
    what = "samples" if config.events is None else "events"
    print_counts(console, found.counts, topic=config.topic, what=what)
    if found.was_finished:
        return
    sent = sum(count.samples for count in found.counts) - found.before
    megabytes = sum(count.bytes for count in found.counts) / 1e6
    share = sent / max(sent + found.before, 1)
    seconds = max(seconds, 1e-9)
    before = f", after {found.before:,} in former runs" if found.before else ""
    console.print(
        f"{seconds:.1f} s, {sent / seconds:,.0f} {what}/s,"
        f" {megabytes * share / seconds:,.1f} MB/s{before}"
    )


def print_counts(
    console: Console, counts: Sequence[PartitionCount], *, topic: str, what: str
) -> None:
    """Prints what each partition was sent."""
    table = Table(title=f"topic {topic}", title_justify="left", show_footer=True)
    rows = [(count.records, count.samples, count.bytes) for count in counts]
    records, samples, size = (sum(values) for values in zip(*rows, strict=True))
    table.add_column("partition", "all", justify="right")
    table.add_column("records", f"{records:,}", justify="right")
    table.add_column(what, f"{samples:,}", justify="right")
    table.add_column("MB before compression", f"{size / 1e6:,.1f}", justify="right")
    for count in counts:
        table.add_row(
            str(count.partition),
            f"{count.records:,}",
            f"{count.samples:,}",
            f"{count.bytes / 1e6:,.1f}",
        )
    console.print(table)


if __name__ == "__main__":
    sys.exit(run_job(main))
