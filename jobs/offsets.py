"""`headrace offsets`: where a run stands in its stream, what it has left, and what it has lost.

  headrace offsets show   --config F [--times] [--json]    positions, lag, what retention took away
  headrace offsets export --config F --out FILE            positions, for train.stream.start.offsets
  headrace offsets reset  --config F --to earliest|latest  another position; nothing is deleted
  headrace offsets forget --config F --topic NAME          a topic that is not read any more

Positions are those of the newest checkpoint of `train.directory`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, cast

from rich.console import Console
from rich.table import Table

from jobs.main import run_job
from jobs.settings import EXIT_DONE, add_config_arguments, load_settings
from jobs.train import open_source
from pipeline import durable
from pipeline.schema import TIMESTAMP_MS, InputError
from pipeline.specification import Specification
from streaming.checkpoints.newest import checkpoint_folders, load_ledger
from streaming.checkpoints.reposition import moved, rewrite_ledger, without
from streaming.config import StartConfig, TrainConfig
from streaming.ledger import Ledger
from streaming.schedule.positions import first_ledger
from streaming.source import Partition, Range, Source

_PROBED_RECORDS: Final = 100


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    arguments = argument_parser().parse_args(argv)
    settings = load_settings(
        arguments.config,
        arguments.overrides,
        {"specification": Specification, "train": TrainConfig},
    )
    config = cast(TrainConfig, settings["train"])
    source = open_source(config, cast(Specification, settings["specification"]))
    try:
        _COMMANDS[arguments.command](arguments, config, source)
    finally:
        source.close()
    return EXIT_DONE


def argument_parser() -> argparse.ArgumentParser:
    """Returns the parser of `headrace offsets`."""
    parser = argparse.ArgumentParser(
        prog="headrace offsets",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    show = commands.add_parser("show", help="print position, lag and loss of each partition")
    show.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    show.add_argument(
        "--times", action="store_true", help="also the event time at each position: reads records"
    )
    export = commands.add_parser("export", help="write the positions to a file")
    export.add_argument("--out", required=True, type=Path, metavar="FILE", help="where to")
    reset = commands.add_parser("reset", help="move the run; its newest checkpoint stays as it is")
    where = reset.add_mutually_exclusive_group(required=True)
    where.add_argument("--to", choices=("earliest", "latest"), help="an end of each partition")
    where.add_argument("--to-time", metavar="TIME", help="event time, as 2026-01-31T12:00:00Z")
    where.add_argument("--to-file", metavar="FILE", help="offsets, as `export` writes them")
    reset.add_argument(
        "--topic", action="append", help="move this topic only; repeatable; default: all"
    )
    forget = commands.add_parser("forget", help="drop what is known of a topic that was retired")
    forget.add_argument(
        "--topic", action="append", required=True, help="one that is not read; repeatable"
    )
    for command in (show, export, reset, forget):
        add_config_arguments(command)
    return parser


@dataclasses.dataclass(frozen=True, slots=True)
class _Row:
    """Where a run stands in one partition; offsets count records."""

    topic: str
    partition: int
    offset: int
    start: int
    end: int
    time_ms: int | None = None

    @property
    def lag(self) -> int:
        """Records that can be read and were not."""
        return max(0, self.end - max(self.start, self.offset))

    @property
    def lost(self) -> int:
        """Offsets that retention has taken away before they were read."""
        return max(0, self.start - self.offset)


def _show(arguments: argparse.Namespace, config: TrainConfig, source: Source) -> None:
    directory = _checkpoints(config)
    starts, ends = source.start_offsets(), source.end_offsets()
    if checkpoint_folders(directory):
        ledger = load_ledger(directory)
        ledger.check_identity(source.identity(ledger.offsets))
        title = f"{checkpoint_folders(directory)[-1][1].name} of {config.directory}"
    else:
        ledger = first_ledger(config.stream.start, source, starts=starts, ends=ends)
        title = f"{config.directory} has no checkpoint: it would begin here"
    rows = [
        _Row(
            topic=partition.topic,
            partition=partition.number,
            offset=ledger.offsets.get(partition, start),
            start=start,
            end=ends[partition],
        )
        for partition, start in starts.items()
    ]
    if arguments.times:
        rows = [dataclasses.replace(row, time_ms=_time_at(source, row)) for row in rows]
    if arguments.json:
        _print_json(ledger, rows)
    else:
        _print_table(title, ledger, rows, times=arguments.times)


def _time_at(source: Source, row: _Row) -> int | None:
    """Returns the event time of the next sample, in milliseconds, if one comes soon."""
    first = max(row.start, row.offset)
    partition = Partition(row.topic, row.partition)
    for offset in range(first, min(first + _PROBED_RECORDS, row.end)):  # past holes and rejects
        samples = source.read(Range(partition, offset, offset + 1)).samples
        if samples.num_rows:
            return cast(int, samples.column(TIMESTAMP_MS)[0].as_py())
    return None


def _print_json(ledger: Ledger, rows: Sequence[_Row]) -> None:
    entries = [dataclasses.asdict(row) | {"lag": row.lag, "lost": row.lost} for row in rows]
    totals = dataclasses.asdict(ledger.totals)
    sys.stdout.write(json.dumps({"partitions": entries, "totals": totals}, indent=1) + "\n")


def _print_table(title: str, ledger: Ledger, rows: Sequence[_Row], *, times: bool) -> None:
    table = Table(title=title, title_justify="left", show_footer=True)
    table.add_column("topic", "all")
    for name, total in [
        ("partition", ""),
        ("position", ""),
        ("first", ""),
        ("end", ""),
        ("lag", f"{sum(row.lag for row in rows):,}"),
        ("lost", f"{sum(row.lost for row in rows):,}"),
    ]:
        table.add_column(name, total, justify="right")
    if times:
        table.add_column("event time")
    for row in rows:
        numbers = (row.offset, row.start, row.end, row.lag, row.lost)
        cells = [row.topic, str(row.partition), *(f"{number:,}" for number in numbers)]
        table.add_row(*cells, *([_time_text(row.time_ms)] if times else []))
    console = Console()
    console.print(table)
    console.print(
        "Offsets count records. lost: gone from the broker before they were read, and not counted"
        f" yet; {ledger.totals.lost:,} were lost and {ledger.totals.rejects:,} rejected before."
    )


def _time_text(time_ms: int | None) -> str:
    if time_ms is None:
        return ""
    return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(" ", "seconds")


def _export(arguments: argparse.Namespace, config: TrainConfig, source: Source) -> None:
    del source  # what it holds now does not matter
    stored: dict[str, Any] = json.loads(load_ledger(_checkpoints(config)).to_json())
    del stored["totals"]
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    durable.write(arguments.out, json.dumps(stored, indent=1) + "\n")
    Console().print(f"{len(stored['offsets'])} positions written to {arguments.out}")


def _reset(arguments: argparse.Namespace, config: TrainConfig, source: Source) -> None:
    start: str | StartConfig
    if arguments.to is not None:
        start = arguments.to
    elif arguments.to_file is not None:
        start = StartConfig(offsets=arguments.to_file)
    else:
        start = StartConfig(timestamp=_parse_time(arguments.to_time))
    topics = None if arguments.topic is None else set(arguments.topic)
    folder = rewrite_ledger(
        _checkpoints(config), lambda ledger: moved(ledger, source, start, topics=topics)
    )
    _say_written(folder)


def _forget(arguments: argparse.Namespace, config: TrainConfig, source: Source) -> None:
    _say_written(
        rewrite_ledger(
            _checkpoints(config), lambda ledger: without(ledger, source, arguments.topic)
        )
    )


def _say_written(folder: Path) -> None:
    Console().print(
        f"written: {folder.name}, from which training goes on. The one before it is as it was, and"
        " is removed as any other, when train.checkpoint.keep newer ones are there."
    )


def _parse_time(text: str) -> datetime:
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        time = None
    if time is None or time.tzinfo is None:
        raise InputError(
            f"--to-time: found {text!r}; expected a time with its zone, as 2026-01-31T12:00:00Z"
        )
    return time


def _checkpoints(config: TrainConfig) -> Path:
    return Path(config.directory) / "checkpoints"


_COMMANDS: Final = {"show": _show, "export": _export, "reset": _reset, "forget": _forget}


if __name__ == "__main__":
    sys.exit(run_job(main))
