"""Samples of whole logs, row by row, against the same said in SQL."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import Phase, event, given, settings
from hypothesis import strategies as st

from pipeline.kinds.registry import KINDS
from pipeline.specification import Specification
from tests.pipeline.kinds import sql
from tests.pipeline.kinds.building import build, table_of, with_columns
from tests.pipeline.kinds.compare import problems
from tests.pipeline.kinds.made_up_logs import DAY, logs
from tests.pipeline.kinds.real_logs import WINDOW_MS, real_events, real_specification

OURS = ("scenario", "user_pair", "item_pair", "corpus")


def found_problems(
    folder: Path,
    events: pa.Table,
    spec: Specification,
    *,
    window_ms: int,
    lookback_days: int | None = None,
    num_parts: int = 3,
) -> tuple[list[str], dict[str, int]]:
    """What SQL finds wrong, and how many rows of each kind it looked at."""
    report = build(
        folder,
        events,
        spec,
        window_ms=window_ms,
        num_parts=num_parts,
        lookback_days=lookback_days,
    )
    tables = {}
    for kind in OURS:
        found = table_of(folder, report, kind)
        tables[kind] = KINDS[kind].schema(spec).empty_table() if found is None else found
        assert tables[kind].schema.equals(KINDS[kind].schema(spec))
    dropped = {name: n for name, n in report.counts.items() if name.startswith("scenario ")}
    with sql.connect(events, spec, window_ms=window_ms, lookback_days=lookback_days) as duck:
        wrong = problems(duck, tables, spec, window_ms=window_ms, dropped=dropped)
    return wrong, {kind: table.num_rows for kind, table in tables.items()}


@pytest.mark.parametrize("lookback_days", [None, 2])
@pytest.mark.parametrize(
    ("name", "num_days", "one_of"), [("taobao", 9, 4), ("retailrocket", 20, 1)]
)
def test_samples_of_a_real_log_are_those_of_sql(
    tmp_path: Path, name: str, num_days: int, one_of: int, lookback_days: int | None
) -> None:
    events = real_events(name, num_days=num_days, one_of=one_of)
    wrong, rows = found_problems(
        tmp_path, events, real_specification(), window_ms=WINDOW_MS, lookback_days=lookback_days
    )
    assert wrong == []
    assert min(rows.values()) > 500, rows


@settings(max_examples=25, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(
    log=logs(),
    window_ms=st.sampled_from([1, DAY // 2, DAY]),
    lookback_days=st.sampled_from([None, 1, 2]),
)
def test_samples_of_made_up_logs_are_those_of_sql(
    tmp_path_factory: Any, log: list[dict[str, Any]], window_ms: int, lookback_days: int | None
) -> None:
    spec = real_specification()
    wrong, rows = found_problems(
        tmp_path_factory.mktemp("log"),
        with_columns(log, spec),
        spec,
        window_ms=window_ms,
        lookback_days=lookback_days,
        num_parts=2,
    )
    for kind, count in rows.items():
        event(f"{kind} {bool(count)}")
    assert wrong == []
