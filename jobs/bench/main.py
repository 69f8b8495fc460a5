"""`headrace bench NAME ...`: runs one benchmark, or lists them."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import Final

from jobs.settings import EXIT_BAD_INPUT, EXIT_DONE

BENCHMARKS: Final = {
    "stream": "samples per second of the trainer: one process, memory, archive, Kafka",
    "alignment": "a backlog of days beside fresh topics: skew and loss, aligned and not",
    "estimator": "sampling probabilities: the paper's simulation, asynchrony, cost of a step",
    "freshness": "from an event's publication to a bundle that knows it; how training stalls",
    "retrieval": "HitRate and NDCG of corrections and negatives on three public logs",
    "staleness": "what seldom exchanges and many workers cost in quality, by merge rule",
    "join": "the live joiner beside quixstreams: backlog, delay, kills, two at once",
    "samples": "events to retrieval samples, beside DuckDB and row-at-a-time Beam",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `main` of `jobs.bench.NAME`, or of its module `main`, with the remaining arguments."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    listing = "".join(f"  {name:<9} {text}\n" for name, text in BENCHMARKS.items())
    usage = f"usage: headrace bench NAME [--out FILE] ...\n\n{listing}"
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.stdout.write(usage)
        return EXIT_DONE
    name, *rest = arguments
    if name not in BENCHMARKS:
        sys.stderr.write(f"headrace bench: found {name!r}; expected one of:\n{listing}")
        return EXIT_BAD_INPUT
    module = importlib.import_module(f"jobs.bench.{name}")
    if hasattr(module, "__path__"):  # a benchmark of several modules is a package
        module = importlib.import_module(f"jobs.bench.{name}.main")
    code: int = module.main(rest)
    return code
