"""The data checks' report: one HTML file with what each day's samples were like.

`SamplesReport` holds what is shown; the days are measured again, as the checks did it; the pictures
are in `figures`, the page's text in `templates/samples.html.j2`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Final

from markupsafe import Markup

from jobs.report import figures
from jobs.report.page import page_style, svg, write_page
from pipeline.checks.drift import Finding, Measure, MeasureName, measures
from pipeline.checks.limits import Checks, PsiLimit
from pipeline.checks.profile import Profile, merge_columns
from pipeline.schema import TIMESTAMP_MS

MAX_DAYS: Final = 90
MAX_FINDINGS: Final = 100
MAX_FEATURES: Final = 40
_NUM_WORST: Final = 4

Counts = Mapping[str, Mapping[str, int]]
Profiles = Mapping[str, Mapping[str, Profile]]
Measured = Mapping[tuple[str, str, MeasureName], Measure]
"""By day, column and name."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SamplesReport:
    """Everything that the page shows.

    Attributes:
        name: Of the specification.
        profiles: By kind, then by UTC day: what is published, which later days are compared with.
        refused: The same, of versions that failed: shown in place of the published ones.
        findings: Of any of these days.
        rejects: By day, then by reason: rejected rows.
        outcomes: By day, then by fate: outcomes.
        checks: The limits.
    """

    name: str
    profiles: Profiles
    refused: Profiles = dataclasses.field(default_factory=dict)
    findings: Sequence[Finding] = ()
    rejects: Counts = dataclasses.field(default_factory=dict)
    outcomes: Counts = dataclasses.field(default_factory=dict)
    checks: Checks = dataclasses.field(default_factory=Checks)

    @property
    def kinds(self) -> list[str]:
        """The kinds of samples."""
        return list(dict.fromkeys([*self.profiles, *self.refused]))

    @property
    def days(self) -> list[str]:
        """The last `MAX_DAYS` days of any kind, in order."""
        days = {day for kind in self.kinds for day in self.shown(kind)}
        return sorted(days | self.rejects.keys() | self.outcomes.keys())[-MAX_DAYS:]

    def shown(self, kind: str) -> dict[str, Profile]:
        """Returns a kind's profiles by day, refused versions in place of published ones."""
        return {**self.profiles.get(kind, {}), **self.refused.get(kind, {})}

    def good(self, kind: str, day: str) -> list[Profile]:
        """Returns what a day is compared with, oldest first."""
        published = self.profiles.get(kind, {})
        before = [published[each] for each in sorted(published) if each < day]
        return before[-self.checks.days :]

    @property
    def newest_findings(self) -> list[Finding]:
        """Of the days shown: the newest day first, failures before warnings."""
        found = sorted(self._findings(), key=lambda each: (each.severity, each.kind, each.column))
        return sorted(found, key=lambda each: each.day, reverse=True)

    def count(self, severity: str) -> int:
        """Returns the number of findings of a severity on the days shown."""
        return sum(each.severity == severity for each in self._findings())

    def _findings(self) -> list[Finding]:
        shown = set(self.days)
        return [finding for finding in self.findings if finding.day in shown]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class KindPage:
    """One kind's pictures; None for those that have nothing to show."""

    name: str
    nulls: Markup | None
    vocabulary: Markup | None
    psi: Markup | None
    worst: Markup | None


def write_report(report: SamplesReport, path: Path) -> None:
    """Writes the page."""
    days = report.days
    shown = {kind: report.shown(kind) for kind in report.kinds}
    rows = {
        kind: [found[day].rows if day in found else None for day in days]
        for kind, found in shown.items()
    }
    flagged = {(each.kind, each.day) for each in report.findings if each.measure == "rows"}
    with page_style():
        pictures = {
            "rows": _draw_rows(days, rows, flagged),
            "rejects": _draw_counts(days, report.rejects, "Rejected rows per day and reason"),
            "outcomes": _draw_counts(days, report.outcomes, "Outcomes per day and fate"),
        }
        kinds = [_draw_kind(report, kind) for kind in report.kinds]
    template = Path(__file__).parent / "templates" / "samples.html.j2"
    write_page(
        path,
        template,
        report=report,
        days=days,
        rows=rows,
        pictures=pictures,
        kinds=kinds,
        max_findings=MAX_FINDINGS,
    )


