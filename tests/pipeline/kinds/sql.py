"""What samples of the kinds scenario, pair and corpus must be, said a second time, in SQL.

Slow and plain: each row looks at all events again.
"""

from __future__ import annotations

import duckdb
import pyarrow as pa

from pipeline.specification import Specification

DAY = 86_400_000


def connect(
    events: pa.Table,
    specification: Specification,
    *,
    window_ms: int,
    lookback_days: int | None = None,
) -> duckdb.DuckDBPyConnection:
    """Tables impression, positive, rule, and macros that see them as of a time."""
    duck = duckdb.connect()
    duck.execute("set threads = 2")
    duck.register("events", events)
    duck.execute("create table event as select distinct on (event_id, user_id) * from events")
    rules = [(name, specification.label_rule(name).action) for name in specification.scenarios]
    duck.execute("create table rule (scenario varchar, number int, action varchar)")
    duck.executemany(
        "insert into rule values (?, ?, ?)",
        [(name, number, action) for number, (name, action) in enumerate(rules)],
    )
    lookback = 1 << 30 if lookback_days is None else lookback_days
    history = specification.scenario_views.history
    length = specification.scenario_views.preferences["category"]
    duck.execute(f"""
        create table impression as select * from event where action = 'impression';
        create table outcome as
            select * from (
                select o.event_id, o.action, o.timestamp_ms as known_ms, i.timestamp_ms as shown_ms,
                    i.event_id as shown_id, i.user_id, i.scenario,
                    row_number() over (partition by o.event_id, o.user_id
                        order by i.timestamp_ms desc, i.event_id desc) as place
                from event o join impression i
                    using (request_id, user_id, item_id)
                where o.action <> 'impression' and i.timestamp_ms <= o.timestamp_ms
            ) where place = 1 and known_ms <= shown_ms + {window_ms};
        create table positive as
            select i.*, min(o.known_ms) as known_ms
            from outcome o join rule r on r.scenario = o.scenario and r.action = o.action
                join impression i on i.event_id = o.shown_id and i.user_id = o.user_id
            group by all;
        -- A time looks back to the first millisecond of the day `lookback` days before its own.
        create macro recent(known, t) as known < t and known >= (t // {DAY} - {lookback}) * {DAY};

        create macro shown(u, s, t) as (
            select count(*) from impression i
            where i.user_id = u and i.scenario = s and recent(i.timestamp_ms, t));
        create macro taken(u, s, t) as (
            select count(*) from positive p
            where p.user_id = u and p.scenario = s and recent(p.known_ms, t));
        create macro history(u, s, t) as (
            select coalesce(list(item_id order by known_ms, timestamp_ms, event_id), []) from (
                select item_id, known_ms, timestamp_ms, event_id from positive p
                where p.user_id = u and p.scenario = s and recent(p.known_ms, t)
                order by known_ms desc, timestamp_ms desc, event_id desc limit {history}));
        create macro preferred(u, s, t) as (
            select coalesce(list(category order by times desc, last desc, category), []) from (
                select category, count(*) as times, max(known_ms) as last from positive p
                where p.user_id = u and p.scenario = s and recent(p.known_ms, t)
                    and category is not null
                group by category order by times desc, last desc, category limit {length}));

        create macro item_shown(i, s, t) as (
            select count(*) from impression x
            where x.item_id = i and x.scenario = s and recent(x.timestamp_ms, t));
        create macro item_taken(i, s, t) as (
            select count(*) from positive x
            where x.item_id = i and x.scenario = s and recent(x.known_ms, t));
        create macro newest(i, s, t) as (
            select {{'category': category, 'price': price}} from impression x
            where x.item_id = i and x.scenario = s and recent(x.timestamp_ms, t)
            order by timestamp_ms desc, event_id desc limit 1);
    """)
    return duck


# Arguments of macros are qualified: a bare name would be a column of the macro's own table.
SCENARIO_USERS = f"""
    create table expected as
    select event_id, timestamp_ms, user_id, scenario, item_id as own_item_id,
        device, hour,
        history(o.user_id, o.scenario, o.timestamp_ms) as scenario_history_item_id,
        shown(o.user_id, o.scenario, o.timestamp_ms) as scenario_impressions,
        taken(o.user_id, o.scenario, o.timestamp_ms) as scenario_positives,
        preferred(o.user_id, o.scenario, o.timestamp_ms) as scenario_preferred_category,
        {{'category': category, 'price': price}} as own,
        exists(select 1 from impression i where i.scenario = o.scenario
            and recent(i.timestamp_ms, o.timestamp_ms // {DAY} * {DAY})) as has_exposure
    from positive o
"""

# Whatever was drawn, each row must be this one.
SCENARIO_ROWS = f"""
    select e.event_id, e.timestamp_ms, e.user_id, e.scenario, g.item_id,
        (g.candidate_number = 0)::bigint as label, g.candidate_number,
        e.device, e.hour,
        e.scenario_history_item_id, e.scenario_impressions, e.scenario_positives,
        e.scenario_preferred_category,
        coalesce(newest(g.item_id, e.scenario, e.timestamp_ms // {DAY} * {DAY}), e.own) as item,
        item_shown(g.item_id, e.scenario, e.timestamp_ms // {DAY} * {DAY})
            as item_scenario_impressions,
        item_taken(g.item_id, e.scenario, e.timestamp_ms // {DAY} * {DAY})
            as item_scenario_positives
    from expected e join found g using (event_id)
    where (g.candidate_number = 0) = (g.item_id = e.own_item_id)
"""

USER_VIEWS = f"""
    with active as (
        select user_id, timestamp_ms // {DAY} as day,
            max_by(device, (timestamp_ms, event_id)) as device,
            max_by(hour, (timestamp_ms, event_id)) as hour
        from impression group by all
    )
    select a.user_id, a.day, r.scenario, r.number, a.device, a.hour,
        history(a.user_id, r.scenario, (a.day + 1) * {DAY}) as scenario_history_item_id,
        shown(a.user_id, r.scenario, (a.day + 1) * {DAY}) as scenario_impressions,
        taken(a.user_id, r.scenario, (a.day + 1) * {DAY}) as scenario_positives,
        preferred(a.user_id, r.scenario, (a.day + 1) * {DAY}) as scenario_preferred_category
    from active a cross join rule r
"""

ITEM_VIEWS = f"""
    with items as (select distinct item_id from impression),
    days as (
        select timestamp_ms // {DAY} as day from impression
        union select known_ms // {DAY} from positive
    )
    select i.item_id, d.day, r.scenario, r.number,
        coalesce(newest(i.item_id, r.scenario, (d.day + 1) * {DAY}),
            {{'category': null, 'price': null}}) as item,
        item_shown(i.item_id, r.scenario, (d.day + 1) * {DAY}) as item_scenario_impressions,
        item_taken(i.item_id, r.scenario, (d.day + 1) * {DAY}) as item_scenario_positives,
        exists(select 1 from impression x where x.item_id = i.item_id
            and x.timestamp_ms // {DAY} = d.day) as is_active
    from items i cross join days d cross join rule r
"""
