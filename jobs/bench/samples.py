"""`headrace bench samples`: events to retrieval samples, beside DuckDB and row-at-a-time Beam.

The events are SYNTHETIC: Zipf users and items, five scenarios, late, early and repeated events.
Each way runs in a process of its own, and its time does not include the start of processes, but
writing its files. DuckDB has two threads, Dask two workers. Row-at-a-time Beam is slow, so it gets
fewer events and rates are compared, which favours it: its histories are shorter. The results are
compared by row count and checksum on the same events. Memory is that of all processes together.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from apache_beam.options.pipeline_options import PipelineOptions
from rich.console import Console

from jobs.bench.memory import Measured, measure, timed
from jobs.bench.report import Cell, bench_parser, write_report
from jobs.bench.sample_baselines import checksum, run_duckdb, run_row_beam
from jobs.bench.synthetic import World, synthetic_specification, write_synthetic_logs
from jobs.settings import EXIT_DONE
from pipeline.manifest import RETRIEVAL
from pipeline.samples import SamplesConfig, make_samples

_THREADS = 2
_ROW_EVENTS = 100_000
_EVENTS_PER_PART = 1_000_000
_SEED = 1
_LOCAL, _DASK, _DUCKDB, _ROW_BEAM = "headrace", "headrace on Dask", "duckdb", "row beam"
_DASK_RUNNER: Final = "apache_beam.runners.dask.dask_runner.DaskRunner"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark, prints a table, writes JSON."""
    parser = bench_parser("samples", __doc__)
    parser.add_argument(
        "--events",
        type=_counts,
        default=[2_000_000],
        metavar="N[,N...]",
        help="events in the log; with several, growth is reported (default 2000000)",
    )
    parser.add_argument("--repeats", type=int, default=2, help="the fastest counts (default 2)")
    parser.add_argument("--num-parts", type=int, help="default: one for each million events")
    parser.add_argument(
        "--without", nargs="*", default=[], choices=[_DASK, _DUCKDB, _ROW_BEAM], help="ways to skip"
    )
    parser.add_argument("--folder", type=Path, help="where to write logs and samples, then removed")
    arguments = parser.parse_args(argv)
    ways = [way for way in _WAYS if way not in arguments.without]
    rows: list[dict[str, Cell]] = []
    if arguments.folder is not None:
        arguments.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="headrace-bench-", dir=arguments.folder) as name:
        for num_events in arguments.events:
            chosen = [way for way in ways if way != _ROW_BEAM]
            bench = _Bench(Path(name), arguments.repeats, arguments.num_parts)
            rows += bench.measure(num_events, chosen)
        if _ROW_BEAM in ways:
            few = min(_ROW_EVENTS, *arguments.events) if arguments.events else _ROW_EVENTS
            rows += bench.measure(few, [_LOCAL, _ROW_BEAM])[1:]
    write_report("samples", rows, ratios=_ratios(rows, arguments.events), out=arguments.out)
    return EXIT_DONE


def _counts(text: str) -> list[int]:
    try:
        counts = [int(part.replace("_", "")) for part in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"found {text!r}; expected numbers, as 2000000") from error
    if min(counts) < 1:
        raise argparse.ArgumentTypeError(f"found {text!r}; expected numbers of 1 or more")
    return counts


