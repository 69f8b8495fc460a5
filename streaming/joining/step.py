"""What the loop is handed: how records become events, and how events become samples."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

NEVER: Final = -(2**62)
"""A watermark before every event."""
FOREVER: Final = 2**62
"""A watermark after every event."""


class BadEvent(Protocol):
    """A record, or a row of one, that is no event."""

    @property
    def record(self) -> int:
        """Position of its record among those that were decoded."""

    @property
    def reason(self) -> str:
        """Short identifier to count by."""

    @property
    def detail(self) -> str:
        """What was found and what was expected, for a person."""

    @property
    def payload(self) -> bytes | None:
        """The row as JSON; None if it is the whole record."""


class Decoded(Protocol):
    """What some records hold."""

    @property
    def events(self) -> pa.Table:
        """[num_events] events, in the order of the records."""

    @property
    def record_of(self) -> npt.NDArray[np.int64]:
        """[num_events] position of each event's record; never falls."""

    @property
    def rejects(self) -> Sequence[BadEvent]:
        """All else."""


class Decoder(Protocol):
    """Turns records into events; raises for none of them."""

    @property
    def schema(self) -> pa.Schema:
        """The columns of its events."""

    def decode(self, values: Sequence[bytes | None], forms: Sequence[bytes]) -> Decoded:
        """Returns what records of these values and formats hold."""


class Joined(Protocol):
    """What has closed."""

    @property
    def samples(self) -> pa.Table:
        """[num_samples] samples, each of them once in the life of a unit."""

    @property
    def counts(self) -> Mapping[str, int]:
        """What became of events since the last call, by name."""


class Joiner(Protocol):
    """Joins the events of one unit. Any cutting of the events into calls gives the same."""

    def process(self, events: pa.Table, watermark_ms: int) -> Joined:
        """Takes events, then a watermark: of what comes later, none is older than that."""

    def snapshot(self) -> bytes:
        """Returns what must outlive the events of the last three windows.

        Empty always or never: a joiner that remembers nothing else needs no files.
        """

    def restore(self, snapshot: bytes | None, closed_to_ms: int) -> None:
        """Begins anew: what closed before this time came out already, and never does again.

        The caller then repeats all events of three windows before this time and later.
        """


@dataclasses.dataclass(frozen=True, slots=True)
class Rejected:
    """A dead letter: where it stood, and what is wrong with it."""

    topic: str
    partition: int
    offset: int
    reason: str
    detail: str
    payload: bytes
