"""`headrace bench join`: the live joiner beside quixstreams, on one broker in one run.

All events are SYNTHETIC: impressions of four items a request, outcomes for three in ten of them,
and among these late, early, lost and repeated ones. Every part of the benchmark ends with all
samples held against a plain SQL join of the same events: lost, doubled, wrong. Parts:

  backlog  events that lie there: joined by one process, from Arrow batches and from JSON objects
  live     JSON events sent one by one as they happen: from the closing of a sample's window
           (impression + window + lateness) until a consumer of committed records sees it
  kills    kill -9 at random moments under load: seconds until the next sample, each time
  two      a second joiner for the same partitions, then two more at once
  rival    quixstreams: a backlog, and kills. It has an environment of its own (uv, network);
           where that cannot be made, a row says so
  closing  quixstreams made to wait for the end of the window, as ours does: few events, or it
           takes for ever

Rates leave out the start of processes. The rival emits with the outcome and ours at the window's
end, so their delays are not comparable, and are not compared.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import tempfile
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal

from jobs.bench.join import backlog, live, rival
from jobs.bench.join.events import Stream
from jobs.bench.join.headrace import Join
from jobs.bench.join.rival import QuixJoin
from jobs.bench.report import Cell, add_broker_argument, bench_parser, write_json, write_report
from jobs.bench.stream.synthetic import broker
from jobs.settings import EXIT_DONE

logger = logging.getLogger(__name__)

PARTS = ("backlog", "live", "kills", "two", "rival", "closing")
FORMS: Final[tuple[Literal["arrow", "json"], ...]] = ("arrow", "json")
Rows = list[dict[str, Cell]]
_MOST_BACKLOG_SECONDS = 180.0
_CLOSING_WINDOWS = 5
_LEAST_SECONDS, _SECONDS_PER_KILL = 60.0, 30.0  # a stream that is longer than its kills take


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark, prints tables, writes JSON."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if unknown := set(arguments.parts.split(",")) - set(PARTS):
        parser.error(f"--parts: found {', '.join(sorted(unknown))}; expected {', '.join(PARTS)}")
    logging.getLogger("kafka").setLevel(logging.ERROR)
    with (
        tempfile.TemporaryDirectory(prefix="headrace-bench-") as name,
        broker(arguments.kafka) as address,
    ):
        tables = _Bench(Path(name), address, arguments).run()
    ratios = speed_ratios(tables.get("backlog", []))
    for title, rows in tables.items():
        shown = ratios if title == "backlog" else None
        write_report(f"join, {title} (synthetic events)", rows, ratios=shown, out=None)
    if arguments.out is not None:
        options = {k: v for k, v in vars(arguments).items() if k not in ("out", "kafka")}
        content = {"synthetic": True, "options": options, "rival": rival.SETTINGS}
        write_json("join", content | {"tables": tables, "ratios": ratios}, arguments.out)
    return EXIT_DONE


def speed_ratios(rows: Rows) -> dict[str, float]:
    """Returns each of our rates over each of the rival's, by the names of their ways."""
    rates = {str(row["way"]): float(row["events/s"]) for row in rows}
    return {
        f"{ours} / {other}": rates[ours] / rates[other]
        for ours in rates
        for other in rates
        if ours.startswith("headrace") and not other.startswith("headrace") and rates[other]
    }


def _parser() -> argparse.ArgumentParser:
    parser = bench_parser("join", __doc__)
    parser.add_argument("--parts", default=",".join(PARTS), help="comma-separated, of those")
    parser.add_argument("--events", type=int, default=3_000_000, help="of our backlogs")
    parser.add_argument("--rate", type=float, default=20_000.0, help="events per second, live")
    parser.add_argument("--seconds", type=float, default=120.0, help="of the live part")
    parser.add_argument("--window-seconds", type=float, default=10.0, help="the join window")
    parser.add_argument(
        "--lateness-seconds", type=float, default=1.0, help="how late events arrive at most"
    )
    parser.add_argument("--partitions", type=int, default=2, help="of each topic")
    parser.add_argument("--history", type=int, default=0, help="former positives in our samples")
    parser.add_argument("--kills", type=int, default=20, help="of our joiner")
    parser.add_argument(
        "--kill-rate", type=float, default=4000.0, help="events per second during kills"
    )
    parser.add_argument("--rival-events", type=int, default=200_000, help="of its backlog")
    parser.add_argument("--rival-kills", type=int, default=3)
    parser.add_argument("--closing-events", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=1)
    add_broker_argument(parser)
    return parser


