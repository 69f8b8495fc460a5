"""A join that is killed (-9) at random moments, again and again, while events come.

    python -m tests.streaming.joining.kills --kills 20 --seed 1

ends with 0 if the output holds the samples of the whole log, each once.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from pathlib import Path

from tests.kafka.broker import Broker
from tests.streaming.joining.naive import join_whole, random_log
from tests.streaming.joining.world import World, totals


def start(world: World, life: str) -> subprocess.Popen[str]:
    """Starts a life and returns when its loop begins."""
    path = world.folder / "join.json"
    commit = {"every_seconds": 0.02}
    path.write_text(json.dumps(world.section(end="never", commit=commit)))
    command = [sys.executable, "-m", "tests.streaming.joining.process", str(path), life]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "begins\n"
    return process


def drill(world: World, *, kills: int, seed: int, events: int = 12_000) -> dict[str, int]:
    """Kills a join so often, and sees that nothing is lost or doubled; returns its counts."""
    draw = random.Random(seed)
    log = random_log(events // 2, seed=seed, users=50, step_ms=20)
    world.remembers = True
    over = threading.Event()

    def produce() -> None:
        for first in range(0, len(log), 50):
            world.send(log[first : first + 50], topic=0, rows=draw.choice([None, 10]))
            if over.wait(0 if over.is_set() else kills * 5.0 * 50 / len(log)):
                continue

    producer = threading.Thread(target=produce)
    producer.start()
    seen = []
    for number in range(kills):
        process = start(world, f"life {number}")
        time.sleep(draw.uniform(0.1, 4.0))
        process.kill()
        assert process.wait(20) == -signal.SIGKILL, process.communicate()
        seen.append(totals(world.progress().values()).get("events", 0))
    over.set()
    producer.join()
    world.join(end="closed", life="last")
    assert seen == sorted(seen)
    samples, expected = world.samples(), join_whole(log)
    assert len(samples) == len(set(samples)), "a sample stands there twice"
    assert sorted(samples) == sorted(expected), f"{len(samples)} samples of {len(expected)}"
    found = totals(world.progress().values())
    assert (found["events"], found["samples"]) == (len(log), len(expected))
    return found | {"kills_amid_events": sum(a < b for a, b in itertools.pairwise(seen))}


def main() -> int:
    """Runs a drill with a broker of its own."""
    parser = argparse.ArgumentParser(prog="python -m tests.streaming.joining.kills")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="headrace-join-"))
    with Broker(folder / "kafka") as broker:
        world = World(broker.bootstrap, f"drill-{uuid.uuid4()}", folder)
        found = drill(world, kills=arguments.kills, seed=arguments.seed)
        world.close()
    sys.stdout.write(f"0 lost, 0 doubled: {json.dumps(found)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
