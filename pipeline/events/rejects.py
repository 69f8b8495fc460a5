r"""Rejected rows as files that can be read, repaired by hand, and sent through again.

One JSON object on a line: file, row, reason, detail, and `raw`, the row as it was: its line, or a
Parquet row written as JSON. Bytes that are not UTF-8 become lone surrogates (`\udc80` and on), so
that no byte is lost.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from pipeline import durable
from pipeline import schema as s
from pipeline.events.json_lines import Reject
from pipeline.manifest import REJECTED_NAME
from pipeline.shuffle import Origin

SUFFIX: Final = ".jsonl"


def spill_rejects(path: Path, rejects: Sequence[Reject]) -> str:
    """Writes the rejects of one block, rows counted from its start; returns the path, or ''."""
    if not rejects:
        return ""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    with aside.open("w", encoding="ascii") as file:
        for reject in rejects:
            row = {
                "row": reject.row,
                "reason": reject.reason,
                "detail": reject.detail,
                "raw": reject.raw.decode(errors="surrogateescape"),
            }
            file.write(json.dumps(row) + "\n")
    aside.replace(path)
    return str(path)


def merge_rejects(folder: Path, file: str, blocks: Iterable[tuple[Origin, int, str]]) -> None:
    """Writes the rejects of one log, if there are any, to `rejected/`, rows counted from 1.

    Args:
        folder: The run's folder.
        file: The log.
        blocks: Origin, number of lines, and spilled rejects of each block of the log, in order.
    """
    lines, before = [], 0
    for _, num_lines, path in blocks:
        if path:
            for line in Path(path).read_text(encoding="ascii").splitlines():
                reject = {"file": file} | json.loads(line)
                lines.append(json.dumps(reject | {"row": before + reject["row"] + 1}))
        before += num_lines
    if lines:
        merged = folder / REJECTED_NAME / name_of_rejects(file)
        merged.parent.mkdir(parents=True, exist_ok=True)
        durable.write(merged, "\n".join(lines) + "\n", sync_folder=False)


def name_of_rejects(file: str) -> str:
    """Returns the name of the file with a log's rejects: the same in every build that reads it."""
    digest = hashlib.sha256(file.encode()).hexdigest()[:8]
    return f"{Path(file).name}-{digest}{SUFFIX}"


def read_rejects(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yields (path, reject) of a folder of rejected rows, by path and line.

    Raises:
        InputError: If there are none, or a line is none that `headrace samples` wrote.
    """
    paths = sorted(folder.rglob(f"*{SUFFIX}"))
    if not paths:
        raise s.InputError(
            f"{folder}: found no {SUFFIX} file; expected rejected rows, as `headrace samples`"
            f" leaves them in OUTPUT/{REJECTED_NAME}"
        )
    for path in paths:
        for number, line in enumerate(path.read_bytes().splitlines(), start=1):
            try:
                reject = json.loads(line)
                yield (
                    path,
                    {"file": reject["file"], "row": int(reject["row"])}
                    | {"raw": str(reject["raw"]).encode(errors="surrogateescape")},
                )
            except (ValueError, TypeError, KeyError) as error:
                raise s.InputError(
                    f"{path}: line {number}: found no rejected row ({error!r}); expected a JSON"
                    " object with file, row and raw; repair what stands in `raw`, and nothing else"
                ) from error
