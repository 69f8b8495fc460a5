"""Row by row against SQL on two real logs, as jobs/configs declares them."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest
import yaml
from apache_beam.options.pipeline_options import PipelineOptions

from jobs.bench.real_logs.convert import convert
from pipeline.manifest import read_manifest
from pipeline.samples import DayRange, SamplesConfig, make_samples
from pipeline.shuffle import hash_keys
from pipeline.specification import Specification
from tests.pipeline.kinds import sql_oracle

ROOT = Path(__file__).resolve().parents[3]
DATA = ROOT.parent / "shared" / "data"
LOCAL = PipelineOptions(["--runner=FnApiRunner"])

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def logs(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("logs")


def converted(name: str, folder: Path) -> Path:
    if not (DATA / f"{name}.parquet").is_file():
        pytest.skip(f"{DATA}/{name}.parquet is not there: the real logs are not in the repository")
    if not (folder / name).exists():
        convert(name, DATA, folder / name)
    return folder / name


def configured(name: str, log: Path, output: Path, **changes) -> tuple[dict, SamplesConfig]:
    config = yaml.safe_load((ROOT / "jobs" / "configs" / f"{name}.yaml").read_text())
    kinds = config["specification"]["kinds"]
    config["specification"]["kinds"] = {n: kinds[n] for n in ("retrieval", "behaviour")}
    config["samples"] |= {
        "inputs": [f"{log}/logs"],
        "users": [f"{log}/users.parquet"],
        "items": [f"{log}/items.parquet"],
        "output": str(output),
    } | changes
    return config, SamplesConfig.model_validate(config["samples"])


@pytest.mark.parametrize(
    ("name", "orphans"), [("taobao", "drop"), ("taobao", "keep"), ("retailrocket", "drop")]
)
def test_samples_of_a_real_log_equal_those_of_sql(name, orphans, logs, tmp_path) -> None:
    log = converted(name, logs)
    config, samples = configured(name, log, tmp_path / "out", orphans=orphans)
    spec = Specification.model_validate(config["specification"])
    counts = make_samples(samples, spec, LOCAL).counts
    with sql_oracle.connect(log, config) as duck:
        for kind in ("retrieval", "behaviour"):
            files = f"{tmp_path}/out/{kind}/*/*.parquet"
            different = sql_oracle.differences(duck, kind, files)
            idle = different.pop("lacking", 0) if kind == "behaviour" else 0
            assert different == {}
        told = "select count(*) from {0} anti join told using (event_id)"
        all_idle = duck.execute(told.format("behaviour")).fetchall()[0][0]
        kept = duck.execute(told.format("found")).fetchall()[0][0]
        assert counts["retrieval samples"] > 5_000
        assert kept == all_idle - idle  # all that is lacking has no outcome
    share = spec.kinds.behaviour.idle_share
    spread = (share * (1 - share) * all_idle) ** 0.5
    assert abs(kept - share * all_idle) < 5 * spread


@pytest.mark.parametrize("orphans", ["keep"])
def test_days_of_a_real_log_equal_all_days_at_once(orphans, logs, tmp_path) -> None:
    """A twentieth of Taobao's users, day after day, three days together, and all at once."""
    log, few = converted("taobao", logs), tmp_path / "few"
    for path in sorted((log / "logs").rglob("*.parquet")):
        events = pl.read_parquet(path)
        chosen = pl.Series((hash_keys(events["user_id"].to_arrow()) >> 8) % 20 == 0)
        target = few / "logs" / path.parent.name / path.name
        target.parent.mkdir(parents=True)
        pq.write_table(events.filter(chosen).to_arrow(), target)
    for name in ("users.parquet", "items.parquet"):
        (few / name).symlink_to(log / name)
    outputs = {}
    for name, days, at_once in (
        ("all", None, 1),
        ("each", DayRange("2017-11-24", "2017-12-03"), 1),
        ("threes", DayRange("2017-11-24", "2017-12-03"), 3),
    ):
        config, samples = configured(
            "taobao", few, tmp_path / name, orphans=orphans, days_at_once=at_once
        )
        spec = Specification.model_validate(config["specification"])
        make_samples(samples, spec, LOCAL, days=days)
        files = read_manifest(tmp_path / name).files
        outputs[name] = {file.path: file.sha256 for file in files}
    assert outputs["each"] == outputs["threes"] == outputs["all"]
    assert len(outputs["all"]) > 100
