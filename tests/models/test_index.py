from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from models.index import collect_candidates, collect_queries, latest_items, vectors
from tests.models import toy


def test_an_item_has_the_features_of_its_latest_sample() -> None:
    samples = toy.samples()
    latest = {row["item_id"]: row["timestamp_ms"] for row in samples.to_pylist()}
    found = latest_items(samples, toy.specification()).to_pylist()
    assert [row["item_id"] for row in found] == sorted(latest)
    assert {row["item_id"]: row["item_positives"] for row in found} == latest
    assert found[0]["title"] == "Title 0"
    assert found[3]["image"] == [3.0, 1.0]


def test_a_scenario_has_the_items_of_its_samples() -> None:
    samples = toy.samples()
    found = collect_candidates(samples, toy.specification())
    assert list(found) == ["home", "search"]
    for scenario, rows in found.items():
        expected = {r["item_id"] for r in samples.to_pylist() if r["scenario"] == scenario}
        assert set(rows["item_id"].to_pylist()) == expected
        assert rows.num_rows == len(expected)


def test_a_scenario_without_samples_has_no_index() -> None:
    samples = toy.samples()
    home = samples.filter([s == "home" for s in samples["scenario"].to_pylist()])
    assert list(collect_candidates(home, toy.specification())) == ["home"]


def test_history_is_brought_up_to_now_and_cut() -> None:
    spec = toy.specification()  # keeps 3
    columns = ["user_id", "timestamp_ms", "item_id", "history_item_id", "age"]
    samples = pa.Table.from_pylist(
        [
            {"user_id": 5, "timestamp_ms": 20, "item_id": 3, "history_item_id": [1, 2], "age": 31},
            {"user_id": 5, "timestamp_ms": 10, "item_id": 2, "history_item_id": [1], "age": 30},
            {"user_id": 4, "timestamp_ms": 15, "item_id": 9, "history_item_id": None, "age": None},
        ],
        schema=pa.schema([spec.sample_schema.field(name) for name in columns]),
    )
    assert collect_queries(samples, spec).to_pylist() == [
        {"user_id": 4, "timestamp_ms": 15, "history_item_id": [9], "age": None},
        {"user_id": 5, "timestamp_ms": 20, "history_item_id": [1, 2, 3], "age": 31},
    ]
    more = samples.append_column("x", pa.array([0, 0, 0])).slice(0, 2)
    longer = pa.concat_tables([more.select(columns)] * 2)
    assert collect_queries(longer, spec)["history_item_id"].to_pylist() == [[2, 3, 3]]


def test_arrow_types_are_those_of_the_schema() -> None:
    spec = toy.specification(ids="string")
    samples = toy.samples(ids="string")
    for table in (latest_items(samples, spec), collect_queries(samples, spec)):
        for field in table.schema:
            assert field.type == spec.sample_schema.field(field.name).type


def test_vectors_do_not_depend_on_the_batch_size() -> None:
    model = toy.model()
    values = toy.parameters(model)
    whole = vectors(model, values, toy.samples(), side="query")
    parts = vectors(model, values, toy.samples(), side="query", batch_size=7)
    np.testing.assert_allclose(parts, whole, atol=1e-6)


def test_parameters_of_another_model_are_refused() -> None:
    model = toy.model()
    values = toy.parameters(model)
    values["users"] = values["users"][:5]
    del values["query/0/bias"]
    with pytest.raises(ValueError, match=r"'query/0/bias': found shape None") as caught:
        vectors(model, values, toy.samples(), side="query")
    assert "'users': found shape (5, 4); expected (64, 4)" in str(caught.value)
