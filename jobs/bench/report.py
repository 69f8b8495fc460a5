"""What every benchmark leaves: a table to read and a JSON file to compare."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

Cell = str | int | float


def write_report(
    name: str,
    rows: Sequence[Mapping[str, Cell]],
    *,
    ratios: Mapping[str, float],
    out: Path | None,
) -> None:
    """Prints the rows and ratios as tables and writes them to `out` as JSON.

    Args:
        name: The benchmark's name.
        rows: One per measurement, all with the same keys in the same order; units in the keys.
        ratios: Our speed over the other's, so that higher is better.
        out: JSON file `{"name", "machine", "rows", "ratios"}`; its folder is made. None: no file.
    """
    console = Console()
    table = Table(title=name, title_justify="left")
    for column in rows[0] if rows else ():
        table.add_column(column, justify="left" if isinstance(rows[0][column], str) else "right")
    for row in rows:
        table.add_row(*(_shown(cell) for cell in row.values()))
    console.print(table)
    ratio_table = Table(title="ratios (higher is better)", title_justify="left")
    ratio_table.add_column("ratio")
    ratio_table.add_column("value", justify="right")
    for ratio, value in ratios.items():
        ratio_table.add_row(ratio, f"{value:.3f}")
    console.print(ratio_table)
    if out is not None:
        content = {
            "name": name,
            "machine": machine(),
            "rows": [dict(row) for row in rows],
            "ratios": dict(ratios),
        }
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        console.print(f"written to {out}")


def machine() -> dict[str, str | int]:
    """Returns what a reader needs to judge the figures: processor, cores in use, system, Python."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


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
