"""What is remembered of a job: what it sends, and how far it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.publish.config import PublishConfig
from pipeline.publish.sources.rows import Source
from pipeline.schema import InputError, type_name

_SHOWN: Final = 3


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid")

    format_version: Literal[1] = 1

    @classmethod
    def parsed(cls, value: bytes, key: str) -> Self:
        """Returns what a record of the progress topic says.

        Raises:
            InputError: If this version did not write it.
        """
        try:
            return cls.model_validate_json(value)
        except ValidationError as error:
            raise InputError(
                f"publish.progress_topic: found a record {key!r} that is not of this version"
                f" ({value[:80]!r}); expected one: name another publish.job, and another topic or"
                " publish.append=true"
            ) from error


class PartitionCount(BaseModel):
    """What one partition was sent: bytes are counted before compression."""

    partition: int
    records: int = 0
    samples: int = 0
    bytes: int = 0


class State(_Record):
    """How far a job is; written with every transaction.

    Attributes:
        topic_id: Of the topic; a topic made anew under its name has another.
        counts: What each partition was sent.
        shift_ms: How far event times are moved.
        finished: Whether all was sent.
    """

    topic_id: str
    counts: list[PartitionCount]
    shift_ms: int | None = None
    finished: bool = False

    @property
    def rows(self) -> int:
        """How many samples or events were sent."""
        return sum(count.samples for count in self.counts)


class Plan(_Record):
    """What shapes the rows of a job and their order; written once, at its beginning.

    Attributes:
        files: Digest of each file's content.
        options: What else, in words, by where it is configured.
    """

    files: dict[str, str]
    options: dict[str, str] = Field(default_factory=dict)

    @classmethod
    def of(cls, config: PublishConfig, source: Source, partitions: int) -> Plan:
        """Returns the plan of a job that is about to run."""
        samples = config.directory is not None
        options = {
            "publish": "samples (directory)" if samples else "events",
            "publish.topic": f"{partitions} partitions",
            "publish.value_format": config.value_format,
        }
        if samples:
            options["publish.kind"] = config.kind
            options["publish.speed"] = "none" if config.speed is None else "one"
        else:
            options["publish.actions"] = ", ".join(sorted(config.actions or [])) or "all"
            options["publish.malformed"] = config.malformed
            options["publish.shift"] = config.shift or "none"
        for field in source.schema:
            options[f"specification: column {field.name!r}"] = type_name(field.type)
        return cls(files=dict(source.inputs), options=options)

    def require_same(self, former: Plan, config: PublishConfig) -> None:
        """Lets a job go on only with what it began with.

        Raises:
            InputError: If something changed; it names what.
        """
        place = "publish.events" if config.directory is None else "publish.directory"
        problems = [
            f"{name}: found {now or 'none'}; expected {then or 'none'}"
            for name, now, then in _differences(self.options, former.options)
        ]
        changes = list(_differences(self.files, former.files))
        kinds = {
            "changed": [name for name, now, then in changes if now and then],
            "more": [name for name, _, then in changes if not then],
            "missing": [name for name, now, _ in changes if not now],
        }
        if found := [
            f"{len(names)} {kind} ({_some(names)})" for kind, names in kinds.items() if names
        ]:
            problems.append(
                f"{place}: found files {', '.join(found)}; expected the {len(former.files)} files"
                " as they were"
            )
        if problems:
            lines = "\n".join(problems)
            raise InputError(
                f"{lines}\nJob {config.job!r} of topic {config.topic} began so, and goes on with"
                " nothing else. To send something else: into another or an emptied topic, or beside"
                " what is there under another name (publish.job, with publish.append=true)"
            )


def _differences(
    now: Mapping[str, str], then: Mapping[str, str]
) -> Iterator[tuple[str, str | None, str | None]]:
    for name in sorted(now.keys() | then.keys()):
        if now.get(name) != then.get(name):
            yield name, now.get(name), then.get(name)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
