"""`python -m tests.kafka`: a real broker for as long as standard input stays open.

Prints the broker's address, alone on a line, once it serves.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.kafka.broker import Broker
from tests.kafka.install import KafkaMissingError


def main() -> int:
    """Serves until standard input ends; returns 1 if the broker's jars or Java are missing."""
    with tempfile.TemporaryDirectory(prefix="headrace-kafka-") as name:
        try:
            broker = Broker(Path(name) / "kafka")
        except KafkaMissingError as error:
            sys.stderr.write(f"{error}\n")
            return 1
        with broker:
            sys.stdout.write(f"{broker.bootstrap}\n")
            sys.stdout.flush()
            sys.stdin.read()
    return 0


if __name__ == "__main__":
    sys.exit(main())
