"""Small logs that Hypothesis makes up, with the columns of real ones."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from tests.pipeline.event_log import START
from tests.pipeline.kinds.real_logs import DAYPARTS

DAY = 86_400_000

_TIMES = st.sampled_from([0, 1, DAY // 2 - 1, DAY // 2, DAY - 2, DAY - 1])
_ACTIONS = st.sampled_from(["cart", "cart", "purchase"])
_SHOWN = st.tuples(
    st.integers(0, 3),
    _TIMES,
    st.integers(1, 2),
    st.integers(1, 5),
    st.sampled_from(DAYPARTS[1:3]),
    st.integers(0, 2),
    # Taken so much later, if at all.
    st.none() | st.tuples(st.sampled_from([0, 1, DAY // 2, DAY]), _ACTIONS),
)


@st.composite
def logs(draw: Any) -> list[dict[str, Any]]:
    """Few users, items, scenarios and times, over four days: many ties."""
    log: list[dict[str, Any]] = []
    for day, time, user, item, scenario, other, taken in draw(
        st.lists(_SHOWN, min_size=8, max_size=24)
    ):
        shown = {
            "event_id": f"e{len(log)}",
            "request_id": f"{user}-{item}",
            "timestamp_ms": START + day * DAY + time,
            "user_id": user,
            "item_id": item,
            "scenario": scenario,
            "action": "impression",
            "category": f"category {other}",
            "price": float(other),
            "device": f"device {other}",
            "hour": other,
        }
        log.append(shown)
        if taken is not None:
            delay, action = taken
            outcome = {"event_id": f"e{len(log)}", "action": action}
            log.append(shown | outcome | {"timestamp_ms": shown["timestamp_ms"] + delay})
    return draw(st.permutations(log))
