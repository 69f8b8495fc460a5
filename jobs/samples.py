"""`headrace samples`: event logs to training samples.

Options that are not ours go to Beam: `--runner`, and whatever that runner takes. Without them the
embedded FnApiRunner does all in this process.
"""

from __future__ import annotations

import argparse
import difflib
import functools
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
from apache_beam.runners.runner import create_runner
from pydantic import BaseModel
from rich.console import Console
from rich.table import Table

from jobs.main import run_job
from jobs.settings import EXIT_DONE, add_config_arguments, load_settings
from pipeline.events.repair import Repair
from pipeline.manifest import Manifest
from pipeline.samples import DayRange, SamplesConfig, make_samples, repair_samples
from pipeline.schema import InputError
from pipeline.specification import Specification

_OPTIONS = ("--config", "--set", "--from", "--to", "--rebuild", "--rejects", "--report")
_SECTIONS: Final[dict[str, type[BaseModel]]] = {
    "specification": Specification,
    "samples": SamplesConfig,
}
DEFAULT_RUNNER = "FnApiRunner"
_LOCAL_RUNNERS = ("FnApiRunner", "DirectRunner", "DaskRunner", "PrismRunner")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the pipeline that a configuration describes and prints what it did."""
    parser = argparse.ArgumentParser(
        prog="headrace samples",
        description="Event logs to training samples, in dt=YYYY-MM-DD/ with a manifest.",
        epilog="Any other option goes to Beam, as in --runner=... --dask_client_address=...",
    )
    add_config_arguments(parser, _SECTIONS)
    days = parser.add_argument_group(
        "days", "Without these, all days of the logs are built anew. Days are UTC, YYYY-MM-DD."
    )
    days.add_argument("--from", dest="first", metavar="DAY", help="build missing days from this on")
    days.add_argument("--to", dest="last", metavar="DAY", help="to this; without it, --from alone")
    days.add_argument("--rebuild", action="store_true", help="build days that are there, too")
    parser.add_argument(
        "--report",
        type=Path,
        metavar="FILE",
        help="write a page of all days: rows, rejects, missing values, new ids, drift",
    )
    parser.add_argument(
        "--rejects",
        type=Path,
        metavar="DIR",
        help="send rejected rows through again, a copy of OUTPUT/rejected in which `raw` was"
        " repaired, or as it is after the specification was; days that they change are built again",
    )
    args, beam_args = parser.parse_known_args(argv)
    settings = load_settings(args.config, args.overrides, _SECTIONS)
    wanted = _days(args)
    config: SamplesConfig = settings["samples"]
    options = _beam_options(beam_args)
    console = Console()
    console.print(f"reading {', '.join(config.inputs)} into {config.num_parts} parts of users")
    start = time.monotonic()
    specification: Specification = settings["specification"]
    say = functools.partial(console.print, "building", soft_wrap=True)
    with console.status("making samples"):
        if args.rejects is not None:
            repaired, manifest = repair_samples(
                config, specification, options, rejects=args.rejects, on_build=say
            )
            print_repair(console, repaired, args.rejects)
        else:
            manifest = make_samples(config, specification, options, days=wanted, on_build=say)
    print_counts(console, manifest, output=config.output, seconds=time.monotonic() - start)
    if args.report is not None:
        _write_report(specification, config.output, args.report)
        console.print(f"report: {args.report}", soft_wrap=True)
    return EXIT_DONE


def _days(args: argparse.Namespace) -> DayRange | None:
    if args.rejects is not None and (args.first or args.last or args.rebuild):
        raise InputError("--rejects: found --from, --to or --rebuild beside it; expected it alone")
    if args.first is not None:
        return DayRange(args.first, args.last or args.first, rebuild=args.rebuild)
    if args.last is not None or args.rebuild:
        found = "--to" if args.last is not None else "--rebuild"
        raise InputError(f"{found}: found no --from; expected the first day, as --from 2026-01-31")
    return None


def _beam_options(arguments: Sequence[str]) -> PipelineOptions:
    """Returns Beam's options.

    Raises:
        InputError: If the runner is unknown, or an option is, to Beam's own runners. Those that are
            reached through a job server have options that Beam's Python does not know.
    """
    options = PipelineOptions([f"--runner={DEFAULT_RUNNER}", *arguments])
    runner = options.view_as(StandardOptions).runner
    try:
        create_runner(runner)
    except (ValueError, ImportError, AttributeError) as error:
        raise InputError(f"--runner: found {runner!r}, which Beam cannot load: {error}") from error
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for each in PipelineOptions.__subclasses__():
        each._add_argparse_args(parser)
    unknown = parser.parse_known_args(list(arguments))[1]
    if unknown and runner.rpartition(".")[2] in _LOCAL_RUNNERS:
        near = difflib.get_close_matches(unknown[0].partition("=")[0], [*_OPTIONS, "--runner"], n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise InputError(
            f"found {' '.join(unknown)}; expected options of headrace or of Beam{hint}"
        )
    return options


def _write_report(specification: Specification, output: Path, path: Path) -> None:
    # Not at the top: drawing takes a second to import, and most runs draw nothing.
    from jobs.report.days import report_of_days
    from jobs.report.samples import write_report

    path.parent.mkdir(parents=True, exist_ok=True)
    write_report(report_of_days(specification, output), path)


def print_repair(console: Console, repair: Repair, folder: Path) -> None:
    """Prints what became of rejected rows."""
    table = Table(title=f"rejected rows of {folder}", title_justify="left")
    table.add_column("now")
    table.add_column("rows", justify="right")
    table.add_row("events", f"{repair.accepted:,}")
    table.add_row("repaired before", f"{repair.known:,}")
    for reason, count in sorted(repair.rejects.items()):
        table.add_row(f"rejected: {reason}", f"{count:,}")
    console.print(table)


def print_counts(console: Console, manifest: Manifest, *, output: Path, seconds: float) -> None:
    """Prints where every event went."""
    table = Table(title=f"samples in {output}", title_justify="left")
    table.add_column("what")
    table.add_column("count", justify="right")
    counts = manifest.counts
    several = f", in {len(manifest.builds)} builds" if len(manifest.builds) > 1 else ""
    rows = [(f"events read{several}", counts.get("events_read", 0))]
    rows += [(f"  rejected: {reason}", count) for reason, count in manifest.rejects.items()]
    rows += [("  duplicates", counts.get("duplicates", 0))]
    rows += [("  impressions", counts.get("impressions", 0))]
    rows += [(f"  outcomes: {fate}", count) for fate, count in manifest.outcomes.items()]
    rows += [("  outside of these days", counts["outside"])] if counts.get("outside") else []
    there = Counter[str]()
    for file in manifest.files:
        there[file.kind] += file.rows
    rows += [(f"{kind} samples", there[kind]) for kind in manifest.kinds]
    rows += [("days", len(manifest.days)), ("files", len(manifest.files))]
    for name, count in rows:
        table.add_row(name, f"{count:,}")
    console.print(table)
    rate = counts.get("events_read", 0) / max(seconds, 1e-9)
    console.print(f"{seconds:.1f} s, {rate:,.0f} events/s")


if __name__ == "__main__":
    sys.exit(run_job(main))
