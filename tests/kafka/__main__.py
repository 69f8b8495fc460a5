"""`python -m tests.kafka`: a real broker for as long as standard input stays open.

Prints the broker's address, alone on a line, once it serves: 127.0.0.1:9092, or another port if
that one is taken.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.kafka.broker import Broker, is_free
from tests.kafka.install import KafkaMissingError

_USUAL_PORT = 9092


def main(argv: Sequence[str] | None = None) -> int:
    """Serves until standard input ends; returns 1 if the broker's jars or Java are missing."""
    port = chosen_port(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that the folder goes, too
    with tempfile.TemporaryDirectory(prefix="headrace-kafka-") as name:
        try:
            broker = Broker(Path(name) / "kafka", port=port)
        except KafkaMissingError as error:
            sys.stderr.write(f"{error}\n")
            return 1
        with broker:
            sys.stdout.write(f"{broker.bootstrap}\n")
            sys.stdout.flush()
            sys.stdin.read()
    return 0


def chosen_port(argv: Sequence[str] | None) -> int | None:
    """Returns the port to serve at, None for any; ends with 2 if the one asked for is taken."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.kafka",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--port", type=int, metavar="N", help="serve at this port and no other; 0: at any free one"
    )
    wanted: int | None = parser.parse_args(argv).port
    if wanted is None:
        return _USUAL_PORT if is_free(_USUAL_PORT) else None
    if not 0 <= wanted < 1 << 16:
        parser.error(f"--port: found {wanted}; expected 0 to {(1 << 16) - 1}")
    if wanted and not is_free(wanted):
        parser.error(f"--port: found {wanted}, which is taken; expected a free port")
    return wanted or None


if __name__ == "__main__":
    sys.exit(main())
