"""A deployment that was run up to its first checkpoint, without a cluster."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import tensorflow as tf
import yaml

from pipeline.manifest import MANIFEST_NAME, read_manifest
from streaming.checkpoints.store import CheckpointStore
from streaming.ledger import Ledger
from tests.models import toy
from tests.sample_folder import write_samples


def write_run(root: Path) -> Path:
    """Writes samples, a checkpoint and a configuration below `root`; returns the last."""
    model = toy.model()
    write_folder(root / "samples", toy.samples())
    store = CheckpointStore(
        root / "run" / "checkpoints",
        keep=1,
        fingerprints={"specification": model.specification.fingerprint},
    )
    tables = {table.name for table in model.tables}
    variables = {
        f"{'table' if name in tables else 'weight'}/{name}": tf.Variable(value)
        for name, value in toy.parameters(model).items()
    }
    store.save(tf.train.Checkpoint(**variables), Ledger({}, {}), step=42)
    config = {
        "specification": model.specification.model_dump(mode="json"),
        "samples": {"inputs": ["unused"], "output": str(root / "samples")},
        "model": {"hidden": [6], "dim": 4},
        "train": {
            "directory": str(root / "run"),
            "source": {"archive": {"directory": str(root / "samples")}},
        },
        "export": {"output": str(root / "bundles"), "num_results": 3},
    }
    path = root / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def write_folder(folder: Path, samples: pa.Table) -> None:
    """Writes a folder of samples of the toy specification, in two files."""
    half = samples.num_rows // 2
    write_samples(
        folder, {("2026-01-01", 0): samples.slice(0, half), ("2026-01-02", 0): samples.slice(half)}
    )
    manifest = read_manifest(folder)
    mine = manifest.model_copy(update={"specification": toy.specification().fingerprint})
    (folder / MANIFEST_NAME).write_text(mine.model_dump_json())
