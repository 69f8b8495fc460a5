"""What a day's samples may differ from the last good days: the specification's section `checks`.

Every limit has two steps: past `warn` the day is published and told of, past `fail` the former
version of the day stays. None fails by default: what a log does by itself is best seen first.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Share = Annotated[float, Field(ge=0, le=1)]
Off = Literal[False]
"""In YAML, `off` is `false`."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Limit(_Section):
    """The largest good value, and the largest that does not fail; None for no such step."""

    warn: float | None = None
    fail: float | None = None

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        # A default beside a lower `fail` says nothing any more, and does no harm.
        stated = {"warn", "fail"} <= self.model_fields_set
        if stated and self.warn is not None and self.fail is not None and self.fail < self.warn:
            raise ValueError(f"found fail {self.fail:g} below warn {self.warn:g}; expected above")
        return self


class RowsLimit(Limit):
    """How many times more or fewer rows than the median of the last good days."""

    warn: Annotated[float, Field(ge=1)] | None = 1.5
    fail: Annotated[float, Field(ge=1)] | None = None


class NullsLimit(Limit):
    """Rise of the share of rows without a value (null, empty list, not finite)."""

    warn: Share | None = 0.02
    fail: Share | None = None


class VocabularyLimit(Limit):
    """Rise of the share of distinct ids that the days before do not have."""

    warn: Share | None = 0.1
    fail: Share | None = None


class PsiLimit(Limit):
    """Population stability index; by convention to be noted from 0.1, to be acted on from 0.25.

    The convention is that of credit scoring (Siddiqi, Credit Risk Scorecards, 2006).
    """

    warn: Annotated[float, Field(ge=0)] | None = 0.1
    fail: Annotated[float, Field(ge=0)] | None = None


class FeatureLimits(_Section):
    """Limits of one column in place of the section's; what is left out stays as it is there."""

    nulls: NullsLimit | Off | None = None
    vocabulary: VocabularyLimit | Off | None = None
    psi: PsiLimit | Off | None = None


class Checks(_Section):
    """Limits of a day's samples, compared with the last good days, kind by kind."""

    days: Annotated[int, Field(ge=1, le=366)] = 7
    """So many good days before a day are what it is compared with; fewer, if there are no more."""
    rows: RowsLimit | Off = RowsLimit()
    nulls: NullsLimit | Off = NullsLimit()
    vocabulary: VocabularyLimit | Off = VocabularyLimit()
    psi: PsiLimit | Off = PsiLimit()
    """Of values, and, for columns of lists, of their lengths."""
    features: dict[str, FeatureLimits] = {}
    """By name of a column of samples, whatever the kind."""

    def limit(self, measure: str, column: str = "") -> Limit:
        """Returns the limit of a measure: `rows`, `nulls`, `vocabulary` or `psi`; off, without any.

        Args:
            measure: Name of the field.
            column: Name of a column of samples, for all but `rows`.
        """
        general: Limit | bool = getattr(self, measure)
        own: Limit | bool | None = getattr(self.features.get(column), measure, None)
        if isinstance(general, Limit) and isinstance(own, Limit):
            stated = own.model_dump(exclude_unset=True)
            return general.model_copy(update=stated)
        chosen = general if own is None else own
        return chosen if isinstance(chosen, Limit) else Limit()

    def problems(self, columns: Collection[str]) -> list[str]:
        """Returns what is wrong with `features`, given the columns of samples of all kinds."""
        problems = []
        for name in sorted(set(self.features) - set(columns)):
            near = difflib.get_close_matches(name, columns, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            expected = f"expected one of {sorted(columns)}{hint}"
            problems.append(f"checks.features.{name}: no such column of samples; {expected}")
        return problems
