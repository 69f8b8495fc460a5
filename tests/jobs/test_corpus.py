from __future__ import annotations

from pathlib import Path

import streaming  # noqa: F401 - before TensorFlow: picks Keras 2

import numpy as np  # isort: skip
import pytest

from jobs.corpus import read_corpus
from pipeline.schema import InputError
from tests.models import toy
from tests.sample_folder import write_samples


def test_the_corpus_is_every_item_with_its_latest_features_and_its_count(tmp_path: Path) -> None:
    samples = toy.samples()
    # A later part holds earlier samples: it is the time that says which is the latest.
    days = {("2026-01-01", 0): samples.slice(30), ("2026-01-02", 0): samples.slice(0, 30)}
    write_samples(tmp_path, days)
    draws = toy.model(negatives={"corpus": {"count": 4, "smoothing": 1.0}}).corpus
    found = read_corpus(tmp_path, draws)
    latest = {row["item_id"]: row for row in samples.to_pylist()}  # in order of time
    counts = np.bincount(samples["item_id"].to_numpy())
    features = found.features(np.arange(len(latest)))
    assert features["item_id"].numpy().tolist() == sorted(latest)
    positives = [latest[item]["item_positives"] for item in sorted(latest)]
    assert features["item_positives"].numpy().tolist() == positives
    np.testing.assert_allclose(found.probability, counts[sorted(latest)] / 60)


def test_a_folder_without_samples_is_refused(tmp_path: Path) -> None:
    draws = toy.model(negatives={"corpus": {"count": 4}}).corpus
    with pytest.raises(InputError, match="headrace samples"):
        read_corpus(tmp_path / "nothing", draws)
