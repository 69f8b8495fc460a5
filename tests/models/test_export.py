from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from models import export
from models.bundle import current_version, read_manifest, verify_bundle, versions
from models.export import ExportError, Trained, export_bundle
from models.features import signature_inputs
from models.index import collect_candidates, collect_queries, vectors
from tests.models import toy

# Runs without this project and without Keras 2: only TensorFlow and NumPy.
_BARE_CLIENT = """
import json, sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {
            "tf_keras", "tensorflow_recommenders", "pipeline", "models", "streaming", "jobs"
        }:
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Blocked())
import numpy as np
import tensorflow as tf
request = json.load(sys.stdin)
answers = []
for call in request:
    signature = tf.saved_model.load(call["path"]).signatures[call["signature"]]
    specs = signature.structured_input_signature[1]
    inputs = {name: tf.constant(value, specs[name].dtype) for name, value in call["inputs"].items()}
    result = {name: value.numpy() for name, value in signature(**inputs).items()}
    answers.append({
        name: [[x.decode() if isinstance(x, bytes) else x for x in row] for row in value.tolist()]
        for name, value in result.items()
    })
loaded = sorted(name for name in sys.modules if name.split(".")[0] in {"tf_keras", "models"})
json.dump({"answers": answers, "loaded": loaded}, sys.stdout)
"""


def export_toy(directory: Path, *, ids: str = "int64", seed: int = 0) -> Path:
    model = toy.model(ids=ids)
    samples = toy.samples(ids=ids)
    return export_bundle(
        directory,
        Trained(model=model, parameters=toy.parameters(model, seed=seed), step=7, ledger={"a": 1}),
        candidates=collect_candidates(samples, model.specification),
        queries=collect_queries(samples, model.specification),
        num_results=5,
    )


def request_of(path: Path, signature: str, inputs: dict[str, object]) -> dict[str, object]:
    plain = {}
    for name, value in inputs.items():
        rows = value.numpy().tolist()
        plain[name] = json.loads(json.dumps(rows, default=bytes.decode))
    return {"path": str(path), "signature": signature, "inputs": plain}


@pytest.mark.slow
@pytest.mark.parametrize("ids", ["int64", "string"])
def test_bare_tensorflow_gives_the_scores_of_the_parameters(tmp_path: Path, ids: str) -> None:
    version = export_toy(tmp_path / "toy", ids=ids)
    model = toy.model(ids=ids)
    values = toy.parameters(model)
    queries = collect_queries(toy.samples(ids=ids), model.specification)
    candidates = collect_candidates(toy.samples(ids=ids), model.specification)
    query_inputs = signature_inputs(queries, model.query_inputs)
    candidate_inputs = signature_inputs(candidates["home"], model.candidate_inputs)
    calls = [
        request_of(version / "query", "query", query_inputs),
        request_of(version / "query", "serving_default", query_inputs),
        request_of(version / "candidate", "candidate", candidate_inputs),
        request_of(version / "retrieval" / "home", "retrieval", query_inputs),
        request_of(version / "retrieval" / "search", "retrieval", query_inputs),
    ]
    bare = subprocess.run(
        [sys.executable, "-I", "-c", _BARE_CLIENT],
        input=json.dumps(calls),
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={key: value for key, value in os.environ.items() if key != "TF_USE_LEGACY_KERAS"},
    )
    assert bare.returncode == 0, bare.stderr[-2000:]
    response = json.loads(bare.stdout)
    assert response["loaded"] == []
    found = response["answers"]

    query = vectors(model, values, queries, side="query")
    candidate = vectors(model, values, candidates["home"], side="candidate")
    np.testing.assert_allclose(found[0]["vector"], query, atol=1e-5)
    np.testing.assert_allclose(found[1]["vector"], query, atol=1e-5)
    np.testing.assert_allclose(found[2]["vector"], candidate, atol=1e-5)
    for number, (scenario, num_results) in enumerate([("home", 5), ("search", 4)]):
        rows = candidates[scenario]
        scores = query @ vectors(model, values, rows, side="candidate").T
        order = np.argsort(-scores, axis=1)[:, :num_results]
        items = np.array(rows["item_id"].to_pylist(), object)[order]
        assert found[3 + number]["item_id"] == items.tolist()
        best = np.take_along_axis(scores, order, axis=1)
        np.testing.assert_allclose(found[3 + number]["score"], best, atol=1e-5)


def test_bundle_has_the_layout_and_the_account_of_the_design(tmp_path: Path) -> None:
    version = export_toy(tmp_path / "toy")
    manifest = verify_bundle(version)
    spec = toy.specification()
    assert manifest.model == "toy"
    assert manifest.step == 7
    assert manifest.ledger == {"a": 1}
    assert manifest.watermark_ms == 59
    assert manifest.specification_fingerprint == spec.fingerprint
    assert type(spec).model_validate(manifest.specification) == spec
    assert manifest.scenarios["search"] == 4
    tops = {name.rsplit("/", 1)[0] for name in manifest.files if name.endswith("saved_model.pb")}
    assert tops == {"query", "candidate", "retrieval/home", "retrieval/search"}
    candidates = pq.read_table(version / "index" / "search" / "candidates.parquet")
    assert candidates.column_names[:1] == ["item_id"]
    assert candidates["title"][0].as_py() == "Title 0"
    lengths = [np.linalg.norm(row) for row in candidates["vector"].to_pylist()]
    np.testing.assert_allclose(lengths, 1.0, rtol=1e-5)
    assert pq.read_table(version / "queries.parquet").num_rows == toy.NUM_USERS


def test_exporting_again_makes_a_new_version(tmp_path: Path) -> None:
    first = export_toy(tmp_path / "toy")
    second = export_toy(tmp_path / "toy")
    assert (first.name, second.name) == ("00000001", "00000002")
    assert read_manifest(second).parent_version == "00000001"
    assert current_version(tmp_path / "toy") == "00000002"
    verify_bundle(first)


def test_savedmodel_that_scores_otherwise_is_not_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_toy(tmp_path / "toy")

    def save_other(path: Path, trained: Trained, *, side: export.Side) -> None:
        other = toy.parameters(trained.model, seed=99)
        original(path, Trained(model=trained.model, parameters=other), side=side)

    original = export._save_tower
    monkeypatch.setattr(export, "_save_tower", save_other)
    with pytest.raises(ExportError, match="not published"):
        export_toy(tmp_path / "toy")
    assert current_version(tmp_path / "toy") == "00000001"
    assert len(versions(tmp_path / "toy")) == 1


_EXPORTER = """
import sys
from pathlib import Path
from tests.models.test_export import export_toy
export_toy(Path(sys.argv[1]), seed=1)
"""


@pytest.mark.slow
def test_kill_in_the_middle_leaves_the_old_version_current(tmp_path: Path) -> None:
    model = tmp_path / "toy"
    old = export_toy(model)
    root = Path(__file__).parents[2]
    victim = subprocess.Popen([sys.executable, "-c", _EXPORTER, str(model)], cwd=root)
    try:
        half = model / ".writing-00000002"
        deadline = time.monotonic() + 120
        while not (half / "query" / "saved_model.pb").exists():
            assert victim.poll() is None, "the export ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.005)
    finally:
        victim.send_signal(signal.SIGKILL)
        victim.wait()
    assert current_version(model) == old.name
    assert versions(model) == [old]
    verify_bundle(old)
    assert half.exists()

    new = export_toy(model, seed=1)
    assert not list(model.glob(".writing-*"))
    assert current_version(model) == new.name == "00000002"
    verify_bundle(new)
