"""The rival's program, without quixstreams; and what is said where that cannot be had."""

from __future__ import annotations

import ast
import datetime
import json
from pathlib import Path
from typing import Any

import pytest

from jobs.bench.join import quix_program, rival
from jobs.bench.join.main import main, speed_ratios
from tests.jobs.bench.join.test_events import event

TTL = datetime.timedelta(seconds=2)


class State:
    """What quixstreams hands to a stateful function, for one key."""

    def __init__(self) -> None:
        self.content: dict[str, str] = {}

    def get(self, key: str) -> Any:
        return json.loads(self.content[key]) if key in self.content else None

    def set(self, key: str, value: Any, ttl: datetime.timedelta) -> None:
        assert ttl == TTL
        self.content[key] = json.dumps(value)


def outcome_samples(*events: dict[str, Any]) -> list[str]:
    join, state = quix_program.join_at_outcome(1000, TTL), State()
    return [sample["event_id"] for row in events for sample in join(row, state)]


def closing_samples(*events: dict[str, Any]) -> list[str]:
    samples = quix_program.samples_at_closing(1000)
    return [sample["event_id"] for sample in samples({"value": list(events)})]


@pytest.mark.parametrize("samples", [outcome_samples, closing_samples])
def test_the_rival_joins_as_we_do(samples):
    a, click = event("a", 0), event("x", 1000, "click")
    assert samples(a, click) == ["a"]
    assert samples(click, a) == ["a"]
    assert samples(a, a, click, click) == ["a"]
    assert samples(a, event("x", 1001, "click")) == []
    assert samples(a, event("b", 10), event("x", 500, "click"), click) == ["b"]
    assert samples(event("a", 5), event("x", 4, "click")) == []
    assert samples(a, event("x", 4, "favourite")) == []


def test_a_sample_of_the_rival_has_the_columns_of_ours():
    join = quix_program.join_at_outcome(1000, TTL)
    state = State()
    join(event("a", 7), state)
    (sample,) = join(event("x", 8, "click"), state)
    (table,) = rival.samples_of([json.dumps(sample).encode()])
    assert table.to_pylist() == [
        {"event_id": "a", "timestamp_ms": 7, "user_id": 1, "item_id": 2, "scenario": "feed"}
    ]


def test_the_program_imports_nothing_that_its_environment_lacks():
    tree = ast.parse(Path(quix_program.__file__).read_text())
    modules = {
        name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module] if isinstance(node, ast.ImportFrom) else [node.names[0].name])
    }
    assert modules == {"__future__", "datetime", "importlib", "json", "pathlib", "sys", "typing"}


def test_where_the_rival_cannot_be_installed_a_row_says_why(tmp_path, monkeypatch, capsys):
    uv = tmp_path / "uv"
    uv.write_text("#!/bin/sh\necho no such host >&2\nexit 2\n")
    uv.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("HEADRACE_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "join.json"
    assert main(["--parts", "rival", "--kafka", "127.0.0.1:1", "--out", str(out)]) == 0
    written = json.loads(out.read_text())
    assert written["synthetic"] is True
    assert written["tables"] == {
        "rival": [
            {"way": f"quixstreams {rival.VERSION}", "left out": "not installed: no such host"}
        ]
    }
    assert "no such host" in capsys.readouterr().out
    uv.unlink()
    with pytest.raises(rival.RivalMissingError, match="no uv"):
        rival.environment()


def test_an_environment_that_was_made_is_used_again(tmp_path, monkeypatch):
    monkeypatch.setenv("HEADRACE_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", "")
    folder = tmp_path / f"quixstreams-{rival.VERSION}"
    folder.mkdir()
    with pytest.raises(rival.RivalMissingError):  # a half of one is not
        rival.environment()
    (folder / "complete").touch()
    assert rival.environment() == folder / "bin" / "python"


def test_ratios_are_our_rates_over_the_rivals():
    rows = [
        {"way": "headrace, arrow", "events/s": 300},
        {"way": "headrace, json", "events/s": 100},
        {"way": "quixstreams, json, outcome", "events/s": 20},
        {"way": "quixstreams, json, closing, not finished", "events/s": 0},
    ]
    assert speed_ratios(rows) == {
        "headrace, arrow / quixstreams, json, outcome": 15.0,
        "headrace, json / quixstreams, json, outcome": 5.0,
    }
