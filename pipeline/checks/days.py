"""The days of a build, held against the days before them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import pyarrow as pa

from pipeline import durable
from pipeline import schema as s
from pipeline.checks.drift import Finding, check
from pipeline.checks.profile import Profile, profile
from pipeline.specification import Specification

PROFILES: Final = "profiles"
_COUNTS: Final = (
    s.ITEM_IMPRESSIONS,
    s.ITEM_POSITIVES,
    s.SCENARIO_IMPRESSIONS,
    s.SCENARIO_POSITIVES,
    s.ITEM_SCENARIO_IMPRESSIONS,
    s.ITEM_SCENARIO_POSITIVES,
    s.LABEL,
    s.CANDIDATE,
    s.VIEW,
    f"{s.BEHAVIOUR}time_bucket",
)


def profile_path(folder: Path, kind: str, day: str) -> Path:
    """Returns where the profile of a kind and day stands in a run's folder."""
    return folder / PROFILES / kind / f"dt={day}.json"


def profile_samples(samples: pa.Table, specification: Specification) -> Profile:
    """Profiles samples of one kind and day, all or a part of them."""
    features = [*specification.query_features, *specification.candidate_features]
    numbers = {feature.name for feature in features if feature.kind == "number"}
    return profile(samples, numbers={*numbers, *_COUNTS}, skip={s.EVENT_ID, s.PAIR_ID})


def write_profiles(path: Path, profiles: Iterable[Profile]) -> None:
    """Writes the profile of the rows of several."""
    _write(path, Profile.merge(profiles))


def merge_profiles(paths: Iterable[Path], merged: Path) -> None:
    """Writes the profile of the rows of several."""
    write_profiles(merged, map(read_profile, sorted(paths)))


def read_profile(path: Path) -> Profile:
    """Returns a profile; that of no rows, if there is no file."""
    return Profile.model_validate_json(path.read_bytes()) if path.exists() else Profile()


def _write(path: Path, found: Profile) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    durable.write(path, found.model_dump_json(), sync_folder=False)  # `Run.commit` syncs those


def check_days(
    folder: Path,
    former: Path | None,
    specification: Specification,
    *,
    kinds: Sequence[str],
    built: Sequence[str],
    stay: Sequence[str],
) -> dict[str, list[Finding]]:
    """Compares days with the days before them.

    Args:
        folder: The run that is made.
        former: The run before it, which has the profiles of the days that stay.
        specification: Has the limits.
        kinds: The kinds of sample.
        built: The days that are built.
        stay: Days that are good as they are.

    Returns:
        What was found, by day; days without findings too.
    """
    checks = specification.checks
    findings: dict[str, list[Finding]] = {day: [] for day in built}
    for kind in kinds:
        profiles: dict[str, Profile] = {}
        if former is not None:
            first, newest = min(built, default=""), max(built, default="")
            older = [day for day in sorted(stay) if day < first][-checks.days :]
            between = [day for day in stay if first < day < newest]
            profiles = {
                day: read_profile(profile_path(former, kind, day)) for day in (*older, *between)
            }
        for day in sorted(built):
            found = read_profile(profile_path(folder, kind, day))
            reference = [profiles[each] for each in sorted(profiles) if each < day]
            reference = reference[-checks.days :]
            findings[day] += check(found, reference, checks, kind=kind, date=day)
            profiles[day] = found
    return findings
