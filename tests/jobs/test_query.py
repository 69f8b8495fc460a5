from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from jobs.main import run_job
from jobs.query import latest_history, main
from models.export import Trained, export_bundle
from models.index import collect_candidates, collect_queries, vectors
from tests.models import toy


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model with one version."""
    return export_toy(tmp_path_factory.mktemp("bundle") / "toy")


def export_toy(folder: Path) -> Path:
    model = toy.model()
    spec = model.specification
    version = export_bundle(
        folder,
        Trained(model=model, parameters=toy.parameters(model)),
        candidates=collect_candidates(toy.samples(), spec),
        queries=collect_queries(toy.samples(), spec),
        num_results=6,
    )
    return version.parent


def rows_of(table: str) -> list[list[str]]:
    """Returns the cells of the rows of a printed table."""
    lines = [line for line in table.splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]


def best_items(user: int, scenario: str) -> list[int]:
    model = toy.model()
    values = toy.parameters(model)
    queries = collect_queries(toy.samples(), model.specification)
    asked = queries.filter(pa.array(np.array(queries["user_id"]) == user))
    items = collect_candidates(toy.samples(), model.specification)[scenario]
    scores = (
        vectors(model, values, items, side="candidate")
        @ (vectors(model, values, asked, side="query")[0])
    )
    ranked = [items["item_id"].to_pylist()[place] for place in np.argsort(-scores)]
    return [item for item in ranked if item not in asked["history_item_id"][0].as_py()]


def test_prints_the_best_new_items_with_titles_and_the_history(
    bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--bundle", str(bundle), "--user", "3", "--k", "3"]) == 0
    history, _, results = capsys.readouterr().out.partition("retrieved")
    samples = [row for row in toy.samples().to_pylist() if row["user_id"] == 3]
    latest = [row["item_id"] for row in samples[:-4:-1]]  # three are kept, the last one first
    assert rows_of(history) == [[str(item), f"Title {item}"] for item in latest]
    assert "history are left out" in " ".join(results.split())
    found = rows_of(results)
    expected = best_items(3, "home")[:3]
    assert [row[:3] for row in found] == [
        [str(rank), str(item), f"Title {item}"] for rank, item in enumerate(expected, start=1)
    ]
    scores = [float(row[3]) for row in found]
    assert scores == sorted(scores, reverse=True)


def test_scenario_chooses_the_index(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    version = bundle / "00000001"
    arguments = ["--bundle", str(version), "--user", "3", "--scenario", "search", "--k", "2"]
    assert main(arguments) == 0
    found = rows_of(capsys.readouterr().out.partition("retrieved")[2])
    assert [int(row[1]) for row in found] == best_items(3, "search")[:2]


def test_history_is_distinct_and_latest_first() -> None:
    user = pa.table({"history_item_id": [[5, 9, 5, 2, 9, 9]]})
    assert latest_history(user) == [9, 2, 5]
    assert (
        latest_history(pa.table({"history_item_id": pa.array([None], pa.list_(pa.int64()))})) == []
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--user", "999"], "'999', of whom the bundle has no samples"),
        (["--user", "bob"], "'bob'; expected an id of type int64, such as one of [0, 1, 2, 3, 4]"),
        (["--user", "1", "--scenario", "feed"], "'feed'; expected one of ['home', 'search']"),
        (["--user", "1", "--k", "7"], "--k: found 7; expected at most 4"),
    ],
)
def test_what_the_bundle_has_not_is_bad_input(
    bundle: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert run_job(main, ["--bundle", str(bundle), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_altered_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = export_toy(tmp_path / "toy")
    victim = folder / "00000001" / "retrieval" / "home" / "saved_model.pb"
    content = bytearray(victim.read_bytes())
    content[100] ^= 1
    victim.write_bytes(content)
    assert run_job(main, ["--bundle", str(folder), "--user", "1"]) == 2
    captured = capsys.readouterr()
    assert f"{victim}: found sha256" in captured.err
    assert "export a new one" in captured.err
    assert captured.out == ""


def test_folder_that_is_no_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_job(main, ["--bundle", str(tmp_path), "--user", "1"]) == 2
    assert "found neither manifest.json nor CURRENT" in capsys.readouterr().err
