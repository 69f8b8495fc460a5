"""How many records may be undecodable before a run stops."""

from __future__ import annotations

import math
from collections import deque

from pipeline.schema import InputError
from streaming.ledger import Totals

_WINDOW = 10_000  # records that are "the latest"
_JUDGED = 100  # fewer records say nothing of a share
_DEVIATIONS = 3.0


class RejectLimit:
    """Judges rejects, of all records and of the latest; what it costs does not grow with them.

    While a run goes on, a share counts as too large when it is so by more than three standard
    deviations: the first few ranges may hold more than their share by chance. At the end of the
    source it is compared as it is. Records that were lost are not rejects: `on_lost` decides there.
    """

    def __init__(
        self, share: float, *, kept_in: str, option: str = "train.max_reject_share"
    ) -> None:
        """Allows a share.

        Args:
            share: The share.
            kept_in: Where rejected records are found, for the message.
            option: Where a configuration has the share, for the message.
        """
        self._share = share
        self._kept_in = kept_in
        self._option = option
        self._latest: deque[tuple[int, int]] = deque()
        self._records = self._rejects = 0

    def note(self, totals: Totals) -> None:
        """Notes the counts of one range."""
        self._latest.append((totals.records, totals.rejects))
        self._records += totals.records
        self._rejects += totals.rejects
        while self._records - self._latest[0][0] >= _WINDOW:
            records, rejects = self._latest.popleft()
            self._records -= records
            self._rejects -= rejects

    def check(self, totals: Totals, *, complete: bool = False) -> None:
        """Stops a run that has rejected too many.

        Args:
            totals: Of the whole run.
            complete: Whether the source is at its end.

        Raises:
            InputError: If so.
        """
        latest = ("the latest", self._records, self._rejects)
        for what, records, rejects in [("all", totals.records, totals.rejects), latest]:
            allowed = self._share * records
            if not complete or what != "all":
                allowed += _DEVIATIONS * math.sqrt(allowed * (1 - self._share))
            judged = records >= _JUDGED or (complete and what == "all")
            if rejects > allowed and judged:
                raise InputError(
                    f"{self._option}: {rejects} of {what} {records} records were"
                    f" rejected, {rejects / records:.2%}; expected at most {self._share:.2%}: see"
                    f" them, with offset and reason, in {self._kept_in}"
                )
