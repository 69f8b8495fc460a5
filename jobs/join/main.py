"""`headrace join`: events from Kafka, joined as they come, to a topic of samples, exactly once.

One process, or several with some of the partitions each (`join.input.units`). What it did last
stands in Kafka beside the samples: it may be killed and started again at any time, on any machine.
"""

from __future__ import annotations

import argparse
import signal
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, cast

from pydantic import BaseModel
from rich.console import Console
from rich.table import Table

from jobs.settings import EXIT_DONE, add_config_arguments, load_settings
from pipeline.events.records import EventDecoder
from pipeline.samples import SamplesConfig
from pipeline.specification import Specification
from streaming.joining.config import JoinConfig
from streaming.joining.figures import time_text
from streaming.joining.life import Wiring
from streaming.joining.loop import JoinLoop
from streaming.joining.progress import TOTALS, Progress, summed

if TYPE_CHECKING:
    from streaming.joining.step import Joiner

SECTIONS: Final[dict[str, type[BaseModel]]] = {
    "specification": Specification,
    "samples": SamplesConfig,
    "join": JoinConfig,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Joins until the configured end, or until SIGTERM; prints what all lives together did."""
    parser = argparse.ArgumentParser(
        prog="headrace join",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_config_arguments(parser, SECTIONS)
    arguments = parser.parse_args(argv)
    settings = load_settings(arguments.config, arguments.overrides, SECTIONS)
    specification = cast(Specification, settings["specification"])
    samples = cast(SamplesConfig, settings["samples"])
    started = time.monotonic()
    made_with = wiring(specification, samples, joiners(specification, samples))
    loop = JoinLoop(cast(JoinConfig, settings["join"]), made_with)
    signal.signal(signal.SIGTERM, lambda *_: loop.stop())
    progress = loop.run()
    show(Console(), progress, seconds=time.monotonic() - started)
    return EXIT_DONE


def joiners(specification: Specification, samples: SamplesConfig) -> Callable[[], Joiner]:
    """Returns what makes a joiner with nothing in it; all share the tables of users and items."""
    from pipeline.join.stream import SampleJoiner
    from pipeline.known.current import CurrentTables

    tables = CurrentTables(specification, users=samples.users, items=samples.items)

    def make() -> Joiner:
        joiner = SampleJoiner(
            specification,
            samples.window_ms,
            samples.orphans,
            tables=tables,
            lookback_days=samples.lookback_days,
        )
        return cast("Joiner", joiner)

    return make


def wiring(
    specification: Specification, samples: SamplesConfig, make: Callable[[], Joiner]
) -> Wiring:
    """Returns what the units of a process are made with."""
    return Wiring(
        decoder=EventDecoder(specification, outcomes_need_features=samples.orphans == "keep"),
        make_joiner=make,
        window_ms=samples.window_ms,
        shape={
            "specification": specification.fingerprint,
            "samples.join_window_seconds": f"{samples.join_window_seconds:g}",
            "samples.orphans": samples.orphans,
            "samples.lookback_days": str(samples.lookback_days),
        },
    )


def show(console: Console, progress: Sequence[Progress], *, seconds: float) -> None:
    """Prints the counts of each unit, and how outcomes fared."""
    table = Table(title="Join, all lives of each unit", title_justify="left", show_footer=True)
    sums = summed(progress, "totals")
    table.add_column("unit", "all", justify="right")
    table.add_column("watermark", "", justify="right")
    for name in TOTALS:
        table.add_column(name, f"{sums.get(name, 0):,}", justify="right")
    for each in progress:
        counts = [f"{each.totals.get(name, 0):,}" for name in TOTALS]
        table.add_row(str(each.unit), time_text(each.watermark_ms), *counts)
    console.print(table)
    for title, kind in [("fates", "fates"), ("rejected", "reasons")]:
        counted = [f"{name} {count:,}" for name, count in sorted(summed(progress, kind).items())]
        if counted:
            console.print(f"{title}: {', '.join(counted)}")
    console.print(f"{seconds:.1f} s in this process")
