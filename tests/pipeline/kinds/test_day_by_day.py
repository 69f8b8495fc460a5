"""Days built one after another, or a few together, are the days of one build of everything."""

from __future__ import annotations

from pathlib import Path

import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from pipeline.days import name_of
from pipeline.manifest import read_manifest
from pipeline.samples import DayRange, SamplesConfig, make_samples
from tests.pipeline.small_world import FIRST, WINDOW_SECONDS, everything, write_world

LOCAL = PipelineOptions(["--runner=FnApiRunner"])


def build(folder: Path, name: str, days: DayRange | None = None, **settings) -> dict[str, str]:
    """Returns the hash of every file."""
    config = SamplesConfig(
        inputs=[f"{folder}/logs"],
        users=[f"{folder}/users.parquet"],
        items=[f"{folder}/items.parquet"],
        output=folder / name,
        join_window_seconds=WINDOW_SECONDS,
        num_parts=2,
        **settings,
    )
    make_samples(config, everything(), LOCAL, days=days)
    return {file.path: file.sha256 for file in read_manifest(folder / name).files}


RANGE = DayRange(name_of(FIRST), name_of(FIRST + 4))


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "lookback_days"), [(1, None), (2, 1), (1, 2)])
def test_day_by_day_equals_all_at_once(tmp_path, seed, lookback_days) -> None:
    write_world(tmp_path, seed=seed)
    expected = build(tmp_path, "all", lookback_days=lookback_days)
    assert build(tmp_path, "each", RANGE, lookback_days=lookback_days) == expected
    three = build(tmp_path, "three", RANGE, lookback_days=lookback_days, days_at_once=3)
    assert three == expected
    kinds = {path.split("/dt=")[0] for path in expected}
    assert kinds >= {"retrieval", "behaviour", "corpus", "facts/behaviours", "facts/positives"}


@pytest.mark.slow
def test_a_day_does_not_depend_on_those_that_are_not_near(tmp_path) -> None:
    """Without lookback beyond a day, logs of older days may be gone when a day is built again."""
    write_world(tmp_path, seed=3)
    expected = build(tmp_path, "all", RANGE, lookback_days=1)
    (tmp_path / "logs" / f"dt={name_of(FIRST)}" / "log.parquet").unlink()
    last = name_of(FIRST + 4)
    assert build(tmp_path, "all", DayRange(last, last, rebuild=True), lookback_days=1) == expected
