"""What `headrace publish` sends, in what form, how fast, and where to."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Annotated, ClassVar, Final, Literal, Self

from pydantic import Field, model_validator

from pipeline.manifest import RETRIEVAL
from pipeline.topics.connection import BrokerConnection

Action = Literal["impression", "click", "favourite", "cart", "purchase", "follow", "play"]

_OF: Final = {"directory": ("kind", "days"), "events": ("actions", "malformed", "shift")}
_FORMS: Final = {"directory": ("arrow", "example"), "events": ("arrow", "json")}


class TargetConfig(BrokerConnection):
    """A topic, and the job that writes to it."""

    section: ClassVar[str] = "publish"

    topic: str
    create_partitions: Annotated[int, Field(ge=1)] | None = None
    """Create the topic with so many partitions and unlimited retention, if it is not there."""
    append: bool = False
    """Let a job begin on a topic that has records already; without it, such a topic is refused."""
    job: Annotated[str, Field(min_length=1)] = "publish"
    """Names what is sent: under topic and job it is remembered how far it is. Another name sends
    something else to the same topic (with `append`)."""
    progress_topic: str = "headrace-progress"
    """Where it is remembered: a compacted topic of all jobs, which is made if it is not there."""
    compression: Literal["lz4", "zstd", "none"] = "lz4"
    """`lz4` is read fastest; `zstd` is smaller."""


class PublishConfig(TargetConfig):
    """Which samples or events go to which topic, in what form and how fast."""

    directory: Path | None = None
    """Send samples: the output of `headrace samples`. Either this or `events`."""
    kind: str = RETRIEVAL
    """Of samples: which kind."""
    days: tuple[date, date] | None = None
    """Of samples: the first and the last day, [2026-01-02, 2026-01-02]. To send a folder that grows
    day by day, a `job` for each day, with `append`."""
    events: Annotated[list[str], Field(min_length=1)] | None = None
    """Send events, for rehearsals: files, folders or globs of .parquet, .jsonl and .jsonl.gz logs.
    They go out in the order of event time over all files; the sort needs their size, uncompressed,
    on the disk of TMPDIR."""
    actions: Annotated[list[Action], Field(min_length=1)] | None = None
    """Of events, only these actions: a topic for impressions, another one for outcomes."""
    malformed: Literal["skip", "send"] = "skip"
    """Rows of event logs that have no event id, user or time, or cannot be read: skipped and
    counted; or, with `value_format: json`, sent as they are, to rehearse what a reader does."""
    value_format: Literal["arrow", "example", "json"] = "arrow"
    """`arrow`: many rows a record, read many times faster. One row a record: `example`, a
    `tf.Example` of a sample, and `json`, an object of an event."""
    samples_per_record: Annotated[int, Field(ge=1)] = 1000
    """With `arrow`: 1,000 to 4,000 are read fastest."""
    speed: Annotated[float, Field(gt=0)] | None = None
    """Event time passes so many times as fast as the clock: 60 sends a day in 24 minutes. Without
    it, as fast as possible. A record waits at most a second for more rows."""
    shift: Literal["now"] | None = None
    """With `speed: 1`, move event times so that the first event is of the moment it is sent."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.directory is None) == (self.events is None):
            raise ValueError("expected exactly one of 'directory' and 'events'")
        source = "directory" if self.events is None else "events"
        other = "events" if source == "directory" else "directory"
        for name in _OF[other]:
            if name in self.model_fields_set and getattr(self, name) is not None:
                raise ValueError(f"{name}: found with {source!r}; expected with {other!r} only")
        if self.value_format not in (forms := _FORMS[source]):
            raise ValueError(
                f"value_format: found {self.value_format!r} with {source!r};"
                f" expected {' or '.join(forms)}"
            )
        if self.malformed == "send" and self.value_format != "json":
            raise ValueError("malformed: found 'send'; expected it with 'value_format: json' only")
        if self.shift is not None and self.speed != 1:
            raise ValueError(
                f"shift: found speed {self.speed}; expected 1: an hour of moved events takes one"
            )
        return self
