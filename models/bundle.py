"""The export bundle on disk: its layout, its manifest, and how a version comes to be seen.

```
MODEL/CURRENT                              the name of the version to serve
MODEL/VERSION/manifest.json                what it is, and the sha256 of every other file
MODEL/VERSION/{query,candidate}/           SavedModels
MODEL/VERSION/retrieval/SCENARIO/          SavedModel: raw query features to item ids and scores
MODEL/VERSION/index/SCENARIO/candidates.parquet   item ids, features, titles, vectors
MODEL/VERSION/queries.parquet              each user's latest query features
```

A version is written aside, made durable, and renamed into place; then `CURRENT` is replaced. So a
reader that starts from `CURRENT` never sees half a version, whenever the writer dies.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline import durable
from pipeline.schema import InputError

CURRENT: Final = "CURRENT"
MANIFEST: Final = "manifest.json"
QUERIES: Final = "queries.parquet"
CANDIDATES: Final = "candidates.parquet"
VECTOR: Final = "vector"
"""Output of the towers' signatures, and a column of `candidates.parquet`."""
SCORE: Final = "score"
"""Output of `retrieval`, beside `item_id`."""
_WRITING = ".writing-"
_LOCK = ".lock"
_VERSION_DIGITS = 8
_REPAIR = "expected the files as they were exported: copy the version again, or export a new one"


class FileEntry(BaseModel):
    """One file of a version."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: str
    bytes: int


class Freshness(BaseModel):
    """How new the events are that a version has learned. Times are milliseconds since 1970."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    checkpoint: str
    """Name of the checkpoint that it was made from; `ledger` has its offsets."""
    taken_ms: int
    """When that checkpoint's state was copied."""
    watermark_ms: int | None
    """All events before it, of every partition that was not idle, were learned."""
    newest_event_ms: int | None
    """The newest event that was learned."""
    published_ms: int = 0
    """When the version was complete."""


