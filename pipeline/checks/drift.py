"""A day's samples against the last good days: measures, and findings where one is past its limit.

Every measure comes with its noise: how far it would go by chance if nothing had changed. A finding
is past its limit *and* past its noise, so that a day of few rows is not called drift. Rows of one
user are no independent witnesses, so a day counts as many as it has users (items, where samples
have no user), if it has fewer users than rows.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Iterator, Sequence
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from pipeline import schema as s
from pipeline.checks.limits import Checks, Limit
from pipeline.checks.profile import Column, Numbers, Profile, merge_columns
from pipeline.checks.sketch import merge_sketches, new_share

MeasureName = Literal["rows", "nulls", "vocabulary", "psi", "length_psi"]
FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

# Noise is four standard deviations: one in 30,000 equal days, features and kinds goes further.
_DEVIATIONS: Final = 4.0
# The usual PSI has ten groups of equal shares; twenty see a change that is half as wide.
GROUP_SHARE: Final = 0.05
_SMOOTHING: Final = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Measure:
    """One number of a day, measured against the last good days.

    Attributes:
        name: `rows`: how many times more or fewer rows than their median.
            `nulls`: rise of the share of rows without a value.
            `vocabulary`: rise of the share of distinct ids that the good days do not have, over
            that of the newest good day against those before it.
            `psi`, `length_psi`: index of the values, and of the lengths of lists.
        column: Of the samples; empty for `rows`.
        value: The measure, to be compared with a limit.
        noise: What it reaches by chance.
        found: The day's own number: rows, or a share; of an index, the index.
        usual: The same of the good days; of an index, 0.
    """

    name: MeasureName
    column: str
    value: float
    noise: float
    found: float
    usual: float


class Finding(BaseModel):
    """A measure past its limit; `str` gives one line for a person.

    Attributes:
        kind: Of the samples.
        day: UTC day, YYYY-MM-DD.
        column: Of the samples; empty for `rows`.
        measure: See `Measure`; so for `value`, `found` and `usual`.
        value: What was measured.
        found: The day's own number.
        usual: That of the last good days.
        limit: The limit that it is past: the measure's, or its noise if that is more.
        severity: `warn`: the day is published; `fail`: its former version stays.
        days: Number of good days that it was compared with.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    kind: str
    day: str
    column: str = ""
    measure: MeasureName
    value: float
    found: float
    usual: float
    limit: float
    severity: Literal["warn", "fail"]
    days: int

    def __str__(self) -> str:
        where = f"{self.severity}: {self.kind} of {self.day}" + (
            f", {self.column}" if self.column else ""
        )
        days = f"{self.days} good day{'s' if self.days > 1 else ''}"
        return f"{where}: {self.text} (compared with {days})"

    @property
    def text(self) -> str:
        """What was found, without where."""
        if self.measure == "rows" and not self.found:
            return f"found no rows, usual are {self.usual:,.0f}"
        if self.measure == "rows":
            return (
                f"found {self.found:,.0f} rows, usual are {self.usual:,.0f}: {self.value:.2f} times"
                f" {'more' if self.found > self.usual else 'fewer'}; expected at most"
                f" {self.limit:.2f} times"
            )
        if self.measure in ("psi", "length_psi"):
            what = "hours of the day" if self.column == s.TIMESTAMP_MS else "values"
            what = what if self.measure == "psi" else "list lengths"
            return (
                f"found a population stability index of {self.value:.3f} of its {what}; expected at"
                f" most {self.limit:.3f}"
            )
        what = "rows without a value" if self.measure == "nulls" else "distinct ids that are new"
        return (
            f"found {self.found:.2%} {what}, usual are {self.usual:.2%}; expected a rise of at most"
            f" {self.limit:.2%}"
        )


def check(
    day: Profile, reference: Sequence[Profile], checks: Checks, *, kind: str, date: str
) -> list[Finding]:
    """Compares a day's samples with the last good days.

    Args:
        day: All samples of one kind and day; one without rows, if the day has none.
        reference: The last good days of that kind, oldest first; the last `checks.days` are used.
            Without any there is nothing to compare with, and no finding.
        checks: The limits.
        kind: Of the samples, for the findings.
        date: UTC day, for the findings.
    """
    good = reference[-checks.days :]
    findings = []
    for measure in measures(day, good):
        name = "psi" if measure.name == "length_psi" else measure.name
        limit = checks.limit(name, measure.column)
        severity = _severity(measure, limit)
        if severity is None:
            continue
        bound = limit.fail if severity == "fail" else limit.warn
        findings.append(
            Finding(
                kind=kind,
                day=date,
                column=measure.column,
                measure=measure.name,
                value=measure.value,
                found=measure.found,
                usual=measure.usual,
                limit=max(bound or 0.0, measure.noise),
                severity=severity,
                days=len(good),
            )
        )
    return findings


