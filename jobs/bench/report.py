"""What every benchmark takes and leaves: options, a table to read and a JSON file to compare."""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

Cell = str | int | float


def bench_parser(name: str, doc: str | None) -> argparse.ArgumentParser:
    """Returns the parser of `headrace bench NAME`, with --out.

    Args:
        name: The benchmark's name.
        doc: The docstring of its module, which its help shows as it is.
    """
    parser = argparse.ArgumentParser(
        prog=f"headrace bench {name}",
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    return parser


def add_broker_argument(parser: argparse.ArgumentParser) -> None:
    """Adds --kafka."""
    parser.add_argument(
        "--kafka",
        metavar="HOST:PORT",
        default=os.environ.get("HEADRACE_KAFKA"),
        help="a broker to use; without it, the tests' own is started, if this is a checkout",
    )


def write_report(
    name: str,
    rows: Sequence[Mapping[str, Cell]],
    *,
    ratios: Mapping[str, float] | None = None,
    costs: Mapping[str, float] | None = None,
    out: Path | None,
) -> None:
    """Prints the rows, ratios and costs as tables and writes them to `out` as JSON.

    Args:
        name: The benchmark's name.
        rows: One per measurement, all with the same keys in the same order; units in the keys.
        ratios: Our speed over the other's, so that higher is better.
        costs: Times, or shares of a time, so that lower is better; units in the keys.
        out: JSON file `{"name", "machine", "rows", "ratios", "costs"}`; its folder is made. None:
            no file.
    """
    console = Console()
    table = Table(title=name, title_justify="left")
    for column in rows[0] if rows else ():
        table.add_column(column, justify="left" if isinstance(rows[0][column], str) else "right")
    for row in rows:
        table.add_row(*(_shown(cell) for cell in row.values()))
    console.print(table)
    ratios, costs = dict(ratios or {}), dict(costs or {})
    for heading, better, figures in (("ratio", "higher", ratios), ("cost", "lower", costs)):
        if figures:
            console.print(_figure_table(heading, better, figures))
    if out is not None:
        content = {"rows": [dict(row) for row in rows], "ratios": ratios, "costs": costs}
        write_json(name, content, out)
        console.print(f"written to {out}")


def write_json(name: str, content: Mapping[str, Any], out: Path) -> None:
    """Writes `{"name", "machine"}` and the content to `out`, whose folder is made."""
    told = {"name": name, "machine": machine(), **content}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")


def machine() -> dict[str, str | int]:
    """Returns what a reader needs to judge the figures: processor, cores in use, system, Python."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def _figure_table(heading: str, better: str, figures: Mapping[str, float]) -> Table:
    table = Table(title=f"{heading}s ({better} is better)", title_justify="left")
    table.add_column(heading)
    table.add_column("value", justify="right")
    for name, value in figures.items():
        table.add_row(name, f"{value:.3f}")
    return table


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _shown(cell: Cell) -> str:
    if isinstance(cell, str):
        return cell
    return f"{cell:,}" if isinstance(cell, int) else f"{cell:,.3g}" if cell < 10 else f"{cell:,.1f}"  # noqa: PLR2004