class Manifest(BaseModel):
    """What a version is, where it came from, and which files it has."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["headrace.bundle.1"] = "headrace.bundle.1"
    model: str
    version: str
    parent_version: str | None
    """The version that `CURRENT` named before."""
    step: int
    ledger: dict[str, Any]
    """Which samples were learned, as the checkpoint has it."""
    freshness: Freshness | None = None
    """How new they were; None if that is not known."""
    watermark_ms: int | None
    """Latest event time among the samples of the index."""
    metrics: dict[str, Any]
    specification: dict[str, Any]
    specification_fingerprint: str
    schema_fingerprint: str
    config: dict[str, Any]
    scenarios: dict[str, int]
    """Number of candidates, per scenario."""
    files: dict[str, FileEntry] = {}


def directory_name(scenario: str) -> str:
    """Returns the folder of a scenario.

    Raises:
        InputError: If the scenario's name cannot be a folder's.
    """
    if scenario in ("", ".", "..") or "/" in scenario or "\0" in scenario:
        raise InputError(
            f"scenario {scenario!r}: expected a name that a folder can have; found one with '/'"
            " or empty"
        )
    return scenario


def resolve_version(path: Path) -> Path:
    """Returns the folder of a version, given that or the folder of its model.

    Raises:
        InputError: If there is none.
    """
    if (path / MANIFEST).is_file():
        return path
    current = current_version(path)
    if current is None:
        raise InputError(
            f"{path}: found neither {MANIFEST} nor {CURRENT}; expected the folder of a model or of"
            " a version, as `headrace export` writes them"
        )
    if not (path / current / MANIFEST).is_file():
        raise InputError(
            f"{path / CURRENT}: names version {current!r}, which has no {MANIFEST} there; expected"
            f" one of {[version.name for version in versions(path)]}"
        )
    return path / current


def current_version(model: Path) -> str | None:
    """Returns the version that `CURRENT` names, None before the first export."""
    try:
        return (model / CURRENT).read_text(encoding="utf-8").strip()
    except (FileNotFoundError, NotADirectoryError):
        return None


def versions(model: Path) -> list[Path]:
    """Returns the folders of all complete versions, oldest first."""
    return sorted(each.parent for each in model.glob(f"[0-9]*/{MANIFEST}"))


def next_version(model: Path) -> str:
    """Returns a number above all versions ever seen here, with leading zeros: 00000001 first.

    Names so sort as numbers do, and a deleted latest version that `CURRENT` still names is not
    given again.
    """
    names = [each.name for each in model.iterdir()] + [current_version(model) or "0"]
    newest = max((int(name) for name in names if name.isdecimal()), default=0)
    return f"{newest + 1:0{_VERSION_DIGITS}d}"


@contextlib.contextmanager
def writing(model: Path) -> Iterator[Path]:
    """Yields an empty folder to write a version in; removes what a dead writer left.

    The folder is removed at the end unless `publish` has renamed it. One writer at a time: the lock
    is the kernel's, so a killed writer does not keep it.

    Raises:
        InputError: If another export to this model is running.
    """
    model.mkdir(parents=True, exist_ok=True)
    refusal = f"{model}: another export is writing here; expected one at a time: wait for it"
    with durable.locked(model / _LOCK, refusal=refusal):
        for leftover in model.glob(f"{_WRITING}*"):
            shutil.rmtree(leftover)
        aside = model / f"{_WRITING}{next_version(model)}"
        aside.mkdir()
        try:
            yield aside
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def publish(aside: Path, manifest: Manifest) -> Path:
    """Completes a version: its manifest, durability, its name, then `CURRENT`.

    Args:
        aside: The folder from `writing`, with all files but the manifest.
        manifest: Without `files`, which are filled in here.

    Returns:
        The version's folder.
    """
    update: dict[str, Any] = {"files": _entries(aside)}
    if manifest.freshness is not None:
        now = time.time_ns() // 1_000_000
        update["freshness"] = manifest.freshness.model_copy(update={"published_ms": now})
    complete = manifest.model_copy(update=update)
    (aside / MANIFEST).write_text(complete.model_dump_json(indent=2), encoding="utf-8")
    durable.sync_tree(aside)
    model = aside.parent
    version = model / manifest.version
    aside.rename(version)
    durable.sync(model)
    durable.write(model / CURRENT, f"{manifest.version}\n")
    return version


def prune(model: Path, *, keep: int) -> list[str]:
    """Removes all but the newest versions; never the one that `CURRENT` names.

    Returns:
        The versions that were removed.
    """
    current, removed = current_version(model), []
    for version in versions(model)[:-keep]:
        if version.name == current:
            continue
        gone = model / f"{_WRITING}gone-{version.name}"  # a writer that is killed here leaves it
        version.rename(gone)
        shutil.rmtree(gone)
        removed.append(version.name)
    return removed


def _entries(version: Path) -> dict[str, FileEntry]:
    return {
        path.relative_to(version).as_posix(): FileEntry(
            sha256=_sha256(path), bytes=path.stat().st_size
        )
        for path in sorted(version.rglob("*"))
        if path.is_file() and path != version / MANIFEST
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_manifest(version: Path) -> Manifest:
    """Reads a version's manifest, without a look at the other files.

    Raises:
        InputError: If it is missing or not a manifest.
    """
    path = version / MANIFEST
    try:
        return Manifest.model_validate_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: found no readable file: {error.strerror}; {_REPAIR}") from error
    except (ValidationError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: found no valid manifest: {error}; {_REPAIR}") from error


def verify_bundle(version: Path) -> Manifest:
    """Compares every file of a version with the manifest.

    Returns:
        The manifest.

    Raises:
        InputError: If a file was altered, is missing, or is not listed; it names them all.
    """
    manifest = read_manifest(version)
    found = _entries(version)
    problems = []
    for name in sorted(manifest.files.keys() | found.keys()):
        expected, actual = manifest.files.get(name), found.get(name)
        if expected is None:
            problems.append(f"{version / name}: found a file that the manifest does not list")
        elif actual is None:
            problems.append(f"{version / name}: found no file; expected sha256 {expected.sha256}")
        elif actual != expected:
            problems.append(
                f"{version / name}: found sha256 {actual.sha256} ({actual.bytes} bytes);"
                f" expected {expected.sha256} ({expected.bytes} bytes)"
            )
    if problems:
        raise InputError("\n".join([*problems, f"{version}: not served; {_REPAIR}"]))
    return manifest
