"""`python -m tests.streaming.joining.process FILE LIFE`: a join of one life in its own process.

FILE is a `join` section as JSON. A line on standard output says when the loop begins.
"""

from __future__ import annotations

import json
import logging
import signal
import sys
from pathlib import Path

from jobs.main import run_job
from pipeline.events.records import EventDecoder
from streaming.joining.config import JoinConfig
from streaming.joining.life import Wiring
from streaming.joining.loop import JoinLoop
from tests.streaming.joining.naive import WINDOW_MS, NaiveJoiner
from tests.streaming.joining.world import SPECIFICATION


def main(arguments: object) -> int:
    """Runs it until SIGTERM, and returns the exit code of `headrace join`."""
    del arguments
    path, life = sys.argv[1:]
    logging.getLogger("kafka").setLevel(logging.CRITICAL)
    config = JoinConfig.model_validate(json.loads(Path(path).read_text()))
    wiring = Wiring(
        decoder=EventDecoder(SPECIFICATION, outcomes_need_features=False),
        make_joiner=lambda: NaiveJoiner(remembers=True),
        window_ms=WINDOW_MS,
        shape={"specification": SPECIFICATION.fingerprint},
    )
    loop = JoinLoop(config, wiring, name=life)
    signal.signal(signal.SIGTERM, lambda *_: loop.stop())
    sys.stdout.write("begins\n")
    sys.stdout.flush()
    loop.run()
    return 0


if __name__ == "__main__":
    sys.exit(run_job(main))
