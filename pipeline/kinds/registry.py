"""All kinds of sample. A new one is a module beside this, a section, and an entry here."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Final

import polars as pl
import pyarrow as pa

from pipeline.kinds import behaviour, corpus, pair, retrieval, scenario
from pipeline.kinds.part import UserPart
from pipeline.known.items import ItemDays
from pipeline.specification import Specification


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kind:
    """How one kind of sample is made.

    Attributes:
        is_wanted: Whether a specification declares it.
        schema: Its columns.
        of_users: Makes the samples of one part of the users, by (timestamp_ms, event_id).
        in_slices: The same for samples that are large: a slice at a time, each of one day, which
            are row groups of the files.
        needs_items: Whether these are not whole before `with_items`.
        with_items: Makes them whole, from items as of each day; see `pipeline.kinds.dropped` for
            those that it cannot make.
        of_items: Makes those of one part of the items as of the end of a day.
    """

    is_wanted: Callable[[Specification], bool]
    schema: Callable[[Specification], pa.Schema]
    of_users: Callable[[UserPart], pa.Table] | None = None
    in_slices: Callable[[UserPart], Iterator[pa.Table]] | None = None
    needs_items: Callable[[Specification], bool] = lambda _: False
    with_items: Callable[[pa.Table, Specification, ItemDays], pa.Table] | None = None
    of_items: Callable[[pl.DataFrame, Specification, int], pa.Table] | None = None


KINDS: Final[dict[str, Kind]] = {
    "retrieval": Kind(
        is_wanted=lambda specification: specification.kinds.retrieval is not None,
        schema=retrieval.schema,
        of_users=retrieval.make,
        needs_items=retrieval.needs_items,
        with_items=retrieval.with_items,
    ),
    "scenario": Kind(
        is_wanted=lambda specification: specification.kinds.scenario is not None,
        schema=scenario.schema,
        of_users=scenario.make,
        needs_items=lambda _: True,
        with_items=scenario.with_items,
    ),
    "user_pair": Kind(
        is_wanted=lambda specification: pair.caps(specification)[0] > 0,
        schema=pair.user_schema,
        of_users=pair.make_users,
    ),
    "item_pair": Kind(
        is_wanted=lambda specification: pair.caps(specification)[1] > 0,
        schema=pair.item_schema,
        of_items=pair.make_items,
    ),
    "behaviour": Kind(
        is_wanted=lambda specification: specification.kinds.behaviour is not None,
        schema=behaviour.schema,
        in_slices=behaviour.make,
        needs_items=behaviour.needs_items,
        with_items=behaviour.with_items,
    ),
    "corpus": Kind(
        is_wanted=lambda specification: specification.kinds.corpus is not None,
        schema=corpus.schema,
        of_items=corpus.make,
    ),
}
"""By the name of the folder that has its files."""


def wanted(specification: Specification) -> dict[str, Kind]:
    """Returns the kinds that a specification declares."""
    return {name: kind for name, kind in KINDS.items() if kind.is_wanted(specification)}


def looks_up_items(specification: Specification) -> bool:
    """Says whether samples of users need items as of a day."""
    return any(kind.needs_items(specification) for kind in wanted(specification).values())


def counts_items(specification: Specification) -> bool:
    """Says whether items as of a day are needed at all."""
    kinds = wanted(specification).values()
    return looks_up_items(specification) or any(kind.of_items for kind in kinds)
