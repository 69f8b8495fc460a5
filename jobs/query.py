"""`headrace query`: a bundle asked for one user's items."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.console import Console, Group
from rich.table import Table

from jobs.main import import_tensorflow, run_job
from jobs.settings import EXIT_DONE
from models.bundle import CANDIDATES, QUERIES, SCORE, Manifest, resolve_version, verify_bundle
from pipeline.schema import HISTORY_ITEM_ID, ITEM_ID, SCENARIO, USER_ID, InputError
from pipeline.specification import Specification

_NUM_EXAMPLES = 5


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a user's recent history and best items, from a verified bundle."""
    arguments = _parse(argv)
    version = resolve_version(arguments.bundle)
    manifest = verify_bundle(version)
    specification = Specification.model_validate(manifest.specification)
    scenario = _scenario(manifest, arguments.scenario)
    user = _user(pq.read_table(version / QUERIES), arguments.user)
    import_tensorflow()
    results = retrieve_new(version, specification, scenario=scenario, user=user)
    if arguments.k > len(results):
        raise InputError(
            f"--k: found {arguments.k}; expected at most {len(results)}, the number of results that"
            " this bundle was exported with (export.num_results, or all candidates), less those in"
            " the user's history"
        )
    titles = _titles(version, manifest, specification)
    Console().print(
        Group(
            _history_table(user, titles),
            _result_table(
                results[: arguments.k],
                titles,
                caption=f"user {arguments.user}, {scenario}, {manifest.model} {manifest.version};"
                " items of the history are left out",
            ),
        )
    )
    return EXIT_DONE


def retrieve_new(
    version: Path, specification: Specification, *, scenario: str, user: pa.Table
) -> list[tuple[Any, float]]:
    """Asks a bundle as any program would, by its SavedModel; leaves out the user's history.

    Args:
        version: Folder of a version of a bundle.
        specification: That of its manifest.
        scenario: Whose items are asked for.
        user: The user's one row of the bundle's queries.

    Returns:
        Item and score of all results, best first.
    """
    if SCENARIO in user.column_names:
        user = _with_scenario(user, scenario)
    seen = set(latest_history(user))
    found = _retrieve(version, specification, scenario=scenario, user=user)
    return [(item, score) for item, score in found if item not in seen]


def latest_history(user: pa.Table) -> list[Any]:
    """Returns the distinct items of a user's history, latest first."""
    return list(dict.fromkeys(reversed(user.column(HISTORY_ITEM_ID)[0].as_py() or [])))


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="headrace query", description=__doc__)
    parser.add_argument(
        "--bundle", required=True, type=Path, metavar="DIR", help="folder of a model or a version"
    )
    parser.add_argument("--user", required=True, help="the user's raw id")
    parser.add_argument("--scenario", help="default: the first of the bundle")
    parser.add_argument("--k", type=int, default=10, help="how many items; default 10")
    arguments = parser.parse_args(argv)
    if arguments.k < 1:
        parser.error(f"--k: found {arguments.k}; expected at least 1")
    return arguments


def _scenario(manifest: Manifest, wanted: str | None) -> str:
    known = list(manifest.scenarios)
    if wanted is None:
        return known[0]
    if wanted not in known:
        raise InputError(f"--scenario: found {wanted!r}; expected one of {known}")
    return wanted


def _user(queries: pa.Table, wanted: str) -> pa.Table:
    """Returns the one row of a user."""
    users = queries.column(USER_ID)
    examples = f"{users.slice(0, _NUM_EXAMPLES).to_pylist()}"
    try:
        value = pa.scalar(wanted).cast(users.type)
    except pa.ArrowInvalid as error:
        raise InputError(
            f"--user: found {wanted!r}; expected an id of type {users.type}, such as one of"
            f" {examples}"
        ) from error
    found = queries.filter(pc.equal(users, value))
    if not found.num_rows:
        raise InputError(
            f"--user: found {wanted!r}, of whom the bundle has no samples; expected a known user,"
            f" such as one of {examples}"
        )
    return found


def _with_scenario(user: pa.Table, scenario: str) -> pa.Table:
    place = user.schema.get_field_index(SCENARIO)
    return user.set_column(place, user.field(SCENARIO), pa.array([scenario], pa.string()))


def _retrieve(
    version: Path, specification: Specification, *, scenario: str, user: pa.Table
) -> list[tuple[Any, float]]:
    import tensorflow as tf

    from models.features import feature_input, signature_inputs

    types = specification.column_types
    inputs = [
        feature_input(feature, column_type=types[feature.name])
        for feature in specification.query_features
    ]
    served = tf.saved_model.load(str(version / "retrieval" / scenario))
    found = served.signatures["retrieval"](**signature_inputs(user, inputs))
    items, scores = found[ITEM_ID][0].numpy().tolist(), found[SCORE][0].numpy().tolist()
    return [
        (item.decode() if isinstance(item, bytes) else item, score)
        for item, score in zip(items, scores, strict=True)
    ]


def _titles(version: Path, manifest: Manifest, specification: Specification) -> dict[Any, str]:
    """Returns the titles of all scenarios' items: a history may cross scenarios."""
    if specification.titles is None:
        return {}
    titles: dict[Any, str] = {}
    for scenario in manifest.scenarios:
        path = version / "index" / scenario / CANDIDATES
        rows = pq.read_table(path, columns=[ITEM_ID, specification.titles])
        titles |= zip(*(column.to_pylist() for column in rows.columns), strict=True)
    return titles


def _history_table(user: pa.Table, titles: dict[Any, str]) -> Table:
    table = Table(title="recent history, latest first")
    for heading in ("item", "title"):
        table.add_column(heading)
    for item in latest_history(user):
        table.add_row(str(item), titles.get(item) or "")
    return table


def _result_table(
    results: list[tuple[Any, float]], titles: dict[Any, str], *, caption: str
) -> Table:
    table = Table(title="retrieved", caption=caption)
    table.add_column("rank", justify="right")
    table.add_column("item")
    table.add_column("title")
    table.add_column("score", justify="right")
    for rank, (item, score) in enumerate(results, start=1):
        table.add_row(str(rank), str(item), titles.get(item) or "", f"{score:.4f}")
    return table


if __name__ == "__main__":
    sys.exit(run_job(main))
