"""`headrace publish`: sample files to a Kafka topic."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from typing import Final

from pydantic import BaseModel
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from jobs.main import run_job
from jobs.settings import EXIT_DONE, add_config_arguments, load_settings
from pipeline.publish import PartitionCount, PublishConfig, publish
from pipeline.specification import Specification
from pipeline.topics.connection import BrokerUnavailableError
from streaming.source import SourceUnavailableError

_SECTIONS: Final[dict[str, type[BaseModel]]] = {
    "specification": Specification,
    "publish": PublishConfig,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Sends the samples that a configuration names and prints what went where."""
    parser = argparse.ArgumentParser(
        prog="headrace publish",
        description="Sample files to a Kafka topic, as Arrow batches or single tf.Examples"
        " (publish.value_format).",
    )
    add_config_arguments(parser, _SECTIONS)
    args = parser.parse_args(argv)
    settings = load_settings(args.config, args.overrides, _SECTIONS)
    config: PublishConfig = settings["publish"]
    console = Console()
    start = time.monotonic()
    try:
        # Without a terminal, a bar that is taken away again would leave an empty line.
        bar = Progress(console=console, transient=True, disable=not console.is_terminal)
        with bar as progress:
            task = progress.add_task(f"publishing to {config.topic}", total=None)
            counts = publish(
                config,
                settings["specification"].sample_schema,
                on_progress=lambda sent, total: progress.update(task, completed=sent, total=total),
            )
    except BrokerUnavailableError as error:
        raise SourceUnavailableError(str(error)) from error
    print_counts(console, counts, topic=config.topic, seconds=time.monotonic() - start)
    return EXIT_DONE


def print_counts(
    console: Console, counts: Sequence[PartitionCount], *, topic: str, seconds: float
) -> None:
    """Prints what each partition was sent, and how fast."""
    table = Table(title=f"topic {topic}", title_justify="left", show_footer=True)
    totals = PartitionCount(
        partition=len(counts),
        records=sum(count.records for count in counts),
        samples=sum(count.samples for count in counts),
        bytes=sum(count.bytes for count in counts),
    )
    table.add_column("partition", "all", justify="right")
    table.add_column("records", f"{totals.records:,}", justify="right")
    table.add_column("samples", f"{totals.samples:,}", justify="right")
    table.add_column("MB before compression", f"{totals.bytes / 1e6:,.1f}", justify="right")
    for count in counts:
        table.add_row(
            str(count.partition),
            f"{count.records:,}",
            f"{count.samples:,}",
            f"{count.bytes / 1e6:,.1f}",
        )
    console.print(table)
    seconds = max(seconds, 1e-9)
    rates = f"{totals.samples / seconds:,.0f} samples/s, {totals.bytes / 1e6 / seconds:,.1f} MB/s"
    console.print(f"{seconds:.1f} s, {rates}")


if __name__ == "__main__":
    sys.exit(run_job(main))
