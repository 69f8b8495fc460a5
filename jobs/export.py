"""`headrace export`: a checkpoint to a bundle of SavedModels with an index."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import logging
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel
from rich.console import Console
from rich.table import Table

from jobs.main import follow_parent, import_tensorflow, run_job
from jobs.settings import EXIT_DONE, add_config_arguments, load_settings
from models.bundle import Freshness, Manifest, current_version, prune, resolve_version
from models.bundle import read_manifest as read_bundle_manifest
from models.config import ExportConfig, TwoTowerConfig
from pipeline.manifest import MANIFEST_NAME, read_manifest, sample_files
from pipeline.schema import InputError, conform
from pipeline.specification import Specification
from streaming.checkpoints.newest import newest_checkpoint
from streaming.config import TrainConfig

if TYPE_CHECKING:
    from models.export import Trained

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.5
_DAY_SECONDS = 86_400


def sections() -> dict[str, type[BaseModel]]:
    """Returns what an export needs of a configuration."""
    from pipeline.samples import SamplesConfig  # Beam: not before the arguments are known

    return {
        "specification": Specification,
        "model": TwoTowerConfig,
        "samples": SamplesConfig,
        "train": TrainConfig,
        "export": ExportConfig,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Exports the newest checkpoint and prints what the new version has; or follows a run."""
    parser = argparse.ArgumentParser(prog="headrace export", description=__doc__)
    add_config_arguments(parser, {"export": ExportConfig})
    parser.add_argument(
        "--follow",
        action="store_true",
        help="export each new checkpoint of the run, until SIGTERM; the last one is exported yet",
    )
    arguments = parser.parse_args(argv)
    follow_parent()
    settings = load_settings(arguments.config, arguments.overrides, sections())
    import_tensorflow()
    if not arguments.follow:
        exporter = Exporter(settings)
        Console().print(_summary(exporter.export(exporter.load())))
        return EXIT_DONE
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    follow(Exporter(settings), stop)
    return EXIT_DONE


