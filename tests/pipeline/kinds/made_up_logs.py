"""Small logs that Hypothesis makes up, with the columns of real ones."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from tests.pipeline.event_log import START
from tests.pipeline.kinds.real_logs import DAYPARTS

DAY = 86_400_000


@st.composite
def logs(draw: Any) -> list[dict[str, Any]]:
    """Few users, items, scenarios and times, over four days: many ties."""
    rows = draw(
        st.lists(
            st.tuples(
                st.integers(0, 3),
                st.sampled_from([0, 1, DAY // 2 - 1, DAY // 2, DAY - 2, DAY - 1]),
                st.integers(1, 3),
                st.integers(1, 4),
                st.sampled_from(DAYPARTS[:3]),
                st.sampled_from(["impression", "impression", "cart", "cart", "purchase"]),
                st.integers(0, 2),
            ),
            min_size=8,
            max_size=40,
        )
    )
    return [
        {
            "event_id": f"e{number}",
            "request_id": f"{user}-{item}",
            "timestamp_ms": START + day * DAY + time,
            "user_id": user,
            "item_id": item,
            "scenario": scenario,
            "action": action,
            "category": f"category {other}",
            "price": float(other),
            "device": f"device {other}",
            "hour": other,
        }
        for number, (day, time, user, item, scenario, action, other) in enumerate(rows)
    ]
