"""What a folder of samples has to show: profiles, findings and counts of its days."""

from __future__ import annotations

from pathlib import Path

from jobs.report.samples import SamplesReport
from pipeline.checks.days import profile_path, read_profile
from pipeline.checks.profile import Profile
from pipeline.join.step import FATES
from pipeline.manifest import Manifest, read_manifest
from pipeline.specification import Specification


def report_of_days(specification: Specification, output: Path) -> SamplesReport:
    """Reads the account and the profiles that a run has left.

    Args:
        specification: Has the limits.
        output: Of `headrace samples`.

    Raises:
        InputError: If there is no whole run.
    """
    manifest = read_manifest(output)
    profiles: dict[str, dict[str, Profile]] = {}
    for kind in manifest.kinds:
        for day in manifest.days:
            path = profile_path(output, kind, day.day)
            if path.exists():
                profiles.setdefault(kind, {})[day.day] = read_profile(path)
    return SamplesReport(
        name=specification.name,
        profiles=profiles,
        findings=[finding for day in manifest.days for finding in day.findings],
        rejects=_rejects_by_day(manifest),
        outcomes={
            day.day: {fate: day.counts[fate] for fate in FATES if day.counts.get(fate)}
            for day in manifest.days
        },
        checks=specification.checks,
    )


def _rejects_by_day(manifest: Manifest) -> dict[str, dict[str, int]]:
    """A build of several days cannot say which day a rejected row would have been of."""
    single = {build.number: build for build in manifest.builds if build.days.count("-") == 2}  # noqa: PLR2004 -- YYYY-MM-DD
    return {day.day: single[day.build].rejects for day in manifest.days if day.build in single}
