"""Parameters to a served model: SavedModels that take raw features, verified before they are seen.

Every SavedModel has one signature, named after what it does (`query`, `candidate`, `retrieval`)
and also `serving_default`. Inputs are the specification's features by name, raw: ids as int64 or
string [batch], multi-valued ones [batch, length] filled up with `pipeline.schema.PADDING`. Loading
one takes TensorFlow alone, in any language that it has.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import tensorflow as tf
import tensorflow_recommenders as tfrs

from models.bundle import (
    CANDIDATES,
    QUERIES,
    SCORE,
    VECTOR,
    Freshness,
    Manifest,
    current_version,
    directory_name,
    next_version,
    publish,
    writing,
)
from models.contract import Input
from models.features import ragged_from_padded, signature_inputs
from models.index import Parameters, Side, split_parameters, vectors
from models.two_tower import TwoTower
from pipeline.schema import ITEM_ID, TIMESTAMP_MS, schema_fingerprint

_NUM_VERIFIED_ROWS = 64
_TOLERANCE = 1e-4


class ExportError(RuntimeError):
    """What was written does not give the scores of what it was made from; nothing was published."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Trained:
    """A model with its parameters, and where they came from.

    Attributes:
        model: The model.
        parameters: Values of its tables and weights, by name.
        step: Batches trained.
        ledger: The checkpoint's ledger: which samples are in the parameters.
        metrics: Offline metrics, if any were computed.
        freshness: How new the samples are, if that is known.
    """

    model: TwoTower
    parameters: Parameters
    step: int = 0
    ledger: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    metrics: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    freshness: Freshness | None = None


def export_bundle(
    directory: Path,
    trained: Trained,
    *,
    candidates: Mapping[str, pa.Table],
    queries: pa.Table,
    num_results: int,
) -> Path:
    """Writes a new version of a model and makes it the current one.

    Args:
        directory: The model's folder; made if need be.
        trained: What to export.
        candidates: Per scenario, one row per item: candidate features, and the title if any.
        queries: One row per user: query features, and `timestamp_ms`.
        num_results: How many items `retrieval` returns at most.

    Returns:
        The folder of the new version.

    Raises:
        ExportError: If the SavedModels, loaded again, do not score like the parameters.
        InputError: If another export is running, or there is nothing to index.
    """
    # To tensors once: each conversion copies.
    tensors = {name: tf.constant(value) for name, value in trained.parameters.items()}
    trained = dataclasses.replace(trained, parameters=tensors)
    with writing(directory) as aside:
        manifest = _manifest(directory, trained, candidates=candidates, queries=queries)
        _save_tower(aside / "query", trained, side="query")
        _save_tower(aside / "candidate", trained, side="candidate")
        for scenario, rows in candidates.items():
            _save_scenario(aside, trained, scenario=scenario, rows=rows, num_results=num_results)
        pq.write_table(queries, aside / QUERIES)
        _verify(aside, trained, candidates=candidates, queries=queries)
        return publish(aside, manifest)


def _manifest(
    directory: Path, trained: Trained, *, candidates: Mapping[str, pa.Table], queries: pa.Table
) -> Manifest:
    specification = trained.model.specification
    return Manifest(
        model=specification.name,
        version=next_version(directory),
        parent_version=current_version(directory),
        step=trained.step,
        ledger=dict(trained.ledger),
        freshness=trained.freshness,
        watermark_ms=pc.max(queries.column(TIMESTAMP_MS)).as_py(),
        metrics=dict(trained.metrics),
        specification=specification.model_dump(mode="json"),
        specification_fingerprint=specification.fingerprint,
        schema_fingerprint=schema_fingerprint(specification.sample_schema),
        config=trained.model.config.model_dump(mode="json"),
        scenarios={scenario: rows.num_rows for scenario, rows in candidates.items()},
    )


class _Tower(tf.Module):
    """One tower with the variables that it needs and no others."""

    def __init__(self, trained: Trained, side: Side) -> None:
        super().__init__()
        model = trained.model
        tables, weights = split_parameters(model, trained.parameters)
        self.inputs = model.query_inputs if side == "query" else model.candidate_inputs
        used = {each.table for each in self.inputs}
        self._tables = {name: tf.Variable(v) for name, v in tables.items() if name in used}
        self._weights = {
            name: tf.Variable(v) for name, v in weights.items() if name.startswith(f"{side}/")
        }
        self._encode = model.encode
        self._apply = model.query if side == "query" else model.candidate

    def vectors(self, raw: Mapping[str, tf.Tensor]) -> tf.Tensor:
        features = {
            each.name: ragged_from_padded(raw[each.name]) if each.ragged else raw[each.name]
            for each in self.inputs
        }
        return self._apply(self._encode(features), tables=self._tables, weights=self._weights)


