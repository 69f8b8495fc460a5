"""Where a run begins: the ledger of a run that has no checkpoint yet."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from pipeline.schema import InputError
from streaming.checkpoints.newest import checkpoint_folders, load_ledger
from streaming.config import StartConfig
from streaming.ledger import Ledger
from streaming.source import Partition, Source


def milliseconds(time: datetime) -> int:
    """Returns a time as milliseconds since 1970."""
    return round(time.timestamp() * 1000)


def first_ledger(
    start: str | StartConfig,
    source: Source,
    *,
    starts: Mapping[Partition, int],
    ends: Mapping[Partition, int],
    offsets_key: str = "train.stream.start.offsets",
) -> Ledger:
    """Returns an empty ledger that stands at the start position.

    Offsets that are taken over bring the identity of their streams along, if it was noted with
    them, so that it can be checked. Partitions that they do not name, of topics that they do, were
    added since, and begin at their first record.

    Args:
        start: `train.stream.start`.
        source: What is read.
        starts: Its first offsets.
        ends: Its end offsets.
        offsets_key: What names a file of offsets, for messages.

    Raises:
        InputError: If the offsets cannot be read, or are not of this source's topics.
    """
    if start == "earliest":
        return Ledger(starts, {})
    if isinstance(start, str):
        return Ledger(ends, {})
    if start.timestamp is not None:
        places = source.offsets_at(milliseconds(start.timestamp))
        return Ledger({p: places[p].offset if p in places else end for p, end in ends.items()}, {})
    if start.checkpoint_of is not None:
        name = f"train.stream.start.checkpoint_of: {start.checkpoint_of}"
        other = _ledger_of(Path(start.checkpoint_of))
    else:
        name = f"{offsets_key}: {start.offsets}"
        other = read_offsets(Path(str(start.offsets)), key=offsets_key)
    _check_topics(name, other.offsets, starts)
    return Ledger(other.offsets, other.identity)


def _ledger_of(run: Path) -> Ledger:
    """Returns the ledger of another run's newest checkpoint."""
    key, folder = "train.stream.start.checkpoint_of", run / "checkpoints"
    if not checkpoint_folders(folder):
        raise InputError(
            f"{key}: found no checkpoint in {folder}; expected the train.directory of a run that"
            " has one"
        )
    try:
        return load_ledger(folder)
    except InputError as error:
        raise InputError(f"{key}: {error}") from error


def read_offsets(path: Path, *, key: str = "train.stream.start.offsets") -> Ledger:
    """Reads a file of offsets.

    It is a JSON object: `offsets` is a list of {"topic", "partition", "offset"}, and `identity`, if
    it is there, gives the id of each topic.

    Args:
        path: The file.
        key: What named it, for messages.

    Raises:
        InputError: If it is not there, or not such a file.
    """
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        offsets = {
            Partition(entry["topic"], int(entry["partition"])): int(entry["offset"])
            for entry in stored["offsets"]
        }
        return Ledger(offsets, dict(stored.get("identity", {})))
    except OSError as error:
        found = f"no readable file {path} ({error.strerror})"
    except (json.JSONDecodeError, UnicodeDecodeError):
        found = f"no JSON in {path}"
    except (ValueError, KeyError, TypeError, AttributeError):
        found = f"other JSON in {path}"
    raise InputError(
        f"{key}: found {found}; expected a file as `headrace offsets export` writes it:"
        ' {"offsets": [{"topic": "samples", "partition": 0, "offset": 12}, ...]}'
    )


def _check_topics(
    name: str, offsets: Mapping[Partition, int], starts: Mapping[Partition, int]
) -> None:
    found = {partition.topic for partition in offsets}
    expected = {partition.topic for partition in starts}
    if found != expected:
        raise InputError(
            f"{name}: found offsets of {sorted(found)}; expected those of all topics that are"
            f" read, {sorted(expected)}, and of no other"
        )
    if strange := sorted(set(offsets) - set(starts)):
        raise InputError(
            f"{name}: found an offset of partition {strange[0].number} of topic"
            f" {strange[0].topic}; expected partitions that the topic has"
        )
