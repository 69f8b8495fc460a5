"""The ledger: which ranges have been trained on.

The delivery guarantee, in full:

No sample is lost, and each is applied once on every parameter server. After the loss of a worker
its range in flight is retried and counts once. After the loss of the coordinator or a parameter
server, training resumes from a checkpoint in which every sample before the ledger was applied once
and none after it. A push that a crash cut in the middle is detected and, by `on_torn_push`,
answered with a restore (default) or counted. Records that cannot be decoded go to a dead-letter
topic or file with their offset and reason and are counted, as are records that the broker deleted
before they were read; past a set share of rejects the trainer stops.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, Self

from pipeline.schema import InputError
from streaming.source import Partition, Range


@dataclasses.dataclass(slots=True)
class Totals:
    """Counts over all ranges in the ledger.

    Attributes:
        records: Offsets passed, the rejected and the lost included.
        samples: Samples applied.
        batches: Mini-batches applied.
        rejects: Records that were no samples: undecodable, or with a number that is not finite.
        lost: Records that the source deleted before they were read.
        torn: Pushes to a server that a crash cut in the middle, counted instead of restored.
    """

    records: int = 0
    samples: int = 0
    batches: int = 0
    rejects: int = 0
    lost: int = 0
    torn: int = 0

    def add(self, other: Totals) -> None:
        """Adds other counts to these."""
        for field in dataclasses.fields(Totals):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))


class Ledger:
    """What has been applied: the next offset of each partition, and totals.

    Ranges finish in any order. A finished range is noted at once; `offsets` moves over it when all
    before it in its partition are finished too. A checkpoint is taken when nothing is in flight:
    then the two agree, and everything before `offsets` is in the saved state, and nothing after.
    """

    def __init__(self, offsets: Mapping[Partition, int], identity: Mapping[str, str]) -> None:
        self.offsets = dict(offsets)
        self.identity = dict(identity)
        self.totals = Totals()
        self._ahead: dict[Partition, dict[int, int]] = {}

    def commit(self, done: Range, totals: Totals) -> None:
        """Notes a range that every parameter server has applied.

        Raises:
            ValueError: If the range was noted before, or overlaps one that was.
        """
        ahead = self._ahead.setdefault(done.partition, {})
        next_offset = self.offsets.setdefault(done.partition, done.start)
        if done.start < next_offset or done.start in ahead:
            raise ValueError(f"{done} is in the ledger already; expected a start >= {next_offset}")
        ahead[done.start] = done.end
        while next_offset in ahead:
            next_offset = ahead.pop(next_offset)
        self.offsets[done.partition] = next_offset
        self.totals.add(totals)

    @property
    def settled(self) -> bool:
        """Whether no finished range waits for an earlier one: only then may it be saved."""
        return not any(self._ahead.values())

    def to_json(self) -> str:
        """Serialises a settled ledger.

        Raises:
            ValueError: If a finished range waits for an earlier one.
        """
        if not self.settled:
            raise ValueError(f"the ledger has holes before {self._ahead}; expected none in flight")
        positions = [
            {"topic": partition.topic, "partition": partition.number, "offset": offset}
            for partition, offset in sorted(self.offsets.items())
        ]
        totals = dataclasses.asdict(self.totals)
        return json.dumps({"offsets": positions, "totals": totals, "identity": self.identity})

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Reads what `to_json` wrote."""
        stored: dict[str, Any] = json.loads(text)
        offsets = {
            Partition(entry["topic"], entry["partition"]): entry["offset"]
            for entry in stored["offsets"]
        }
        ledger = cls(offsets, stored["identity"])
        ledger.totals = Totals(**stored["totals"])
        return ledger

    def copy(self) -> Self:
        """Returns a settled ledger's copy; see `to_json`."""
        return self.from_json(self.to_json())

    def adopt(self, starts: Mapping[Partition, int], ends: Mapping[Partition, int]) -> None:
        """Adds partitions that it does not know, from their first record.

        Raises:
            InputError: If a source ends before the ledger's offset: it has lost records.
        """
        self.offsets = dict(starts) | self.offsets
        for partition, end in ends.items():
            if self.offsets[partition] > end:
                raise InputError(
                    f"{partition.topic}, partition {partition.number}: found its end at {end};"
                    f" expected at least {self.offsets[partition]}, up to where the checkpoint has"
                    " trained: records were removed from the end (or 'replays' was lowered)"
                )

    def check_identity(self, found: Mapping[str, str]) -> None:
        """Refuses offsets that were counted in another life of a topic.

        Raises:
            InputError: If a topic's identity differs from the one that the offsets belong to, or
                the topic is not read any more.
        """
        for topic, stored in self.identity.items():
            if topic not in found:
                raise InputError(
                    f"topic {topic!r}: found offsets of it in the checkpoint, but it is not among"
                    f" those that are read ({', '.join(sorted(found))}); expected it there. If it"
                    f" was retired: `headrace offsets forget --topic {topic}`"
                )
            if found[topic] != stored:
                raise InputError(
                    f"topic {topic!r}: found identity {found[topic]}, expected {stored}: it is not"
                    " the stream that the checkpoint's offsets were counted in (deleted and created"
                    " again, or its files changed). To go on in the new one: `headrace offsets"
                    f" reset --to earliest --topic {topic}`; or train in a new directory"
                )