class _Bench:
    def __init__(self, folder: Path, address: str, arguments: argparse.Namespace) -> None:
        self._folder, self._address, self._given = folder, address, arguments
        self._run = uuid.uuid4().hex[:8]

    def run(self) -> dict[str, Rows]:
        """Returns the rows of each part that was asked for, by its title."""
        tables: dict[str, Rows] = {}
        parts = self._given.parts.split(",")
        given = self._given
        if "backlog" in parts:
            logger.info("backlog: %d events, from Arrow batches, then from JSON", given.events)
            tables["backlog"] = self._backlogs()
        if "live" in parts:
            logger.info("live: %.0f events/s for %.0f s", given.rate, given.seconds)
            stream = self._stream(given.rate, given.seconds)
            tables["live"] = [live.delays(self._join("live", stream))]
        if "kills" in parts:
            logger.info("kills: %d, at %.0f events/s", given.kills, given.kill_rate)
            join = self._join("kills", self._killing_stream(given.kills))
            tables["kills"] = [live.kills_of_headrace(join, given.kills, seed=given.seed)]
        if "two" in parts:
            logger.info("two: joiners of the same partitions")
            join = self._join("two", self._killing_stream(2))
            tables["two joiners"] = [live.two_at_once(join)]
        if {"rival", "closing"} & set(parts):
            self._add_rival(tables, parts)
        return tables

    def _backlogs(self) -> Rows:
        given = self._given
        lying = backlog.make_backlog(self._stream(given.rate, given.events / given.rate))
        plain = dataclasses.replace(self._join("backlog", lying.stream), history=0)
        rows = []
        for form in FORMS:
            join = dataclasses.replace(plain, name=self._name(f"backlog-{form}"))
            rows.append(backlog.of_headrace(lying, join, form))
        if given.history:
            join = self._join("backlog-history", lying.stream)
            rows.append(backlog.of_headrace(lying, join, "arrow"))
        return rows

    def _add_rival(self, tables: dict[str, Rows], parts: Sequence[str]) -> None:
        """Adds the rival's rows to ours; one without figures if it is not to be had."""
        given = self._given
        try:
            python = rival.environment()
        except rival.RivalMissingError as error:
            tables["rival"] = [{"way": f"quixstreams {rival.VERSION}", "left out": str(error)}]
            return
        if "rival" in parts:
            logger.info("rival: a backlog of %d events", given.rival_events)
            lying = backlog.make_backlog(self._stream(given.rate, given.rival_events / given.rate))
            join = self._rival_join(python, "rival-backlog", lying.stream)
            row = backlog.of_rival(lying, join, most_seconds=_MOST_BACKLOG_SECONDS)
            tables.setdefault("backlog", []).append(row)
            if given.rival_kills:
                logger.info("rival: %d kills, then one as it comes", given.rival_kills)
                rows = [
                    self._kill_rival(python, "static", given.rival_kills),
                    self._kill_rival(python, "default", 1),
                ]
                tables["kills"] = tables.get("kills", []) + rows
        if "closing" in parts:
            logger.info("closing: %d events", given.closing_events)
            seconds = _CLOSING_WINDOWS * given.window_seconds
            lying = backlog.make_backlog(self._stream(given.closing_events / seconds, seconds))
            join = self._rival_join(python, "rival-closing", lying.stream)
            join = dataclasses.replace(join, mode="closing")
            row = backlog.of_rival(lying, join, most_seconds=_MOST_BACKLOG_SECONDS)
            tables.setdefault("backlog", []).append(row)

    def _kill_rival(
        self, python: Path, restarts: Literal["static", "default"], kills: int
    ) -> dict[str, Cell]:
        join = self._rival_join(python, f"rival-{restarts}", self._killing_stream(kills))
        join = dataclasses.replace(join, restarts=restarts)
        return live.kills_of_rival(join, kills, seed=self._given.seed)

    def _stream(self, rate: float, seconds: float) -> Stream:
        given = self._given
        return Stream(
            rate=rate,
            seconds=seconds,
            window_ms=round(1000 * given.window_seconds),
            disorder_ms=round(1000 * given.lateness_seconds),
            partitions=given.partitions,
            seed=given.seed,
        )

    def _killing_stream(self, kills: int) -> Stream:
        return self._stream(self._given.kill_rate, _LEAST_SECONDS + _SECONDS_PER_KILL * kills)

    def _name(self, part: str) -> str:
        return f"bench-join-{self._run}-{part}"

    def _join(self, part: str, stream: Stream) -> Join:
        return Join(
            folder=self._folder,
            address=self._address,
            name=self._name(part),
            stream=stream,
            history=self._given.history,
        )

    def _rival_join(self, python: Path, part: str, stream: Stream) -> QuixJoin:
        name = self._name(part)
        return QuixJoin(
            python=python,
            folder=self._folder,
            address=self._address,
            name=name,
            events_topic=f"{name}-events",
            stream=stream,
        )