def _save_tower(path: Path, trained: Trained, *, side: Side) -> None:
    tower = _Tower(trained, side)

    def call(**raw: tf.Tensor) -> dict[str, tf.Tensor]:
        return {VECTOR: tower.vectors(raw)}

    _save(tower, path, signature=(side, call), inputs=tower.inputs)


def _save_scenario(
    aside: Path, trained: Trained, *, scenario: str, rows: pa.Table, num_results: int
) -> None:
    """Writes a scenario's candidates with their vectors, and the query tower stitched to them."""
    candidate_vectors = vectors(trained.model, trained.parameters, rows, side="candidate")
    column = pa.FixedSizeListArray.from_arrays(
        pa.array(candidate_vectors.ravel()), trained.model.config.dim
    )
    index = aside / "index" / directory_name(scenario)
    index.mkdir(parents=True)
    pq.write_table(rows.append_column(VECTOR, column), index / CANDIDATES)

    tower = _Tower(trained, "query")
    ids = rows.column(ITEM_ID)
    tower.index = tfrs.layers.factorized_top_k.BruteForce(k=min(num_results, rows.num_rows))
    tower.index.index(tf.constant(candidate_vectors), tf.constant(ids.to_pylist(), _dtype(ids)))

    def call(**raw: tf.Tensor) -> dict[str, tf.Tensor]:
        scores, items = tower.index(tower.vectors(raw))
        return {ITEM_ID: items, SCORE: scores}

    path = aside / "retrieval" / directory_name(scenario)
    _save(tower, path, signature=("retrieval", call), inputs=tower.inputs)


def _dtype(ids: pa.ChunkedArray) -> tf.DType:
    return tf.int64 if pa.types.is_integer(ids.type) else tf.string


def _save(
    module: tf.Module, path: Path, *, signature: tuple[str, Any], inputs: Sequence[Input]
) -> None:
    name, call = signature
    concrete = tf.function(call, autograph=False).get_concrete_function(
        **{each.name: _tensor_spec(each) for each in inputs}
    )
    tf.saved_model.save(module, str(path), {name: concrete, "serving_default": concrete})


def _tensor_spec(read: Input) -> tf.TensorSpec:
    shape = [None, None] if read.ragged else [None] if read.size is None else [None, read.size]
    return tf.TensorSpec(shape, read.dtype, name=read.name)


def _verify(
    aside: Path, trained: Trained, *, candidates: Mapping[str, pa.Table], queries: pa.Table
) -> None:
    """Loads what was written and compares its results with those of the parameters."""
    model, asked = trained.model, queries.slice(0, _NUM_VERIFIED_ROWS)
    query = vectors(model, trained.parameters, asked, side="query")
    raw_query = signature_inputs(asked, model.query_inputs)
    found = _call(aside / "query", "query", raw_query)[VECTOR].numpy()
    _expect_close("query", found, query)
    for scenario, rows in candidates.items():
        candidate = vectors(model, trained.parameters, rows, side="candidate")
        raw = signature_inputs(rows.slice(0, _NUM_VERIFIED_ROWS), model.candidate_inputs)
        found = _call(aside / "candidate", "candidate", raw)[VECTOR].numpy()
        _expect_close("candidate", found, candidate[:_NUM_VERIFIED_ROWS])

        path = aside / "retrieval" / directory_name(scenario)
        results = _call(path, "retrieval", raw_query)
        scores = query @ candidate.T
        best = -np.sort(-scores, axis=1)[:, : results[SCORE].shape[1]]
        _expect_close(f"retrieval/{scenario}", results[SCORE].numpy(), best)
        ids = rows.column(ITEM_ID)
        places = pc.index_in(pa.array(results[ITEM_ID].numpy().ravel(), ids.type), ids).to_numpy()
        of_items = np.take_along_axis(scores, places.reshape(best.shape), axis=1)
        _expect_close(f"retrieval/{scenario}", results[SCORE].numpy(), of_items)


def _call(path: Path, signature: str, raw: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    return tf.saved_model.load(str(path)).signatures[signature](**raw)


def _expect_close(name: str, found: np.ndarray, expected: np.ndarray) -> None:
    difference = float(np.abs(found - expected).max(initial=0.0))
    if not difference <= _TOLERANCE:  # NaN too
        raise ExportError(
            f"{name}: the SavedModel's results differ from the parameters' by {difference:g};"
            f" expected at most {_TOLERANCE:g}; the version was not published"
        )