def _severity(measure: Measure, limit: Limit) -> Literal["warn", "fail"] | None:
    if measure.value <= measure.noise:
        return None
    if limit.fail is not None and measure.value > limit.fail:
        return "fail"
    return "warn" if limit.warn is not None and measure.value > limit.warn else None


def measures(day: Profile, reference: Sequence[Profile]) -> Iterator[Measure]:
    """Yields everything that is measured of a day against good days, oldest first.

    A column is compared with the days that have it in the same form; a column that none has, and
    all columns of a day without rows, with nothing.
    """
    good = [each for each in reference if each.rows]
    if not good:
        return
    yield _measure_rows(day, good)
    witnesses = _witnesses(day), _witnesses(*good)
    for name, column in day.columns.items():
        same = [
            each for each in good if name in each.columns and each.columns[name].form == column.form
        ]
        if not same or not day.rows:
            continue
        columns = [each.columns[name] for each in same]
        rows = day.rows, sum(each.rows for each in same)
        yield _measure_nulls(name, column, columns, rows=rows, witnesses=witnesses)
        yield from _measure_vocabulary(name, column, columns)
        yield from _measure_psi(name, column, columns, rows=rows, witnesses=witnesses)


def _witnesses(*profiles: Profile) -> float:
    """Returns how many independent witnesses there are: users, or items, or rows, if fewer."""
    rows = sum(profile.rows for profile in profiles)
    for name in (s.USER_ID, s.ITEM_ID):
        found = [profile.columns[name].ids for profile in profiles if name in profile.columns]
        sketches = [ids.sketch for ids in found if ids is not None]
        if sketches:
            return min(rows, merge_sketches(sketches).distinct)
    return rows


def _measure_rows(day: Profile, good: Sequence[Profile]) -> Measure:
    """Half as many rows are as far from the usual as twice as many: ratios, by their logarithm."""
    usual = statistics.median(each.rows for each in good)
    # A day without rows is as good as one of half a row.
    ratio = max(day.rows, 0.5) / usual
    witnesses = max(_witnesses(day), 0.5), statistics.median(_witnesses(each) for each in good)
    deviation = math.sqrt(sum(1 / count for count in witnesses))
    return Measure(
        name="rows",
        column="",
        value=max(ratio, 1 / ratio),
        # exp() overflows far beyond any ratio of rows.
        noise=math.exp(min(_DEVIATIONS * deviation, 100.0)),
        found=day.rows,
        usual=usual,
    )


def _measure_nulls(
    name: str,
    column: Column,
    reference: Sequence[Column],
    *,
    rows: tuple[int, int],
    witnesses: tuple[float, float],
) -> Measure:
    missing = column.missing, sum(each.missing for each in reference)
    found, usual = (count / total for count, total in zip(missing, rows, strict=True))
    share = sum(missing) / sum(rows)
    variance = share * (1 - share) * sum(1 / count for count in witnesses)
    return Measure(
        name="nulls",
        column=name,
        value=found - usual,
        noise=_DEVIATIONS * math.sqrt(variance),
        found=found,
        usual=usual,
    )


def _measure_vocabulary(
    name: str, column: Column, reference: Sequence[Column]
) -> Iterator[Measure]:
    """A day always has some new ids; what is usual takes at least two good days to know."""
    sketches = [each.ids.sketch for each in reference if each.ids is not None]
    if column.ids is None or len(sketches) < 2:  # noqa: PLR2004 -- the newest, and one before it
        return
    found, num_found = new_share(column.ids.sketch, sketches)
    usual, num_usual = new_share(sketches[-1], sketches[:-1])
    if not num_found or not num_usual:
        return
    share = (found * num_found + usual * num_usual) / (num_found + num_usual)
    variance = share * (1 - share) * (1 / num_found + 1 / num_usual)
    yield Measure(
        name="vocabulary",
        column=name,
        value=found - usual,
        noise=_DEVIATIONS * math.sqrt(variance),
        found=found,
        usual=usual,
    )


