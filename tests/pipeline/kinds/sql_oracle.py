"""Retrieval and behaviour samples of the real logs in SQL, written from the words of the design.

It shares nothing with the pipeline but the files: no join step, no facts, no parts, no days. Every
"last before" is a plain join with all that came before.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb

DAY = 86_400_000

# w: the join window. An outcome belongs to the last impression of its key at or before it; one
# older than 2w is forgotten.
_JOINED = """
create temp table event as select * from read_parquet('{logs}');
create temp table outcome as
    select *, row_number() over (order by timestamp_ms, event_id) as place
    from event where action <> 'impression';
create temp table last_shown as
    select o.event_id as outcome_id,
           max_by(i.event_id, (i.timestamp_ms, i.event_id)) as shown_id,
           max(i.timestamp_ms) as shown_ms
    from outcome o join event i
    on i.action = 'impression' and i.request_id = o.request_id and i.user_id = o.user_id
        and i.item_id = o.item_id
        and i.timestamp_ms between o.timestamp_ms - 2 * {w} and o.timestamp_ms
    group by all;
create temp table taken as
    select l.shown_id, o.event_id, o.action, o.timestamp_ms
    from last_shown l join outcome o on o.event_id = l.outcome_id
    where o.timestamp_ms <= l.shown_ms + {w};
create temp table shown as select * from event where action = 'impression';
"""

_KEPT = """
insert into taken
    select event_id, event_id, action, timestamp_ms from outcome
    where event_id not in (select outcome_id from last_shown);
insert into shown
    select * from event
    where action <> 'impression' and event_id not in (select outcome_id from last_shown);
"""

# Columns that change with time, as of a moment.
_AS_OF = """
create temp table moment as select distinct user_id, item_id, timestamp_ms as t from event;
create temp table level_at as
    select m.user_id, m.t, max_by(u.level, u.valid_from_ms) as level
    from (select distinct user_id, t from moment) m
    join '{users}' u on u.user_id = m.user_id and u.valid_from_ms <= m.t group by all;
create temp table price_at as
    select item_id, t, case when rest.ends <= t then null else rest.price end as price_level
    from (
        select m.item_id, m.t,
               max_by({{'price': p.price_level, 'ends': p.valid_to_ms}}, p.valid_from_ms) as rest
        from (select distinct item_id, t from moment) m
        join '{items}' p on p.item_id = m.item_id and p.valid_from_ms <= m.t group by all
    );