class _Bench:
    """Runs ways on logs in a folder."""

    def __init__(self, folder: Path, repeats: int, num_parts: int | None) -> None:
        self._folder, self._repeats, self._num_parts = folder, repeats, num_parts

    def measure(self, num_events: int, ways: Sequence[str]) -> list[dict[str, Cell]]:
        """Runs each way on the same log and checks that all gave the same samples.

        Raises:
            RuntimeError: If they differ.
        """
        console = Console()
        console.print(f"{num_events:,} synthetic events: {', '.join(ways)}")
        folder = self._folder / str(num_events)
        logs = write_synthetic_logs(folder / "logs", num_events, seed=_SEED)
        num_parts = self._num_parts or max(4, round(num_events / _EVENTS_PER_PART))
        rows: list[dict[str, Cell]] = []
        results = {}
        for way in ways:
            found: list[Measured] = []
            for _ in range(self._repeats):
                out = folder / "out"
                work, files = _WAYS[way]
                found.append(measure(work, logs, str(out), num_parts))
                results[way] = checksum(str(out / files))
                for path in folder.glob("out*"):
                    path.unlink() if path.is_symlink() else shutil.rmtree(path)
            best = min(found, key=lambda each: each.seconds)
            rows.append(
                {
                    "way": way,
                    "synthetic_events": num_events,
                    "samples": results[way][0],
                    "checksum": f"{results[way][1]:016x}",
                    "seconds": round(best.seconds, 3),
                    "events_per_second": round(num_events / best.seconds),
                    "peak_mib": max(each.peak_bytes for each in found) >> 20,
                }
            )
            console.print(f"  {way}: {best.seconds:.1f} s, {rows[-1]['peak_mib']:,} MiB")
        shutil.rmtree(folder)
        if len(set(results.values())) != 1:
            raise RuntimeError(f"the samples differ (count, checksum): {results}")
        return rows


def _ratios(rows: Sequence[dict[str, Cell]], counts: Sequence[int]) -> dict[str, float]:
    rates = {
        (str(row["way"]), int(row["synthetic_events"])): float(row["events_per_second"])
        for row in rows
    }
    ours = {
        n: max(r for (way, m), r in rates.items() if m == n and way in (_LOCAL, _DASK))
        for n in counts
    }
    ratios = {
        f"vs_duckdb_at_{n}": ours[n] / rates[_DUCKDB, n] for n in counts if (_DUCKDB, n) in rates
    }
    slow = {rate for (way, _), rate in rates.items() if way == _ROW_BEAM}
    if slow:
        ratios |= {f"vs_row_beam_at_{n}": ours[n] / min(slow) for n in counts}
    first, last = counts[0], counts[-1]
    if last != first:
        ratios["rate_of_the_largest_to_that_of_the_smallest"] = ours[last] / ours[first]
    return ratios


def _config(logs: str, out: str, num_parts: int) -> SamplesConfig:
    return SamplesConfig(
        inputs=[logs],
        output=Path(out),
        join_window_seconds=World().window_ms / 1000,
        num_parts=num_parts,
    )


def _run_local(logs: str, out: str, num_parts: int) -> float:
    config, options = _config(logs, out, num_parts), PipelineOptions(["--runner=FnApiRunner"])
    return timed(lambda: make_samples(config, synthetic_specification(), options))


def _run_dask(logs: str, out: str, num_parts: int) -> float:
    import distributed

    config = _config(logs, out, num_parts)
    with distributed.LocalCluster(
        n_workers=_THREADS, threads_per_worker=1, processes=True, dashboard_address=None
    ) as cluster:
        arguments = [
            f"--runner={_DASK_RUNNER}",
            f"--dask_client_address={cluster.scheduler_address}",
            f"--dask_npartitions={4 * _THREADS}",
        ]
        options = PipelineOptions(arguments)
        seconds = timed(lambda: make_samples(config, synthetic_specification(), options))
        distributed.default_client().close()
    return seconds


def _run_duckdb(logs: str, out: str, num_parts: int) -> float:
    del num_parts
    length, window = synthetic_specification().history.length, World().window_ms
    Path(out).mkdir()
    return timed(
        lambda: run_duckdb(logs, Path(out), window_ms=window, length=length, threads=_THREADS)
    )


def _run_row_beam(logs: str, out: str, num_parts: int) -> float:
    del num_parts
    length, window = synthetic_specification().history.length, World().window_ms
    return timed(lambda: run_row_beam(logs, Path(out), window_ms=window, length=length))


_WAYS: Final[dict[str, tuple[Callable[[str, str, int], float], str]]] = {
    _LOCAL: (_run_local, f"{RETRIEVAL}/dt=*/*.parquet"),
    _DASK: (_run_dask, f"{RETRIEVAL}/dt=*/*.parquet"),
    _DUCKDB: (_run_duckdb, "dt=*/*.parquet"),
    _ROW_BEAM: (_run_row_beam, "*"),
}
"""What runs, and the files that it leaves."""
