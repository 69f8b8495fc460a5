"""Another position for a run: its newest checkpoint once more, with another ledger."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from pipeline import durable
from pipeline.schema import InputError
from streaming.checkpoints.lives import Lives
from streaming.checkpoints.newest import MANIFEST, checkpoint_folders, read_newest
from streaming.config import StartConfig
from streaming.ledger import Ledger
from streaming.schedule.positions import first_ledger
from streaming.source import Source


def moved(
    ledger: Ledger, source: Source, start: str | StartConfig, *, topics: set[str] | None = None
) -> Ledger:
    """Returns a ledger that stands elsewhere in the source as it is now; its totals are kept.

    Args:
        ledger: The one that is saved.
        source: What it is about.
        start: Where to: `earliest`, `latest`, a time or a file of offsets.
        topics: Topics that are moved; None for all. The others must be the same as before, and
            read; one that was retired must be forgotten first, by `without`.

    Raises:
        InputError: If the position is not of this source, or a topic is not in it.
    """
    starts, ends = source.start_offsets(), source.end_offsets()
    found = {partition.topic for partition in starts}
    if unknown := sorted((topics or set()) - found):
        raise InputError(f"--topic: found {', '.join(unknown)}; expected some of {sorted(found)}")
    wanted = first_ledger(start, source, starts=starts, ends=ends, offsets_key="--to-file")
    wanted.check_identity(source.identity(wanted.offsets))
    chosen = found if topics is None else topics
    offsets = {p: o for p, o in ledger.offsets.items() if p.topic not in chosen}
    offsets |= {p: o for p, o in wanted.offsets.items() if p.topic in chosen}
    for partition, offset in offsets.items():
        if partition in ends and offset > ends[partition]:
            raise InputError(
                f"topic {partition.topic} partition {partition.number}: found offset {offset};"
                f" expected at most its end, {ends[partition]}"
            )
    kept = {topic: known for topic, known in ledger.identity.items() if topic not in chosen}
    identity = source.identity(offsets)
    Ledger(offsets, kept).check_identity(identity)
    result = Ledger(offsets, identity)
    result.totals = ledger.totals
    return result


def without(ledger: Ledger, source: Source, topics: Collection[str]) -> Ledger:
    """Returns a ledger that knows nothing of topics that are not read any more; totals are kept.

    Raises:
        InputError: If one of them is still read, or the ledger has no offsets of it.
    """
    known = {partition.topic for partition in ledger.offsets}
    if unknown := sorted(set(topics) - known):
        raise InputError(f"--topic: found {', '.join(unknown)}; expected some of {sorted(known)}")
    if read := sorted({partition.topic for partition in source.partitions()} & set(topics)):
        raise InputError(
            f"--topic: found {', '.join(read)}, which is read: it would begin again at its first"
            " record; expected topics that were taken out of train.source first"
        )
    result = Ledger(
        {p: offset for p, offset in ledger.offsets.items() if p.topic not in topics},
        {topic: known for topic, known in ledger.identity.items() if topic not in topics},
    )
    result.totals = ledger.totals
    return result


def rewrite_ledger(directory: Path, move: Callable[[Ledger], Ledger]) -> Path:
    """Writes the newest whole checkpoint again, under the next number, with a ledger moved.

    The checkpoint itself stays as it is, and shares its files with the new one. It holds the folder
    as a coordinator does: a trainer that runs is found out, and one that was away is fenced off.

    Args:
        directory: Where the run's checkpoints are.
        move: Makes the new ledger of the old one.

    Returns:
        The new checkpoint's folder.

    Raises:
        InputError: If a trainer uses the folder, or there is no checkpoint.
    """
    if not checkpoint_folders(directory):
        raise InputError(
            f"{directory}: found no checkpoint; expected one: without any, a run begins at"
            " train.stream.start"
        )
    lives = Lives(directory)

    def write(folder: Path, manifest: Mapping[str, Any]) -> Path:
        ledger = move(Ledger.from_json(json.dumps(manifest["ledger"])))
        final = directory / f"checkpoint-{checkpoint_folders(directory)[-1][0] + 1:08d}"
        aside = lives.workplace / f".{final.name}"
        aside.mkdir()
        for name in manifest["files"]:
            _share(folder / name, aside / name)
        changed = {**manifest, "ledger": json.loads(ledger.to_json())}
        durable.write(aside / MANIFEST, json.dumps(changed, indent=1))
        durable.sync(aside)
        aside.rename(final)
        durable.sync(directory)
        return final

    with lives.begun():
        written = read_newest(directory, write)
    if written is None:
        raise InputError(f"{directory}: found no checkpoint any more; expected one")
    return written


def _share(source: Path, target: Path) -> None:
    try:
        os.link(source, target)  # a checkpoint's files never change
    except OSError:  # a file system without links
        shutil.copy2(source, target)
        durable.sync(target)
