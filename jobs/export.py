"""`headrace export`: a checkpoint to a bundle of SavedModels with an index."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel
from rich.console import Console
from rich.table import Table

from jobs.main import run_job
from jobs.settings import EXIT_DONE, add_config_arguments, load_settings
from models.bundle import read_manifest as read_bundle_manifest
from models.config import TwoTowerConfig
from models.export import ExportConfig, Trained, export_bundle
from models.index import check_parameters, collect_candidates, collect_queries
from models.two_tower import TwoTower
from pipeline.manifest import read_manifest, sample_files
from pipeline.samples import SamplesConfig
from pipeline.schema import InputError, conform
from pipeline.specification import Specification
from streaming.checkpoint import load_checkpoint
from streaming.config import TrainConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Exports the newest checkpoint and prints what the new version has."""
    parser = argparse.ArgumentParser(prog="headrace export", description=__doc__)
    add_config_arguments(parser)
    arguments = parser.parse_args(argv)
    sections: dict[str, type[BaseModel]] = {
        "specification": Specification,
        "model": TwoTowerConfig,
        "samples": SamplesConfig,
        "train": TrainConfig,
        "export": ExportConfig,
    }
    settings = load_settings(arguments.config, arguments.overrides, sections)
    specification, config = settings["specification"], settings["export"]
    trained = load_trained(Path(settings["train"].directory), specification, settings["model"])
    samples = load_samples(Path(settings["samples"].output), specification)
    version = export_bundle(
        config.output / specification.name,
        trained,
        candidates=collect_candidates(samples, specification),
        queries=collect_queries(samples, specification),
        num_results=config.num_results,
    )
    Console().print(_summary(version))
    return EXIT_DONE


def load_trained(directory: Path, specification: Specification, config: TwoTowerConfig) -> Trained:
    """Loads the newest checkpoint of a training run.

    Args:
        directory: The run's folder, `train.directory`.
        specification: What the samples are; must be the checkpoint's.
        config: The model; must fit the checkpoint's parameters.

    Raises:
        InputError: If there is no checkpoint, or it is of another specification or model.
    """
    folder = directory / "checkpoints"
    loaded = load_checkpoint(folder)
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
    return Trained(
        model=model, parameters=loaded.parameters, step=loaded.step, ledger=loaded.ledger
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
    for scenario, count in manifest.scenarios.items():
        table.add_row(f"candidates, {scenario}", f"{count:,}")
    total = sum(entry.bytes for entry in manifest.files.values())
    table.add_row("size", f"{total / 1e6:,.1f} MB in {len(manifest.files)} files")
    return table


if __name__ == "__main__":
    sys.exit(run_job(main))
