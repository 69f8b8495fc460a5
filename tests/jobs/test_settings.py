from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import pytest
import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from jobs.settings import (
    SettingsError,
    _model_in,
    add_config_arguments,
    key_lines,
    load_settings,
)
from models.config import ExportConfig, TwoTowerConfig
from pipeline.publish import PublishConfig
from pipeline.samples import SamplesConfig
from pipeline.specification import Specification
from streaming.config import TrainConfig


class Batcher(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    batch_size: Annotated[int, Field(ge=1)] = 64
    shards: list[int] = [1, 2]


class Train(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    directory: str
    batcher: Batcher = Batcher()
    others: list[Batcher] = []
    named: dict[str, Batcher] = {}
    rate: float = 0.1

    @model_validator(mode="after")
    def _check(self) -> Train:
        if self.directory == "bad":
            raise ValueError("batcher.batch_size: too many\ndirectory: found 'bad'; expected good")
        if self.directory == "worse":
            raise ValueError("expected: anything else")
        return self


def write(folder: Path, text: str) -> Path:
    path = folder / "config.yaml"
    path.write_text(text)
    return path


def problems(
    folder: Path,
    text: str,
    *overrides: str,
    model: type[BaseModel] = Train,
    section: str = "train",
) -> list[str]:
    """Returns the lines of the error, with the file's path cut off."""
    path = write(folder, text)
    with pytest.raises(SettingsError) as caught:
        load_settings(path, overrides, {section: model})
    return [line.removeprefix(f"{path}: ") for line in str(caught.value).splitlines()]


def test_a_section_is_validated_and_the_rest_of_the_file_left_alone(tmp_path: Path) -> None:
    path = write(tmp_path, "train: {directory: d, batcher: {batch_size: 8}}\nexport: {any: thing}")
    settings = load_settings(path, [], {"train": Train})
    assert settings == {"train": Train(directory="d", batcher=Batcher(batch_size=8))}


def test_a_missing_or_empty_section_is_made_of_its_defaults(tmp_path: Path) -> None:
    path = write(tmp_path, "train: {directory: d}\nmodel:")
    settings = load_settings(path, [], {"model": Batcher, "export": Batcher})
    assert settings == {"model": Batcher(), "export": Batcher()}


def test_overrides_are_yaml_values_applied_in_order_through_mappings_and_lists(
    tmp_path: Path,
) -> None:
    path = write(tmp_path, "train: {directory: d, others: [{batch_size: 1}, {batch_size: 2}]}")
    overrides = [
        "train.others.1.batch_size=9",
        "train.batcher.shards=[7, 8]",
        "train.batcher.shards.0=5",
        "train.rate=1e-3",
        "train.directory=a=b",
    ]
    train = load_settings(path, overrides, {"train": Train})["train"]
    assert [other.batch_size for other in train.others] == [1, 9]
    assert train.batcher.shards == [5, 8]
    assert train.rate == pytest.approx(0.001)
    assert train.directory == "a=b"


def test_an_unknown_key_lists_the_known_ones_and_the_nearest(tmp_path: Path) -> None:
    assert problems(tmp_path, "train: {directory: d, batcher: {batchsize: 3}}") == [
        "train.batcher.batchsize: found an unknown key; expected one of batch_size, shards"
        " (did you mean 'batch_size'?)"
    ]


def test_unknown_keys_inside_lists_and_dictionaries_are_found_too(tmp_path: Path) -> None:
    text = "train: {directory: d, others: [{shard: [1]}], named: {x: {zzz: 1}}}"
    assert problems(tmp_path, text) == [
        "train.others.0.shard: found an unknown key; expected one of batch_size, shards"
        " (did you mean 'shards'?)",
        "train.named.x.zzz: found an unknown key; expected one of batch_size, shards",
    ]


def test_an_unknown_section_is_an_error_even_if_the_job_does_not_need_it(tmp_path: Path) -> None:
    assert problems(tmp_path, "train: {directory: d}\nexprot: {}") == [
        "exprot: found an unknown section; expected one of specification, samples, publish, join,"
        " model, train, export (did you mean 'export'?)"
    ]


def test_all_problems_are_reported_at_once(tmp_path: Path) -> None:
    text = "train: {batcher: {batch_size: 0, shards: [1, x]}, rate: fast, named: 3}"
    assert problems(tmp_path, text) == [
        "train.directory: found nothing; expected a value",
        "train.batcher.batch_size: found 0; expected greater than or equal to 1",
        "train.batcher.shards.1: found 'x'; expected a valid integer",
        "train.named: found 3; expected a mapping",
        "train.rate: found 'fast'; expected a valid number",
    ]


def test_a_value_where_a_mapping_belongs_names_its_keys(tmp_path: Path) -> None:
    assert problems(tmp_path, "train: {directory: d, batcher: 3}") == [
        "train.batcher: found 3; expected a mapping with keys of batch_size, shards"
    ]


def test_a_validator_of_several_lines_gives_one_full_path_each(tmp_path: Path) -> None:
    assert problems(tmp_path, "train: {directory: bad}") == [
        "train.batcher.batch_size: too many",
        "train.directory: found 'bad'; expected good",
    ]


def test_a_validator_without_a_path_is_reported_at_its_model(tmp_path: Path) -> None:
    assert problems(tmp_path, "train: {directory: worse}") == ["train: expected: anything else"]


def test_a_feature_that_no_event_column_provides_is_named_by_its_path(tmp_path: Path) -> None:
    text = """
specification:
  name: films
  scenarios: [home]
  tables: {users: {buckets: 10}, items: {buckets: 10}}
  features:
    query: [{name: user_id, kind: id, table: users}, {name: age, kind: number}]
    candidate: [{name: item_id, kind: id, table: films}]
"""
    found = problems(tmp_path, text, model=Specification, section="specification")
    assert len(found) == 2
    assert found[0].startswith(
        "specification.features.query.1.name: no event column provides 'age'; expected one of"
    )
    assert found[1] == (
        "specification.features.candidate.0.table: found 'films'; expected one of"
        " ['items', 'users'] (did you mean 'items'?)"
    )


def test_an_error_from_an_override_names_the_override_and_not_the_file(tmp_path: Path) -> None:
    text = "train: {directory: d, batcher: {batch_size: 4}}"
    assert problems(tmp_path, text, "train.batcher.batch_size=-1") == [
        "--set train.batcher.batch_size=-1: train.batcher.batch_size: found -1; expected greater"
        " than or equal to 1"
    ]


def test_an_override_is_named_wherever_its_value_is_found_wrong(tmp_path: Path) -> None:
    content: dict = {
        "name": "films",
        "scenarios": ["home"],
        "tables": {"items": {"buckets": 10}},
        "features": {
            "query": [{"name": "history_item_id", "kind": "ids", "table": "items"}],
            "candidate": [{"name": "item_id", "kind": "id", "table": "items"}],
        },
    }
    text = yaml.safe_dump({"specification": content})
    given = {"model": Specification, "section": "specification"}
    override = "specification.features.query.0.table=itemz"
    assert problems(tmp_path, text, override, **given) == [  # of a validator, which writes paths
        f"--set {override}: specification.features.query.0.table: found 'itemz'; expected one of"
        " ['items'] (did you mean 'items'?)"
    ]
    override = "specification.features.candidate.0.name=user_id"
    (line,) = problems(tmp_path, text, override, **given)  # of something around it
    assert line.startswith(f"{tmp_path}/config.yaml with --set {override}: specification.features.")
    assert problems(tmp_path, text, "trian.dim=3", **given) == [
        "--set trian.dim=3: trian: found an unknown section; expected one of specification,"
        " samples, publish, join, model, train, export (did you mean 'train'?)"
    ]


def test_of_several_overrides_the_last_is_named(tmp_path: Path) -> None:
    first, last = "train.batcher={batch_size: 3}", "train.batcher.batch_size=0"
    (line,) = problems(tmp_path, "train: {directory: d}", first, last)
    assert line.startswith(f"--set {last}: ")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "stream: {start: latst}",
            "stream.start: found 'latst'; expected 'earliest' or 'latest' (did you mean"
            " 'latest'?), or a mapping with keys of timestamp, offsets, checkpoint_of",
        ),
        (
            "stream: {start: {offset: x}}",
            "stream.start.offset: found an unknown key; expected one of timestamp, offsets,"
            " checkpoint_of (did you mean 'offsets'?)",
        ),
        (
            "stream: {max_skew_seconds: 0}",
            "stream.max_skew_seconds: found 0; expected greater than 0, or 'auto'",
        ),
        (
            "source: {kafka: {bootstrap_servers: 'b:1', topics: [t]}}",
            "source.kafka.bootstrap_servers: found 'b:1'; expected a list, as [\"b:1\"]",
        ),
        (
            "source: {kafka: {bootstrap_servers: [b], topics: [t]}}",
            "source.kafka.bootstrap_servers.0: found 'b'; expected HOST:PORT, as 127.0.0.1:9092",
        ),
        (
            "source: {kafka: {bootstrap_servers: ['b:1'], topics: []}}",
            "source.kafka.topics: found []; expected at least 1 item",
        ),
        (
            "cluster: {merge: {rule: touch}}",
            "cluster.merge.rule: found 'touch'; expected 'sum', 'touches', 'dense-touches',"
            " 'adagrad' or 'agreement' (did you mean 'touches'?)",
        ),
        (
            "checkpoint: {every_seconds: .inf}",
            "checkpoint.every_seconds: found inf; expected a finite number",
        ),
    ],
)
def test_one_line_says_what_a_value_may_be(tmp_path: Path, text: str, expected: str) -> None:
    content = {"directory": "d", "source": {"archive": {"directory": "s"}}} | yaml.safe_load(text)
    whole = yaml.safe_dump({"train": content})
    assert problems(tmp_path, whole, model=TrainConfig) == [f"train.{expected}"]


