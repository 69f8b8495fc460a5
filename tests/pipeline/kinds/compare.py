"""Compares what was built with what SQL says; each problem is a line."""

from __future__ import annotations

from collections.abc import Iterator

import duckdb
import pyarrow as pa

from pipeline.specification import Specification
from tests.pipeline.kinds import sql

_USER = (
    "device, hour, scenario_history_item_id, scenario_impressions, scenario_positives,"
    " scenario_preferred_category"
)
_ITEM = (
    "{'category': category, 'price': price} as item, item_scenario_impressions,"
    " item_scenario_positives"
)


def scenario_problems(
    duck: duckdb.DuckDBPyConnection,
    found: pa.Table,
    *,
    window_ms: int,
    negatives: int,
    dropped: dict[str, int],
) -> Iterator[str]:
    """Every row but the draw itself; who is in a group, and who may not be."""
    _take(duck, found)
    duck.execute(sql.SCENARIO_USERS)
    identity = "event_id, timestamp_ms, user_id, scenario, item_id, label, candidate_number"
    yield from _differences(
        duck, f"select {identity}, {_USER}, {_ITEM} from found", sql.SCENARIO_ROWS
    )
    yield from _rows(
        duck,
        "a negative that the user took",
        f"""select f.event_id, f.item_id from found f join positive p
            on p.user_id = f.user_id and p.item_id = f.item_id
            and p.known_ms between f.timestamp_ms - {window_ms} and f.timestamp_ms + {window_ms}
            where label = 0""",
    )
    yield from _rows(
        duck,
        "a negative never shown there before",
        "select event_id, item_id from found where label = 0 and item_scenario_impressions = 0",
    )
    yield from _rows(
        duck,
        "no whole group",
        f"""select event_id, list(candidate_number order by candidate_number) as numbers from found
            group by event_id having numbers <> range({negatives + 1})""",
    )
    yield from _rows(
        duck,
        "a group without exposure",
        """select event_id from found
            semi join (from expected where not has_exposure) using (event_id)""",
    )
    counts = duck.execute(
        "select count(*) filter (not has_exposure), count(*) filter (has_exposure),"
        " (select count(distinct event_id) from found) from expected"
    ).fetchall()[0]
    lost = {
        "scenario no_exposure_before": counts[0],
        "scenario no_eligible_negative": counts[1] - counts[2],
    }
    if dropped != (lost := {name: count for name, count in lost.items() if count}):
        yield f"dropped: found {dropped}; expected {lost}"


def user_pair_problems(
    duck: duckdb.DuckDBPyConnection, found: pa.Table, *, at_most: int
) -> Iterator[str]:
    _take(duck, found)
    duck.execute(f"""create or replace table view as select * from ({sql.USER_VIEWS})
        where scenario_impressions + scenario_positives > 0""")
    yield from _pair_problems(duck, "user_id", _USER, _USER, at_most)


def item_pair_problems(
    duck: duckdb.DuckDBPyConnection, found: pa.Table, *, at_most: int
) -> Iterator[str]:
    _take(duck, found)
    duck.execute(f"""create or replace table view as select * from ({sql.ITEM_VIEWS})
        where item_scenario_impressions + item_scenario_positives > 0 and is_active""")
    yield from _pair_problems(
        duck, "item_id", _ITEM, "item, item_scenario_impressions, item_scenario_positives", at_most
    )


def _pair_problems(
    duck: duckdb.DuckDBPyConnection, key: str, columns: str, expected: str, at_most: int
) -> Iterator[str]:
    day = f"(timestamp_ms + 1) // {sql.DAY} - 1"
    chosen = f"select distinct {key}, {day} as day, scenario, {columns} from found"
    yield from _rows(
        duck,
        "a view that SQL does not have",
        f"{chosen} except select {key}, day, scenario, {expected} from view",
    )
    yield from _rows(
        duck,
        "two rows that are no pair",
        f"""with two as (select pair_id, {key}, {day} as day, count(*) as rows,
                list(view order by view) as views, list(r.number order by view) as numbers
                from found f join rule r using (scenario) group by all)
            select * from two where rows <> 2 or views <> [0, 1] or numbers[1] >= numbers[2]""",
    )
    yield from _rows(
        duck,
        "another number of pairs",
        f"""with wanted as (
                select {key}, day, least({at_most}, count(*) * (count(*) - 1) // 2) as pairs
                from view group by all having pairs > 0),
            made as (
                select {key}, day, count(*) as pairs from (
                    select {key}, {day} as day, pair_id, list(scenario order by view) as names
                    from found group by all)
                group by all having count(*) = count(distinct names))
            (from wanted except from made) union all (from made except from wanted)""",
    )


def corpus_problems(duck: duckdb.DuckDBPyConnection, found: pa.Table) -> Iterator[str]:
    _take(duck, found)
    counts = "item_scenario_impressions, item_scenario_positives"
    yield from _differences(
        duck,
        f"""select timestamp_ms, scenario, item_id, {_ITEM}, item_impressions, item_positives
            from found""",
        f"""select (day + 1) * {sql.DAY} - 1, scenario, item_id, item, {counts},
                (sum(item_scenario_impressions) over (partition by item_id, day))::bigint,
                (sum(item_scenario_positives) over (partition by item_id, day))::bigint
            from ({sql.ITEM_VIEWS})
            qualify item_scenario_impressions + item_scenario_positives > 0""",
    )


def problems(
    duck: duckdb.DuckDBPyConnection,
    tables: dict[str, pa.Table],
    specification: Specification,
    *,
    window_ms: int,
    dropped: dict[str, int],
) -> list[str]:
    """All of them, of all kinds."""
    kinds = specification.kinds
    return [
        *scenario_problems(
            duck,
            tables["scenario"],
            window_ms=window_ms,
            negatives=kinds.scenario.negatives,
            dropped=dropped,
        ),
        *user_pair_problems(duck, tables["user_pair"], at_most=kinds.pair.users),
        *item_pair_problems(duck, tables["item_pair"], at_most=kinds.pair.items),
        *corpus_problems(duck, tables["corpus"]),
    ]


def _take(duck: duckdb.DuckDBPyConnection, found: pa.Table) -> None:
    duck.register("arrow", found)
    duck.execute("create or replace temp table found as from arrow")
    duck.unregister("arrow")


def _differences(duck: duckdb.DuckDBPyConnection, found: str, expected: str) -> Iterator[str]:
    yield from _rows(duck, "a row too many", f"({found}) except all ({expected})")
    yield from _rows(duck, "a row too few", f"({expected}) except all ({found})")


def _rows(duck: duckdb.DuckDBPyConnection, what: str, query: str) -> Iterator[str]:
    rows = duck.execute(query).fetchall()
    if rows:
        yield f"{what}, {len(rows)} times: {rows[0]}"
