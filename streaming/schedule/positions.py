"""Where a run begins: the ledger of a run that has no checkpoint yet."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from pipeline.schema import InputError
from streaming.checkpoints.store import load_ledger
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
        other = load_ledger(Path(start.checkpoint_of) / "checkpoints")
    else:
        name = f"train.stream.start.offsets: {start.offsets}"
        other = read_offsets(Path(str(start.offsets)))
    _check_topics(name, other.offsets, starts)
    return Ledger(other.offsets, other.identity)


def read_offsets(path: Path) -> Ledger:
    """Reads a file of offsets.

    It is a JSON object: `offsets` is a list of {"topic", "partition", "offset"}, and `identity`, if
    it is there, gives the id of each topic.

    Raises:
        InputError: If it is not there, or not such a file.
    """
    try:
        stored = json.loads(path.read_text())
        offsets = {
            Partition(entry["topic"], int(entry["partition"])): int(entry["offset"])
            for entry in stored["offsets"]
        }
        return Ledger(offsets, dict(stored.get("identity", {})))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"train.stream.start.offsets: {path}: found {type(error).__name__}: {error}; expected"
            ' a file as {"offsets": [{"topic": "samples", "partition": 0, "offset": 12}, ...]}'
        ) from error


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
