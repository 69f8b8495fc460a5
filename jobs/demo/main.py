"""`headrace demo`: MovieLens-100K through every part, with a report at the end.

Logs, samples, two trainings on a local cluster (without and with logQ), export and query: each step
is the command that a user would type, run as its own process.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from rich.console import Console

from jobs.main import import_tensorflow
from jobs.settings import EXIT_DONE

CONFIG: Final = Path(__file__).parent.parent / "configs" / "movielens.yaml"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the demo; returns 0, or the code of the step that failed."""
    parser = argparse.ArgumentParser(prog="headrace demo", description=__doc__)
    parser.add_argument(
        "--output", type=Path, default=Path("demo-output"), metavar="DIR", help="all goes here"
    )
    parser.add_argument(
        "--seeds", type=int, default=1, metavar="N", help="train with seeds 1 to N, show the means"
    )
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="PATH=VALUE",
        help=f"override one value of {CONFIG.name}; repeatable",
    )
    arguments = parser.parse_args(argv)
    if arguments.seeds < 1:
        parser.error(f"--seeds: found {arguments.seeds}; expected 1 or more")
    import_tensorflow()
    from jobs.demo import movielens
    from jobs.demo.steps import Demo, StepFailedError

    console = Console()
    cache = Path(os.environ.get("HEADRACE_CACHE", ".cache"))
    demo = Demo(arguments.output, overrides=arguments.overrides, console=console)
    try:
        with demo.timed("fetch"):
            archive = movielens.fetch(cache)
        demo.run(archive, seeds=range(1, arguments.seeds + 1))
    except StepFailedError as error:
        sys.stderr.write(f"headrace demo: {error}\n")
        return error.code
    return EXIT_DONE
