"""What every source of rows has: digests of its files, and its rows in a fixed order."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, Protocol

import numpy as np
import pyarrow as pa

PARTITION: Final = "headrace-partition"
"""A hidden column: where a row goes."""

_DAY_MS: Final = 86_400_000


@dataclasses.dataclass(frozen=True, slots=True)
class Piece:
    """Neighbouring rows of one partition.

    Attributes:
        partition: Where they go.
        rows: In the order of the partition.
    """

    partition: int
    rows: pa.Table


@dataclasses.dataclass(frozen=True, slots=True)
class Pieces:
    """A step through the input.

    Attributes:
        pieces: At most one of each partition.
        until_ms: No row that follows is older; None if the input is in no order of time.
    """

    pieces: Sequence[Piece]
    until_ms: int | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Prepared:
    """Rows, ready to be sent.

    Attributes:
        rows: How many there are, those that were sent before included.
        skip: For each partition, how many of the rows in `steps` were sent before.
        steps: The rows, in an order that depends on the files alone.
        days: UTC days of their times, as YYYY-MM-DD.
        first_ms: The least time, if the order is that of time.
        rejects: Rows of the files that are not sent, per reason.
    """

    rows: int
    skip: Sequence[int]
    steps: Iterator[Pieces]
    days: Sequence[str] = ()
    first_ms: int | None = None
    rejects: Mapping[str, int] = dataclasses.field(default_factory=dict)


class Source(Protocol):
    """Files whose rows go to the partitions of a topic."""

    @property
    def inputs(self) -> Mapping[str, str]:
        """A digest of each file's content, by a name that survives a move of the folder."""

    @property
    def schema(self) -> pa.Schema:
        """Columns of the rows; what is sent, and hidden ones that say how."""

    def prepare(self, sent: Sequence[int], told: Callable[[int], None]) -> Prepared:
        """Reads what has to be read before the first row can be sent.

        Args:
            sent: For each partition, how many of its rows were sent before.
            told: Called with the number of rows read so far.
        """

    def close(self) -> None:
        """Gives back what `prepare` took; `steps` has ended."""


def days_of(times_ms: pa.ChunkedArray) -> list[str]:
    """Returns the UTC days of some times, as YYYY-MM-DD."""
    days = np.unique(times_ms.to_numpy() // _DAY_MS)
    return [str(day) for day in days.astype("datetime64[D]")]
