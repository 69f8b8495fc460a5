"""What a run did, in counts that add up over parts of the work, and whether that is good enough."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict

from pipeline.events.json_lines import Reject
from pipeline.manifest import InputFile, OutputFile
from pipeline.schema import InputError

_NAME: Final = "report.json"
_MAX_REASONS = 20


class Report(BaseModel):
    """Counts of a part of the work. The names are those of `pipeline.manifest.Manifest`.

    Attributes:
        problems: Files that could not be read on, each with what was found and expected.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    counts: Mapping[str, int] = {}
    rejects: Mapping[str, int] = {}
    outcomes: Mapping[str, int] = {}
    watermark_ms: int | None = None
    inputs: tuple[InputFile, ...] = ()
    files: tuple[OutputFile, ...] = ()
    problems: tuple[str, ...] = ()

    def save(self, folder: Path) -> None:
        """Leaves the report for the process that started the run: not every runner returns data."""
        aside = folder / f".{_NAME}"
        aside.write_text(self.model_dump_json(), encoding="utf-8")
        aside.replace(folder / _NAME)

    @classmethod
    def take(cls, folder: Path) -> Report:
        """Returns the saved report and removes its file."""
        path = folder / _NAME
        report = cls.model_validate_json(path.read_bytes())
        path.unlink()
        return report


def merge_reports(reports: Iterable[Report]) -> Report:
    """Returns the sum of reports, with its lists sorted."""
    reports = list(reports)
    times = [report.watermark_ms for report in reports if report.watermark_ms is not None]
    return Report(
        counts=_sum(report.counts for report in reports),
        rejects=_sum(report.rejects for report in reports),
        outcomes=_sum(report.outcomes for report in reports),
        watermark_ms=max(times, default=None),
        inputs=tuple(sorted((f for r in reports for f in r.inputs), key=lambda f: f.path)),
        files=tuple(sorted((f for r in reports for f in r.files), key=lambda f: f.path)),
        problems=tuple(sorted({problem for r in reports for problem in r.problems})),
    )


def _sum(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: collections.Counter[str] = collections.Counter()
    for count in counts:
        total.update(count)
    return dict(sorted(total.items()))


def count_reasons(rejects: Iterable[Reject]) -> dict[str, int]:
    """Returns the number of rejects per reason."""
    reasons = pa.array([reject.reason for reject in rejects], pa.string())
    return {
        str(pair["values"]): int(pair["counts"]) for pair in pc.value_counts(reasons).to_pylist()
    }


def require_good_input(report: Report, *, max_reject_share: float, rejected: Path) -> None:
    """Lets a run pass only if its files were whole and few of its rows were rejected.

    Args:
        report: Of the whole run.
        max_reject_share: Largest part of the rows that may be rejected.
        rejected: Where the rejected rows were written, for the message.

    Raises:
        InputError: If not; with the reasons and how often each was found.
    """
    if report.problems:
        raise InputError("\n".join(report.problems))
    num_rows, num_rejects = report.counts.get("events_read", 0), sum(report.rejects.values())
    if num_rejects <= max_reject_share * num_rows:
        return
    reasons = sorted(report.rejects.items(), key=lambda pair: (-pair[1], pair[0]))
    lines = [f"  {count:>12,}  {reason}" for reason, count in reasons[:_MAX_REASONS]]
    raise InputError(
        f"samples.max_reject_share: found {num_rejects:,} of {num_rows:,} rows rejected"
        f" ({num_rejects / num_rows:.2%}); expected at most {max_reject_share:.2%}:\n"
        + "\n".join(lines)
        + f"\nthe rows are in {rejected}; the former output is unchanged"
    )
