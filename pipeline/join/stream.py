"""Retrieval samples of a log without an end: what `headrace join` does with each partition."""

from __future__ import annotations

import dataclasses
from typing import Final

import polars as pl
import pyarrow as pa

from pipeline import schema as s
from pipeline.days import MS_PER_DAY, since_lookback
from pipeline.join.exposed import Exposures, shown_items
from pipeline.join.histories import Histories
from pipeline.join.labels import IMPRESSION_ROW, find_positives, with_labels
from pipeline.join.step import BEGINNING_MS, FATES, Closed, JoinRule, JoinState, OrphanRule, step
from pipeline.kinds.retrieval import KNOWN, assemble, in_order
from pipeline.known.current import CurrentTables
from pipeline.schema import InputError
from pipeline.specification import Specification

_OF_ALL_USERS: Final = (s.ITEM_IMPRESSIONS, s.ITEM_POSITIVES)


@dataclasses.dataclass(frozen=True, slots=True)
class Joined:
    """What one call gave.

    Attributes:
        samples: Of the impressions that closed, sorted by (timestamp_ms, event_id).
        counts: `events_accepted`, `duplicates`, `impressions` (logged ones that closed), `samples`,
            and outcomes per fate. Over all calls impressions and outcomes add up to the events.
    """

    samples: pa.Table
    counts: dict[str, int]


class SampleJoiner:
    """Turns a log, piece by piece, into the samples that the batch makes of it as a whole."""

    def __init__(
        self,
        specification: Specification,
        window_ms: int,
        orphans: OrphanRule,
        *,
        tables: CurrentTables | None = None,
        lookback_days: int | None = None,
    ) -> None:
        """Starts with an empty log.

        Args:
            specification: Says which columns a sample has and how it is labelled.
            window_ms: The join window.
            orphans: What becomes of an outcome without impression.
            tables: Of users and items, those that the specification declares.
            lookback_days: How many days before its own a sample looks back; None for all.

        Raises:
            InputError: If the specification has a feature that only a batch can make.
        """
        _require_streamable(specification)
        self._tables = CurrentTables(specification) if tables is None else tables
        self._specification = specification
        self._rule = JoinRule(window_ms=window_ms, orphans=orphans)
        self._exposed = specification.exposed_negatives
        self._lookback_days = lookback_days
        self.restore(None, BEGINNING_MS)
        nothing = pl.DataFrame(pl.from_arrow(specification.event_schema.empty_table()))
        self._no_samples = self._make_samples(self._advance(nothing, BEGINNING_MS)[1])

    def process(self, events: pa.Table, watermark_ms: int) -> Joined:
        """Takes in events and gives out the samples that the watermark makes final.

        Args:
            events: Validated events, none older than the former watermark.
            watermark_ms: No event of an earlier time will come any more.

        Returns:
            Samples and counts. In a replay, which is up to the first call with a watermark above
            `restore`'s, there are only the counts of events and duplicates.

        Raises:
            ValueError: If the watermark goes back, or an event is older than the former one.
        """
        frame = pl.DataFrame(pl.from_arrow(events))
        if watermark_ms <= self._closed_to_ms:
            # The last watermark of a replay may come with its first events: it closes nothing then.
            gather = watermark_ms == self._closed_to_ms
            closed, _ = self._advance(frame, self._state.watermark_ms if gather else watermark_ms)
            return Joined(self._no_samples, _count(closed) | _nothing_final())
        num_accepted = num_duplicates = 0
        if self._closed_to_ms > self._state.watermark_ms:
            closed, _ = self._advance(frame, self._closed_to_ms)
            num_accepted, num_duplicates = closed.num_accepted, closed.num_duplicates
            frame = frame.clear()
        closed, positives = self._advance(frame, watermark_ms)
        samples = self._make_samples(positives)
        counts = _count(closed) | {"samples": samples.num_rows}
        counts["events_accepted"] += num_accepted
        counts["duplicates"] += num_duplicates
        return Joined(samples, counts)

    def snapshot(self) -> bytes:
        """Returns the users' histories; all else comes back by a replay."""
        return b"" if self._histories is None else self._histories.dump()

    def restore(self, snapshot: bytes | None, closed_to_ms: int) -> None:
        """Forgets everything and goes back to a snapshot.

        The caller then repeats all events of time >= closed_to_ms - 3w that had arrived by then,
        older ones among them if it likes; with the watermarks of that time, or all with
        `closed_to_ms`, which takes more memory. From the first higher watermark on, results are
        those of a joiner that never stopped.

        Args:
            snapshot: Of a joiner of the same specification; None where there is no history.
            closed_to_ms: The watermark of the last call before the snapshot.

        Raises:
            InputError: If the snapshot is another specification's, or damaged.
        """
        window_ms, schema = self._rule.window_ms, self._specification.sample_schema
        self._state = JoinState(self._rule)
        self._closed_to_ms = closed_to_ms
        self._exposures = (
            None if self._exposed is None else Exposures(window_ms=window_ms, length=self._exposed)
        )
        self._histories = (
            Histories(self._specification) if s.HISTORY_ITEM_ID in schema.names else None
        )
        if snapshot and self._histories is not None:
            self._histories.load(snapshot)

    def _advance(self, frame: pl.DataFrame, watermark_ms: int) -> tuple[Closed, pl.DataFrame]:
        """Makes one step; returns what closed, and the positives among it, in order."""
        former_ms = self._state.watermark_ms
        closed, self._state = step(self._state, frame, watermark_ms)
        found = find_positives(closed.impressions, closed.outcomes, self._specification)
        if self._exposures is not None:
            self._exposures.forget(former_ms)
            rows = found[IMPRESSION_ROW].cast(pl.Int64).to_numpy()
            self._exposures.add(shown_items(closed.impressions, rows))
        return closed, in_order(with_labels(closed.impressions, found))

    def _make_samples(self, positives: pl.DataFrame) -> pa.Table:
        positives = self._tables.of(positives).attach(positives, self._specification)
        earlier = None
        if self._histories is not None:
            earlier = self._histories.of(positives)
            self._histories.add(positives)
            bound_ms = self._state.watermark_ms - self._rule.window_ms
            oldest_ms = None
            if self._lookback_days is not None:
                oldest_ms = bound_ms - (self._lookback_days + 1) * MS_PER_DAY
            self._histories.clean(bound_ms, oldest_ms=oldest_ms, num_added=len(positives))
        exposed = None if self._exposures is None else self._exposures.of(positives)
        known = positives.select(KNOWN)
        if earlier is not None and len(earlier):
            known = in_order(pl.concat([earlier.select(KNOWN), known]))
        since = since_lookback(positives[s.TIMESTAMP_MS].to_numpy(), self._lookback_days)
        return assemble(positives, known, self._specification, exposed=exposed, since=since)


def _count(closed: Closed) -> dict[str, int]:
    return {
        "events_accepted": closed.num_accepted,
        "duplicates": closed.num_duplicates,
        "impressions": closed.num_shown,
        "samples": 0,
        **closed.fates,
    }


def _nothing_final() -> dict[str, int]:
    return dict.fromkeys(("impressions", *FATES), 0)


def _require_streamable(specification: Specification) -> None:
    names = [name for name in _OF_ALL_USERS if name in specification.sample_schema.names]
    if names:
        raise InputError(
            f"specification.features: found {', '.join(names)}; expected none of these where"
            " samples are joined live: they count what all users did. Take them out, or make the"
            " samples with `headrace samples`"
        )
