"""What a drill shows: every fault, and a summary by kind."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from tests.drills.faults import Outcome
from tests.drills.schedule import KINDS

if TYPE_CHECKING:
    from tests.drills.verdict import Verdict  # which imports TensorFlow


def fault_row(outcome: Outcome) -> str:
    """Returns one line on one fault, for while the drill runs."""
    fault = outcome.fault
    return (
        f"{fault.number:4d}  {outcome.at:7.1f} s  {fault.kind:21s} {fault.target:16s}"
        f" at sample {outcome.trained:>9,}  recovered in {outcome.recovery:5.1f} s  {outcome.note}"
    )


def summarise(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """Returns, per kind: how many, median and worst recovery in seconds; then over all kills."""
    groups = {kind: [o for o in outcomes if o.fault.kind == kind] for kind in KINDS}
    groups["all kill -9"] = [o for o in outcomes if o.fault.kind.startswith("kill ")]
    return [
        {
            "kind": kind,
            "faults": len(group),
            "median_seconds": statistics.median(o.recovery for o in group),
            "worst_seconds": max(o.recovery for o in group),
        }
        for kind, group in groups.items()
        if group
    ]


def show(
    outcomes: Sequence[Outcome], verdict: Verdict, *, title: str, torn_found: int, disk: str
) -> None:
    """Prints all faults, the summary and the verdict."""
    console = Console(width=150)
    faults = Table(title=f"Faults: {title}")
    for column in ("#", "at", "kind", "target", "at sample", "recovery", "what was seen"):
        faults.add_column(column, justify="left" if column in ("kind", "target") else "right")
    for o in outcomes:
        cells = [str(o.fault.number), f"{o.at:.1f} s", o.fault.kind, o.fault.target]
        faults.add_row(*cells, f"{o.trained:,}", f"{o.recovery:.1f} s", o.note)
    console.print(faults)
    summary = Table(title="From the fault to the first step after the stand-still")
    for column in ("kind", "faults", "median", "worst"):
        summary.add_column(column, justify="left" if column == "kind" else "right")
    for row in summarise(outcomes):
        cells = [f"{row[name]:.1f} s" for name in ("median_seconds", "worst_seconds")]
        summary.add_row(row["kind"], str(row["faults"]), *cells)
    console.print(summary)
    asked = sum(o.fault.kind == "torn push" for o in outcomes)
    lines = [
        f"full disk: {disk}; torn pushes: {asked} provoked, {torn_found} answered with a restore",
        f"samples {verdict.samples:,}  lost {verdict.lost}  duplicated {verdict.duplicated}"
        f"  torn pushes counted {verdict.torn} (may have left out {verdict.allowed})",
        *verdict.problems,
        "FAILED" if verdict.problems else "PASSED",
    ]
    console.print(*lines, sep="\n")


def write(path: Path, outcomes: Sequence[Outcome], verdict: Verdict, **facts: Any) -> None:
    """Writes the same as JSON."""
    faults = []
    for outcome in outcomes:
        fault = dataclasses.asdict(outcome.fault) | {"target": outcome.fault.target}
        seen = {n: getattr(outcome, n) for n in ("at", "trained", "recovery", "note")}
        faults.append(fault | seen)
    content = facts | {
        "verdict": dataclasses.asdict(verdict),
        "summary": summarise(outcomes),
        "faults": faults,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1))
