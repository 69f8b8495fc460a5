"""`headrace bench samples`: events to retrieval samples, beside DuckDB and row-at-a-time Beam.

The events are SYNTHETIC. DuckDB has two threads; the faster of two runs counts. Row-at-a-time Beam
is slow, so it gets fewer events and rates are compared, which favours it: its histories are
shorter. The results are compared by row count and checksum on the same events.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from apache_beam.options.pipeline_options import PipelineOptions
from rich.console import Console

from jobs.bench.report import Cell, bench_parser, write_report
from jobs.bench.sample_baselines import checksum, run_duckdb, run_row_beam, write_logs
from jobs.bench.synthetic import World, make_events, synthetic_specification
from jobs.settings import EXIT_DONE
from pipeline.manifest import RETRIEVAL
from pipeline.samples import SamplesConfig, make_samples

_THREADS = 2
_ROW_EVENTS = 100_000
_WARM_UP_EVENTS = 1_000
_NUM_PARTS = 4
_NUM_FILES = 4
_SEED = 1
_REPEATS = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark, prints a table, writes JSON."""
    parser = bench_parser("samples", __doc__)
    parser.add_argument("--events", type=int, default=2_000_000, help="events in the log")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as name:
        folder = Path(name)
        _measure(folder / "warm", _WARM_UP_EVENTS, ["headrace", "duckdb", "row beam"])
        rows = _measure(folder / "all", arguments.events, ["headrace", "duckdb"])
        num_few = min(_ROW_EVENTS, arguments.events)
        rows += _measure(folder / "few", num_few, ["headrace", "row beam"])[1:]
    rates = [float(row["events_per_second"]) for row in rows]
    ratios = {"vs_duckdb": rates[0] / rates[1], "vs_row_beam": rates[0] / rates[2]}
    write_report("samples", rows, ratios=ratios, out=arguments.out)
    return EXIT_DONE


def _measure(folder: Path, num_events: int, ways: Sequence[str]) -> list[dict[str, Cell]]:
    """Runs each way on the same log and checks that all gave the same samples.

    Raises:
        RuntimeError: If they differ.
    """
    Console().print(f"{num_events:,} synthetic events: {', '.join(ways)}")
    logs = write_logs(make_events(num_events, seed=_SEED), folder / "logs", num_files=_NUM_FILES)
    rows: list[dict[str, Cell]] = []
    results = {}
    for way in ways:
        seconds = math.inf
        for repeat in range(_REPEATS):
            start = time.monotonic()
            files = _WAYS[way](logs, folder / f"{way.replace(' ', '-')}-{repeat}")
            seconds = min(seconds, time.monotonic() - start)
        results[way] = checksum(files)
        rows.append(
            {
                "way": way,
                "synthetic_events": num_events,
                "samples": results[way][0],
                "checksum": f"{results[way][1]:016x}",
                "seconds": round(seconds, 3),
                "events_per_second": round(num_events / seconds),
            }
        )
    if len(set(results.values())) != 1:
        raise RuntimeError(f"the samples differ (count, checksum): {results}")
    return rows


def _run_headrace(logs: str, out: Path) -> str:
    config = SamplesConfig(
        inputs=[logs],
        output=out,
        join_window_seconds=World().window_ms / 1000,
        num_parts=_NUM_PARTS,
    )
    make_samples(config, synthetic_specification(), PipelineOptions(["--runner=FnApiRunner"]))
    return str(out / RETRIEVAL / "dt=*" / "*.parquet")


def _run_duckdb(logs: str, out: Path) -> str:
    length = synthetic_specification().history.length
    run_duckdb(logs, out, window_ms=World().window_ms, length=length, threads=_THREADS)
    return str(out / "dt=*" / "*.parquet")


def _run_row_beam(logs: str, out: Path) -> str:
    length = synthetic_specification().history.length
    run_row_beam(logs, out, window_ms=World().window_ms, length=length)
    return str(out / "*")


_WAYS: dict[str, Callable[[str, Path], str]] = {
    "headrace": _run_headrace,
    "duckdb": _run_duckdb,
    "row beam": _run_row_beam,
}