def test_no_section_takes_a_number_that_is_not_finite() -> None:
    roots = [Specification, SamplesConfig, PublishConfig, TwoTowerConfig, TrainConfig, ExportConfig]
    for root in roots:
        for model in models_below(root):
            fields = [str(field.annotation) for field in model.model_fields.values()]
            if any("float" in text for text in fields):
                assert model.model_config.get("allow_inf_nan") is False, model


def models_below(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    yield model
    for field in model.model_fields.values():
        inner = _model_in(field.annotation)
        if inner is not None:
            yield from models_below(inner)


def test_the_keys_of_a_section_are_listed_with_their_defaults() -> None:
    assert list(key_lines("train", Train)) == [
        f"# train: see {__name__.replace('.', '/')}.py",
        "train.directory: (required)",
        "train.batcher.batch_size: 64",
        "train.batcher.shards: [1, 2]",
        "train.others: []",
        "train.others.0.batch_size: 64",
        "train.others.0.shards: [1, 2]",
        "train.named: {}",
        "train.named.NAME.batch_size: 64",
        "train.named.NAME.shards: [1, 2]",
        "train.rate: 0.1",
    ]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.rate", "expected dotted.path=value"),
        ("train..rate=1", "expected dotted.path=value"),
        ("=1", "expected dotted.path=value"),
        ("train.directory.x=1", "found 'd' above 'x'; expected a mapping or list"),
        ("train.others.2.batch_size=1", "found index '2'; expected a number below 1"),
        ("train.others.first=1", "found index 'first'; expected a number below 1"),
        ("train.rate=[1", "expected ',' or ']'"),
    ],
)
def test_an_override_that_fits_nowhere_is_an_error(
    tmp_path: Path, override: str, expected: str
) -> None:
    (line,) = problems(tmp_path, "train: {directory: d, others: [{}]}", override)
    assert line.startswith(f"--set {override}: ")
    assert expected in line


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train: {rate: 1, rate: 2}", "line 1, column 18: found key 'rate' twice"),
        ("train:\n  directory: d\ntrain: {}", "line 3, column 1: found key 'train' twice"),
        ("train: [", "line 1, column 9: "),
        ("train: !!python/object:os.system {}", "could not determine a constructor"),
        ("", "found nothing; expected a mapping of sections specification"),
        ("- train", "found ['train']; expected a mapping of sections"),
    ],
)
def test_a_file_that_is_not_a_mapping_of_sections_is_an_error(
    tmp_path: Path, text: str, expected: str
) -> None:
    (line,) = problems(tmp_path, text)
    assert expected in line


def test_a_yaml_anchor_may_be_merged_and_overridden(tmp_path: Path) -> None:
    text = """
train:
  directory: d
  batcher: &b {batch_size: 3, shards: [4]}
  others: [{<<: *b, batch_size: 5}]
"""
    train = load_settings(write(tmp_path, text), [], {"train": Train})["train"]
    assert train.others == [Batcher(batch_size=5, shards=[4])]


def test_a_file_that_cannot_be_read_is_an_error_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"none\.yaml: found no readable file: No such file"):
        load_settings(tmp_path / "none.yaml", [], {})
    (tmp_path / "latin.yaml").write_bytes(b"name: \xff")
    with pytest.raises(SettingsError, match="not UTF-8"):
        load_settings(tmp_path / "latin.yaml", [], {})


def test_the_flags_of_every_job() -> None:
    parser = argparse.ArgumentParser()
    add_config_arguments(parser)
    arguments = parser.parse_args(["--config", "a.yaml", "--set", "a.b=1", "--set", "a.c=2"])
    assert (arguments.config, arguments.overrides) == (Path("a.yaml"), ["a.b=1", "a.c=2"])
    assert parser.parse_args(["--config", "a.yaml"]).overrides == []
