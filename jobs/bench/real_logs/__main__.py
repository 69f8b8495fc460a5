"""`python -m jobs.bench.real_logs NAME --data DIR --out DIR`: converts a public log."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from jobs.bench.real_logs import convert
from jobs.main import run_job
from jobs.settings import EXIT_DONE


def main(argv: Sequence[str] | None = None) -> int:
    """Converts one log and prints what was written."""
    parser = argparse.ArgumentParser(prog="python -m jobs.bench.real_logs", description=__doc__)
    parser.add_argument("name", choices=convert.LOGS)
    parser.add_argument("--data", type=Path, required=True, help="folder of NAME.parquet")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    arguments = parser.parse_args(argv)
    counts = convert.convert(arguments.name, arguments.data, arguments.out)
    Console().print(
        f"{arguments.out}: " + ", ".join(f"{count:,} {what}" for what, count in counts.items())
    )
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(run_job(main))
