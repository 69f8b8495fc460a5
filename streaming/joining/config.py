"""The `join` section of a configuration file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, ClassVar, Final, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from pipeline.schema import InputError
from pipeline.topics.connection import BrokerConnection

_SHARE: Final = re.compile(r"(\d+)/(\d+)")


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _share(text: str) -> str:
    match = _SHARE.fullmatch(text)
    if text != "all" and (match is None or int(match[1]) >= int(match[2])):
        raise ValueError(
            f"found {text!r}; expected `all`, a list of partition numbers, or ORDINAL/OF, as 0/3 to"
            " 2/3 for three processes"
        )
    return text


class InputConfig(_Section):
    """Which events are read. All topics have the same partitions, cut by the same hash of users."""

    topics: Annotated[list[str], Field(min_length=1)]
    """Topics of events: one, or several, such as impressions and outcomes apart."""
    units: (
        Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
        | Annotated[str, AfterValidator(_share)]
    ) = "all"
    """Which partition numbers this process has: `all`, a list, or ORDINAL/OF for one of several
    processes: 1/3 has 1, 4, 7 ..."""
    value_format: Literal["json", "arrow"] = "json"
    """What a record is that has no header `headrace-format`: a JSON object, or an Arrow batch."""
    start: Literal["earliest", "latest"] = "earliest"
    """Where a unit begins that was never joined before."""
    max_ahead_seconds: Annotated[float, Field(gt=0)] | None = 3600.0
    """An event further ahead of its record's timestamp is rejected, one that is less is joined and
    moves the watermark to that timestamp only: a clock that is fast makes nothing stale. Null: no
    event is too far ahead. Goes by nothing where the producer sets timestamps to event times."""

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if len(set(self.topics)) < len(self.topics):
            raise ValueError(f"topics: found {', '.join(self.topics)}; expected each once")
        return self

    def numbers(self, partitions: int) -> list[int]:
        """Returns the partition numbers of this process, of so many.

        Raises:
            InputError: If it has none, or one that there is not.
        """
        if isinstance(self.units, str):
            ordinal, _, of = self.units.partition("/")
            numbers: Sequence[int] = range(partitions)
            if of:
                numbers = range(int(ordinal), partitions, int(of))
        else:
            numbers = sorted(set(self.units))
        wrong = [number for number in numbers if number >= partitions]
        if wrong or not numbers:
            raise InputError(
                f"join.input.units: found {self.units}; expected some of the partitions 0 to"
                f" {partitions - 1} of topic {self.topics[0]}"
            )
        return list(numbers)


class OutputConfig(_Section):
    """Where samples go: partition p of the output has those of partition p of the input."""

    topic: str
    create: bool = False
    """Create the topic, with unlimited retention, if it is not there."""
    samples_per_record: Annotated[int, Field(ge=1)] = 1000
    compression: Literal["lz4", "zstd", "none"] = "lz4"


class CommitConfig(_Section):
    """How often what was done is made visible, and where it is remembered."""

    every_seconds: Annotated[float, Field(gt=0)] = 0.5
    every_events: Annotated[int, Field(ge=1)] = 50_000
    """Also as soon as a unit has so many."""
    topic: str | None = None
    """The compacted topic that remembers positions; null: GROUP-progress. Made if missing."""


class SnapshotConfig(_Section):
    """What reaches further back than the window, such as histories, is saved as files."""

    directory: str | None = None
    """On a volume that survives the process and that all of the group's share, or keep."""
    every_seconds: Annotated[float, Field(gt=0)] = 300.0
    """A restart reads again what came since the last one, and three windows before."""


class JoinWatchConfig(_Section):
    """Where a running join tells of itself."""

    port: Annotated[int, Field(ge=0, le=65535)] | None = None
    """Serves /metrics, /healthz and /readyz here (0: some port); null: it does not."""
    host: str = "127.0.0.1"
    """The address to listen on; 0.0.0.0 is all of the machine's."""


class JoinConfig(BrokerConnection):
    """Events from topics, joined, to a topic of samples. The window is `samples`' own."""

    section: ClassVar[str] = "join"

    input: InputConfig
    output: OutputConfig
    rejects_topic: str | None = None
    """Where events go that are none, with topic, partition, offset and reason; it must be there.
    Null: they are counted, and the first few are logged."""
    max_reject_share: Annotated[float, Field(ge=0, le=1)] = 0.01
    """Stop with 2 when more than this share of all events is rejected; before the end, when it is
    more by three standard deviations."""
    group: str = "headrace-join"
    """Names what was joined so far: another group begins anew."""
    lateness_seconds: Annotated[float, Field(ge=0)] = 60.0
    """How much older than the newest of its partition an event may be; else it is stale."""
    idle_seconds: Annotated[float, Field(gt=0)] = 30.0
    """A partition that has had nothing for so long goes on by the clock."""
    end: Literal["never", "caught-up", "closed"] = "never"
    """`caught-up`: end at what is there at the start; windows stay open. `closed`: the same, and
    close all windows; nothing can be joined to this group's units afterwards."""
    commit: CommitConfig = CommitConfig()
    snapshot: SnapshotConfig = SnapshotConfig()
    watch: JoinWatchConfig = JoinWatchConfig()

    @model_validator(mode="after")
    def _different_topics(self) -> Self:
        others = {
            "output.topic": self.output.topic,
            "rejects_topic": self.rejects_topic,
            "commit.topic": self.progress_topic,
        }
        taken = dict.fromkeys(self.input.topics, "input.topics")
        for name, topic in others.items():
            if topic is not None and topic in taken:
                raise ValueError(
                    f"{name}: found topic {topic}, which is {taken[topic]} too; expected another"
                )
            taken[str(topic)] = name
        return self

    @property
    def progress_topic(self) -> str:
        """The topic that remembers positions."""
        return self.commit.topic or f"{self.group}-progress"

    @property
    def lateness_ms(self) -> int:
        """How much older than the newest an event may be, in milliseconds."""
        return round(1000 * self.lateness_seconds)