def _measure_psi(
    name: str,
    column: Column,
    reference: Sequence[Column],
    *,
    rows: tuple[int, int],
    witnesses: tuple[float, float],
) -> Iterator[Measure]:
    merged = merge_columns(reference)
    pairs: list[tuple[MeasureName, IntArray, IntArray, bool, tuple[int, int]]] = []
    with_value = rows[0] - column.missing, rows[1] - merged.missing
    not_null = rows[0] - column.nulls, rows[1] - merged.nulls
    if column.ids is not None and merged.ids is not None:
        counts = np.array(column.ids.buckets), np.array(merged.ids.buckets)
        pairs.append(("psi", *counts, False, with_value))
    if column.numbers is not None and merged.numbers is not None:
        pairs.append(("psi", *aligned(column.numbers, merged.numbers), True, with_value))
    if column.lengths is not None and merged.lengths is not None:
        pairs.append(("length_psi", *aligned(column.lengths, merged.lengths), True, not_null))
    for measure, found, usual, ordered, values in pairs:
        if not found.any() or not usual.any():
            continue
        groups = group_counts(found, usual, ordered=ordered)
        index = psi(*groups)
        counted = [min(pair) for pair in zip(values, witnesses, strict=True)]
        noise = psi_noise(len(groups[0]), counted[0], counted[1])
        yield Measure(name=measure, column=name, value=index, noise=noise, found=index, usual=0.0)


def aligned(found: Numbers, usual: Numbers) -> tuple[IntArray, IntArray]:
    """Returns the counts of two histograms over the bins that either has, in order."""
    bins = sorted(found.bins.keys() | usual.bins.keys())
    counts = [[each.bins.get(number, 0) for number in bins] for each in (found, usual)]
    return np.array(counts[0], np.int64), np.array(counts[1], np.int64)


def group_counts(found: IntArray, usual: IntArray, *, ordered: bool) -> tuple[IntArray, IntArray]:
    """Adds up bins in groups of which each holds at least `GROUP_SHARE` of the reference.

    PSI adds up the noise of everything that it tells apart, so it is to tell apart no more than
    about twenty groups. Numbers are grouped with their neighbours. Buckets of ids have none: those
    that are frequent enough stand alone, the others are grouped as they come. What the reference
    never had is a group of its own, or a new value would hide among known ones. Of that, some is
    usual where values are many: about as much as the reference has values seen once (Good 1953).

    Args:
        found: [num_bins] counts of the day, at least one above 0.
        usual: [num_bins] counts of the reference, at least one above 0.
        ordered: Whether neighbours are alike.

    Returns:
        [num_groups] counts of the day, and of the reference.
    """
    least = GROUP_SHARE * usual.sum()
    positions = np.flatnonzero(usual)
    if not ordered:
        frequent = usual[positions] >= least
        positions = np.concatenate([positions[frequent], positions[~frequent]])
    pairs = [[0, 0]]
    for position in positions.tolist():
        if pairs[-1][1] >= least:
            pairs.append([0, 0])
        pairs[-1][0] += int(found[position])
        pairs[-1][1] += int(usual[position])
    if len(pairs) > 1 and pairs[-1][1] < least:
        rest = pairs.pop()
        pairs[-1] = [pairs[-1][0] + rest[0], pairs[-1][1] + rest[1]]
    unseen = int(found[usual == 0].sum())
    if unseen:
        pairs.append([unseen, int(np.count_nonzero(usual == 1))])
    day, reference = np.array(pairs, np.int64).T
    return day, reference


def psi(found: IntArray | FloatArray, usual: IntArray | FloatArray) -> float:
    """Returns the population stability index: the sum of (q - p) ln(q / p) over groups.

    p and q are the groups' shares in the reference and in the day. Half a row is added to every
    group on both sides, since a share of 0 would make it infinite.

    Args:
        found: [num_groups] counts of the day.
        usual: [num_groups] counts of the reference.
    """
    q, p = (
        (counts + _SMOOTHING) / (counts.sum() + _SMOOTHING * len(counts))
        for counts in (found, usual)
    )
    return float(np.sum((q - p) * np.log(q / p)))


def psi_noise(num_groups: int, num_found: float, num_usual: float) -> float:
    """Returns what the index of two samples of one distribution rarely exceeds.

    It is then (1 / n + 1 / m) times a chi-square of num_groups - 1 degrees of freedom (Yurdakul and
    Naranjo 2020); this is its quantile at four standard deviations, by Wilson and Hilferty's cubes.
    """
    freedom = max(num_groups - 1, 1)
    spread = 2 / (9 * freedom)
    quantile = freedom * (1 - spread + _DEVIATIONS * math.sqrt(spread)) ** 3
    return quantile * (1 / max(num_found, 0.5) + 1 / max(num_usual, 0.5))