def _draw_rows(
    days: Sequence[str],
    rows: Mapping[str, Sequence[int | None]],
    flagged: Collection[tuple[str, str]],
) -> Markup | None:
    if not any(any(counts) for counts in rows.values()):
        return None
    return svg(figures.draw_rows(days, rows, flagged), "Samples per day and kind")


def _draw_counts(days: Sequence[str], counts: Counts, title: str) -> Markup | None:
    parts = {part for each in counts.values() for part in each}
    stacked = {part: [counts.get(day, {}).get(part, 0) for day in days] for part in parts}
    largest_first = sorted(stacked.items(), key=lambda pair: (-sum(pair[1]), pair[0]))
    drawn = {part: found for part, found in largest_first if any(found)}
    return svg(figures.draw_stack(days, drawn), title) if drawn else None


def _draw_kind(report: SamplesReport, kind: str) -> KindPage:
    shown = report.shown(kind)
    days = [day for day in report.days if day in shown]
    measured = {
        (day, found.column, found.name): found
        for day in days
        for found in measures(shown[day], report.good(kind, day))
    }
    return KindPage(
        name=kind,
        nulls=_draw_heat(report, kind, measured, "nulls"),
        vocabulary=_draw_heat(report, kind, measured, "vocabulary"),
        psi=_draw_heat(report, kind, measured, "psi"),
        worst=_draw_worst(report, kind, measured),
    )


def _draw_heat(
    report: SamplesReport, kind: str, measured: Measured, name: MeasureName
) -> Markup | None:
    """Draws one measure of all features and days; without any value above 0, nothing."""
    shown = report.shown(kind)
    days = [day for day in report.days if day in shown]
    found: dict[str, list[float | None]] = {}
    for column in dict.fromkeys(column for day in days for column in shown[day].columns):
        for each in (name, "length_psi") if name == "psi" else (name,):
            label = f"{column}, lengths" if each == "length_psi" else column
            found[label] = [_found(measured.get((day, column, each))) for day in days]
            if name == "nulls":  # which need no day to compare with
                found[label] = [_missing_share(shown[day], column) for day in days]
    tallest = sorted(found, key=lambda label: -max(value or 0 for value in found[label]))
    chosen = {label: found[label] for label in tallest[:MAX_FEATURES] if any(found[label])}
    if not chosen:
        return None
    marked = _marked(report, kind, name)
    # Without a limit, too, the colours say what the convention calls drift.
    limit = (report.checks.limit("psi").warn or PsiLimit().warn) if name == "psi" else None
    picture = figures.draw_heat(days, chosen, marked, limit=limit)
    return svg(picture, f"{kind}: {name} per feature and day")


def _found(measure: Measure | None) -> float | None:
    return None if measure is None else measure.found


def _missing_share(profile: Profile, column: str) -> float | None:
    known = column in profile.columns and profile.rows > 0
    return profile.columns[column].missing / profile.rows if known else None


def _marked(report: SamplesReport, kind: str, name: MeasureName) -> dict[tuple[str, str], str]:
    """Returns the severity by label and day of what the checks found."""
    found: dict[tuple[str, str], str] = {}
    for each in report.findings:
        if each.kind == kind and each.measure in (name, f"length_{name}"):
            label = each.column if each.measure == name else f"{each.column}, lengths"
            found[label, each.day] = each.severity
    return found


def _draw_worst(report: SamplesReport, kind: str, measured: Measured) -> Markup | None:
    """Draws the features that drift most, each on its worst day, beside the good days before."""
    worst: dict[str, tuple[float, str]] = {}
    for (day, column, name), found in measured.items():
        # What is not checked is known to drift.
        if name == "psi" and report.checks.limit("psi", column).warn is not None:
            worst[column] = max(worst.get(column, (0.0, "")), (found.value, day))
    ranked = sorted(worst.items(), key=lambda pair: (-pair[1][0], pair[0]))
    drawn = []
    for column, (index, day) in ranked[:_NUM_WORST]:
        now = report.shown(kind)[day].columns[column]
        good = [each.columns.get(column) for each in report.good(kind, day)]
        same = [each for each in good if each is not None and each.form == now.form]
        if index > 0:
            title = f"{column}, {day} (PSI {index:.3f})"
            unit = "hour of the day, UTC" if column == TIMESTAMP_MS else "value"
            then = merge_columns(same)
            drawn.append(figures.Pair(title=title, unit=unit, now=now, then=then))
    return svg(figures.draw_pairs(drawn), f"{kind}: the largest drifts") if drawn else None
