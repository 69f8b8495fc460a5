"""Which faults fall, in which order, on whom: decided by a seed, before anything runs."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Collection
from typing import Final

WORKERS: Final = 2
SERVERS: Final = 2

# How often a kind is dealt in one round of the deck.
KINDS: Final[dict[str, int]] = {
    "kill worker": 4,
    "kill ps": 2,
    "kill coordinator": 2,
    "kill broker": 2,
    "pause worker": 1,
    "pause ps": 1,
    "pause coordinator": 1,
    "pause broker": 1,
    "full disk": 1,
    "truncated checkpoint": 1,
    "SIGTERM in a save": 1,
    "stop in a push": 2,
    "torn push": 2,
}
_TARGETS: Final = {"worker": WORKERS, "ps": SERVERS}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One fault to come.

    Attributes:
        number: From 1.
        kind: One of KINDS.
        index: Which worker or parameter server.
        delay: Seconds from the recovery from the fault before.
        share: In [0, 1]: how much of a file or of a disk is left, how long a broker is away.
        moment: Where in a push: `tear-early` or `tear-late`.
    """

    number: int
    kind: str
    index: int
    delay: float
    share: float
    moment: str

    @property
    def target(self) -> str:
        """Whom it strikes, in words."""
        role = self.kind.rpartition(" ")[2]
        if role in _TARGETS:
            return f"{role} {self.index}"
        return f"ps, {self.moment}" if self.kind.endswith("push") else ""


def make_schedule(count: int, *, seed: int, kinds: Collection[str] = KINDS) -> list[Fault]:
    """Returns `count` faults, in rounds of a shuffled deck: every kind comes early and often."""
    source = random.Random(seed)
    deck: list[str] = []
    faults = []
    for number in range(1, count + 1):
        if not deck:
            deck = [kind for kind, times in KINDS.items() if kind in kinds for _ in range(times)]
            source.shuffle(deck)
        kind = deck.pop()
        role = kind.rpartition(" ")[2]
        faults.append(
            Fault(
                number=number,
                kind=kind,
                index=source.randrange(_TARGETS.get(role, 1)),
                delay=source.uniform(0.0, 3.0),
                share=source.random(),
                moment=source.choice(["tear-early", "tear-late"]),
            )
        )
    return faults