class Exporter:
    """Makes versions of checkpoints of one run; what stays the same is read once."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        """Prepares exports by their `sections`."""
        self._specification: Specification = settings["specification"]
        self._model_config: TwoTowerConfig = settings["model"]
        self._config: ExportConfig = settings["export"]
        self._run = Path(settings["train"].directory)
        self._samples = Path(settings["samples"].output)
        self.output = self._config.output / self._specification.name
        self._indexed: tuple[int, dict[str, pa.Table], pa.Table] | None = None

    @property
    def newest(self) -> tuple[str, int] | None:
        """Name and time of writing of the run's newest checkpoint.

        The number of one that was found damaged is given again.
        """
        folder = self._run / "checkpoints"
        while (name := newest_checkpoint(folder)) is not None:
            with contextlib.suppress(FileNotFoundError):  # a newer one took its place
                return name, (folder / name).stat().st_mtime_ns
        return None

    def load(self) -> Trained:
        """Loads the newest checkpoint; again if it was deleted meanwhile, as there is a newer one.

        Raises:
            InputError: If there is none, or it is of another specification or model.
        """
        while True:
            newest = self.newest
            try:
                return load_trained(self._run, self._specification, self._model_config)
            except InputError:
                if self.newest == newest:
                    raise

    def export(self, trained: Trained) -> Path:
        """Writes a version and makes it the current one; removes versions beyond `export.keep`."""
        from models.export import export_bundle

        candidates, queries = self._index()
        version = export_bundle(
            self.output,
            trained,
            candidates=candidates,
            queries=queries,
            num_results=self._config.num_results,
        )
        if self._config.keep is not None:
            prune(self.output, keep=self._config.keep)
        return version

    def _index(self) -> tuple[dict[str, pa.Table], pa.Table]:
        """Returns candidates and queries of the samples; read again when their manifest changes."""
        from models.index import collect_candidates, collect_queries

        manifest = self._samples / MANIFEST_NAME
        changed = manifest.stat().st_mtime_ns if manifest.exists() else 0
        if self._indexed is None or self._indexed[0] != changed:
            samples = load_samples(self._samples, self._specification)
            candidates = collect_candidates(samples, self._specification)
            self._indexed = changed, candidates, collect_queries(samples, self._specification)
        return self._indexed[1:]


def follow(exporter: Exporter, stop: threading.Event) -> None:
    """Exports each checkpoint that is the newest when the export before it is done.

    Args:
        exporter: Makes the versions.
        stop: Set to end, after the newest checkpoint has been exported.

    Raises:
        InputError: If checkpoints or samples are not what the configuration says.
    """
    done = _exported(exporter)
    seen: tuple[str, int] | None = None
    while True:
        ending = stop.is_set()  # asked first: what was saved before it is exported
        newest = exporter.newest
        if newest is not None and newest != seen:
            trained = exporter.load()
            fresh = _named(trained.freshness)
            if fresh is not None and fresh != done and trained.step > 0:  # 0: nothing learned yet
                _export_one(exporter, trained)
                done = fresh
            seen = newest
        elif ending:
            return
        else:
            stop.wait(_POLL_SECONDS)


def _exported(exporter: Exporter) -> tuple[str, int] | None:
    """Returns the checkpoint of the current version."""
    if current_version(exporter.output) is None:
        return None
    return _named(read_bundle_manifest(resolve_version(exporter.output)).freshness)


def _named(freshness: Freshness | None) -> tuple[str, int] | None:
    """Returns what tells a checkpoint from all others, later ones of its number included."""
    return None if freshness is None else (freshness.checkpoint, freshness.taken_ms)


def _export_one(exporter: Exporter, trained: Trained) -> None:
    from models.export import ExportError

    started = time.monotonic()
    try:
        version = exporter.export(trained)
    except ExportError as error:
        logger.error("not published: %s", error)  # noqa: TRY400 - its traceback says no more
        return
    manifest = read_bundle_manifest(version)
    logger.info(
        "published %s in %.1f s: step %d; %s",
        version,
        time.monotonic() - started,
        manifest.step,
        ", ".join(f"{name} {value}" for name, value in freshness_rows(manifest)),
    )


def load_trained(directory: Path, specification: Specification, config: TwoTowerConfig) -> Trained:
    """Loads the newest checkpoint of a training run.

    Args:
        directory: The run's folder, `train.directory`.
        specification: What the samples are; must be the checkpoint's.
        config: The model; must fit the checkpoint's parameters.

    Raises:
        InputError: If there is no checkpoint, or it is of another specification or model.
    """
    from models.export import Trained
    from models.index import check_parameters
    from models.two_tower import TwoTower
    from streaming.checkpoints.store import load_checkpoint

    folder = directory / "checkpoints"
    loaded = load_checkpoint(folder, parameters_only=True)
    if loaded.specification_fingerprint != specification.fingerprint:
        raise InputError(
            f"{folder}: found a checkpoint of specification {loaded.specification_fingerprint};"
            f" expected {specification.fingerprint}, as in the configuration: use the file that"
            " trained it, or train again"
        )
    model = TwoTower(specification, config)
    try:
        check_parameters(model, loaded.parameters)
    except ValueError as error:
        raise InputError(f"{folder}: not a checkpoint of section 'model': {error}") from error
    fresh = loaded.freshness
    return Trained(
        model=model,
        parameters=loaded.parameters,
        step=loaded.step,
        ledger=loaded.ledger,
        freshness=Freshness(
            checkpoint=loaded.name,
            taken_ms=fresh.taken_ms,
            watermark_ms=fresh.watermark_ms,
            newest_event_ms=fresh.newest_event_ms,
        ),
    )


def load_samples(folder: Path, specification: Specification) -> pa.Table:
    """Reads all samples of a folder that `headrace samples` wrote.

    Raises:
        InputError: If there are none, or they are of another specification.
    """
    manifest = read_manifest(folder)
    if manifest.specification != specification.fingerprint:
        raise InputError(
            f"{folder}: found samples of specification {manifest.specification}; expected"
            f" {specification.fingerprint}, as in the configuration: run `headrace samples` again"
        )
    # ParquetFile, since read_table would add a column from the folder's name, dt=YYYY-MM-DD.
    parts = [
        conform(pq.ParquetFile(file.path).read(), specification.sample_schema, where=str(file.path))
        for file in sample_files(folder)
        if file.rows
    ]
    if not parts:
        raise InputError(f"{folder}: found no samples; expected at least one")
    return pa.concat_tables(parts)


def _summary(version: Path) -> Table:
    manifest = read_bundle_manifest(version)
    table = Table(title=f"{manifest.model} {manifest.version}", show_header=False)
    table.add_row("folder", str(version))
    table.add_row("before", manifest.parent_version or "none")
    table.add_row("step", f"{manifest.step:,}")
    for name, value in freshness_rows(manifest):
        table.add_row(name, value)
    for scenario, count in manifest.scenarios.items():
        table.add_row(f"candidates, {scenario}", f"{count:,}")
    total = sum(entry.bytes for entry in manifest.files.values())
    table.add_row("size", f"{total / 1e6:,.1f} MB in {len(manifest.files)} files")
    return table


def freshness_rows(manifest: Manifest) -> list[tuple[str, str]]:
    """Returns what a version says of the events that it knows, for a person, at its publication."""
    fresh = manifest.freshness
    if fresh is None:
        return []
    rows = [("state copied", f"{_duration(fresh.published_ms - fresh.taken_ms)} before")]
    for name, time_ms in [
        ("newest event", fresh.newest_event_ms),
        ("all events before", fresh.watermark_ms),
    ]:
        if time_ms is not None:
            moment = datetime.datetime.fromtimestamp(1e-3 * time_ms, datetime.UTC)
            age = _duration(fresh.published_ms - time_ms)
            rows.append((name, f"{moment:%Y-%m-%d %H:%M:%S} UTC ({age} before)"))
    return rows


def _duration(milliseconds: int) -> str:
    seconds = 1e-3 * milliseconds
    return f"{seconds:,.1f} s" if seconds < _DAY_SECONDS else f"{seconds / _DAY_SECONDS:,.1f} days"


if __name__ == "__main__":
    sys.exit(run_job(main))