create temp table row as
    select s.event_id, s.timestamp_ms, s.user_id, s.item_id, s.scenario, s.category, s.tags,
           l.level, p.price_level,
           (s.timestamp_ms // {day} - {lookback}) * {day} as since
    from shown s
    left join level_at l on l.user_id = s.user_id and l.t = s.timestamp_ms
    left join price_at p on p.item_id = s.item_id and p.t = s.timestamp_ms;
"""

_RETRIEVAL = """
create temp table positive as
    select r.event_id, min(t.timestamp_ms) as known_ms
    from row r join taken t on t.shown_id = r.event_id where t.action = '{label}' group by all;
create temp table known as
    select r.user_id, r.item_id, p.known_ms,
           row_number() over (order by p.known_ms, r.timestamp_ms, r.event_id) as place
    from positive p join row r using (event_id);
create temp table history_place as
    select event_id, unnest(places) as place from (
        select r.event_id, max(k.place, {history}) as places
        from row r join known k
        on k.user_id = r.user_id and k.known_ms < r.timestamp_ms and k.known_ms >= r.since
        group by all
    );
create temp table history as
    select h.event_id, list(k.item_id order by k.place) as items
    from history_place h join known k using (place) group by all;
create temp table shown_on as
    select item_id, timestamp_ms // {day} as on_day, count(*) as n from row group by all;
create temp table taken_on as
    select item_id, known_ms // {day} as on_day, count(*) as n from known group by all;
create temp table item_day as
    select distinct item_id, timestamp_ms // {day} as d from row;
create temp table item_counts as
    select i.item_id, i.d, coalesce((
        select sum(n) from shown_on o
        where o.item_id = i.item_id and o.on_day < i.d and o.on_day >= i.d - {lookback}
    ), 0)::bigint as item_impressions, coalesce((
        select sum(n) from taken_on o
        where o.item_id = i.item_id and o.on_day < i.d and o.on_day >= i.d - {lookback}
    ), 0)::bigint as item_positives
    from item_day i;
create temp table feature as
    select r.event_id, r.timestamp_ms, r.user_id, r.item_id, r.scenario,
           coalesce(h.items, []) as history_item_id, r.level, r.category, r.tags, r.price_level,
           c.item_impressions, c.item_positives
    from row r
    left join history h using (event_id)
    join item_counts c on c.item_id = r.item_id and c.d = r.timestamp_ms // {day};
create temp table retrieval as
    select f.*, 1.0::float as reward from feature f join positive p using (event_id);
"""

_BEHAVIOUR = """
create temp table seen_place as
    select event_id, t, unnest(places) as place from (
        select r.event_id, r.timestamp_ms as t, max(o.place, {length}) as places
        from row r join outcome o
        on o.user_id = r.user_id and o.timestamp_ms < r.timestamp_ms and o.timestamp_ms >= r.since
        group by all
    );
create temp table seen as
    select s.event_id,
        list(o.item_id order by o.place) as behaviour_item_id,
        list(o.action order by o.place) as behaviour_action,
        list(o.scenario order by o.place) as behaviour_scenario,
        list(len(list_filter({borders}, lambda b: b * 1000 <= s.t - o.timestamp_ms))
             order by o.place) as behaviour_time_bucket,
        list(o.category order by o.place) as behaviour_category,
        list(coalesce(p.price_level, -1) order by o.place) as behaviour_price_level,
        flatten(list(o.tags order by o.place)) as behaviour_tags,
        list(len(o.tags) order by o.place) as behaviour_tags_count
    from seen_place s
    join outcome o using (place)
    left join price_at p on p.item_id = o.item_id and p.t = o.timestamp_ms
    group by all;
create temp table told as
    select shown_id as event_id, {told}, true as has from taken group by all;
create temp table behaviour as
    select f.*,
        coalesce(s.behaviour_item_id, []) as behaviour_item_id,
        coalesce(s.behaviour_action, []) as behaviour_action,
        coalesce(s.behaviour_scenario, []) as behaviour_scenario,
        coalesce(s.behaviour_time_bucket, []) as behaviour_time_bucket,
        coalesce(s.behaviour_category, []) as behaviour_category,
        coalesce(s.behaviour_price_level, []) as behaviour_price_level,
        coalesce(s.behaviour_tags, []) as behaviour_tags,
        coalesce(s.behaviour_tags_count, []) as behaviour_tags_count,
        {labels},
        (case when t.has then 1 else 1 / {share} end)::float as weight
    from feature f left join seen s using (event_id) left join told t using (event_id);
"""


def connect(log: Path, config: dict[str, Any]) -> duckdb.DuckDBPyConnection:
    """Returns a connection with the tables `retrieval` and `behaviour`, idle impressions all kept.

    Args:
        log: What `jobs.bench.real_logs` has written.
        config: Of jobs/configs, for one of these logs.
    """
    specification, samples = config["specification"], config["samples"]
    kind = specification["kinds"]["behaviour"]
    told, labels = _tasks(kind["tasks"])
    values = {
        "logs": f"{log}/logs/*/*.parquet",
        "users": f"{log}/users.parquet",
        "items": f"{log}/items.parquet",
        "w": samples["join_window_seconds"] * 1000,
        "day": DAY,
        "lookback": samples.get("lookback_days") or 1_000_000,
        "label": specification["labels"]["night"]["action"],
        "history": specification["history"]["length"],
        "length": kind["length"],
        "borders": [60, 600, 3600, 21_600, 86_400, 259_200, 604_800],
        "share": kind["idle_share"],
        "told": told,
        "labels": labels,
    }
    connection = duckdb.connect(config={"threads": 2, "memory_limit": "4GB"})
    kept = _KEPT if samples["orphans"] == "keep" else ""
    sql = _JOINED + kept + _AS_OF + _RETRIEVAL + _BEHAVIOUR
    connection.execute(sql.format(**values))
    return connection


def _tasks(tasks: dict[str, dict[str, Any]]) -> tuple[str, str]:
    told, labels = [], []
    for name, task in tasks.items():
        if "action" in task:
            told.append(f"count(*) filter (action = '{task['action']}') as {name}_n")
            labels.append(f"(coalesce(t.{name}_n, 0) > 0)::bigint as label_{name}")
        elif "grades" in task:
            cases = " ".join(f"when '{a}' then {g}" for a, g in task["grades"].items())
            told.append(f"max(case action {cases} else 0 end) as {name}_n")
            labels.append(f"coalesce(t.{name}_n, 0)::float as label_{name}")
        else:
            told.append(f"count(*) filter (action = '{task['of']}') as {name}_n")
            labels.append(f"case when t.{name}_n > 0 then f.{task['column']} end as label_{name}")
    return ", ".join(told), ", ".join(labels)


def differences(duck: duckdb.DuckDBPyConnection, table: str, files: str) -> dict[str, int]:
    """Returns how many rows differ, by column; and those that one side lacks.

    Args:
        duck: See `connect`.
        table: `retrieval` or `behaviour`.
        files: Glob of sample files.
    """
    duck.execute(
        f"create or replace temp view found as"
        f" select * from read_parquet('{files}', hive_partitioning = false)"
    )
    described = duck.execute(f"describe {table}").fetchall()
    columns = [row[0] for row in described]
    found = {row[0] for row in duck.execute("describe found").fetchall()}
    if found != set(columns):
        return {f"column {name}": 1 for name in found ^ set(columns)}
    counts = ", ".join(
        f"count(*) filter (w.{name} is distinct from f.{name}) as {name}" for name in columns
    )
    rows = duck.execute(f"select {counts} from {table} w join found f using (event_id)").fetchall()
    different = dict(zip(columns, rows[0], strict=True))
    lacking = {
        "lacking": f"select count(*) from {table} anti join found using (event_id)",
        "too many": f"select count(*) from found anti join {table} using (event_id)",
        "twice": "select count(*) - count(distinct event_id) from found",
    }
    different |= {name: duck.execute(sql).fetchall()[0][0] for name, sql in lacking.items()}
    return {name: count for name, count in different.items() if count}
