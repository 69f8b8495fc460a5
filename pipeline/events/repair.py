"""Rejected rows sent through again, once they, or the specification, are repaired.

Those that are events now go to `OUTPUT.runs/repaired/`, which every later build reads beside the
logs: a day that is built again has them still. The rows of the logs that they stand for are
rejected as before, and count as repaired. A row that is repaired once more replaces itself.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa

from pipeline import durable
from pipeline import schema as s
from pipeline.days import MS_PER_DAY
from pipeline.events.json_lines import Reject, parse_json_lines
from pipeline.events.read import RawBlock
from pipeline.events.rejects import read_rejects
from pipeline.events.validate import Check, checks, count_reasons, needed_types, validate
from pipeline.specification import Specification

SOURCE_FILE: Final = "headrace_rejected_file"
SOURCE_ROW: Final = "headrace_rejected_row"


@dataclasses.dataclass(frozen=True, slots=True)
class Repair:
    """What became of a folder of rejected rows.

    Attributes:
        accepted: Rows that are events now.
        known: Rows that were repaired before, as they are now.
        rejects: Rows that still are none, by reason; they stay where they are.
        days: The days whose samples these rows, accepted now or before, may change.
    """

    accepted: int
    known: int
    rejects: dict[str, int]
    days: list[int]


def repaired_files(output: Path) -> list[Path]:
    """Returns the files of repaired rows that belong to an output, oldest first."""
    return sorted(_folder(output).glob("*.jsonl"))


def _folder(output: Path) -> Path:
    return output.with_name(f"{output.name}.runs") / "repaired"


def repair(
    folder: Path,
    output: Path,
    specification: Specification,
    *,
    window_ms: int,
    outcomes_need_features: bool,
) -> Repair:
    """Validates rejected rows again and keeps those that pass.

    Args:
        folder: Rejected rows, as `headrace samples` left them or with `raw` repaired.
        output: The samples' output.
        specification: What the rows must be now.
        window_ms: The join window: an outcome changes samples of so long before it.
        outcomes_need_features: See `pipeline.events.validate.checks`.

    Raises:
        InputError: If `folder` has no rejected rows.
    """
    found = [reject for _, reject in read_rejects(folder)]
    types = needed_types(specification)
    rules = checks(specification, outcomes_need_features=outcomes_need_features)
    events, rows, rejects = _validated([reject["raw"] for reject in found], types, rules)
    repaired = {}
    for number in rows:
        line = _with_source(found[number])
        repaired[_source(line)] = line
    former = {path: path.read_bytes().splitlines() for path in repaired_files(output)}
    known = {_source(line): line for lines in former.values() for line in lines}
    new = {source: line for source, line in repaired.items() if known.get(source) != line}
    # Some still stand there if a former command ended between its two steps.
    stays = known | new
    replaced = [each for lines in former.values() for each in lines if stays[_source(each)] != each]
    if new:
        _write(new.values(), _folder(output) / f"{_next_number(former):05d}.jsonl")
    for path, lines in former.items():
        if not set(replaced).isdisjoint(lines):
            _write([each for each in lines if stays[_source(each)] == each], path)
    days = {*_days(events, window_ms), *_days(_validated(replaced, types, rules)[0], window_ms)}
    return Repair(
        accepted=len(new),
        known=len(repaired) - len(new),
        rejects=count_reasons(rejects),
        days=sorted(days),
    )


def _validated(
    raws: Sequence[bytes], types: Mapping[str, str], rules: Sequence[Check]
) -> tuple[pa.Table, list[int], list[Reject]]:
    """Returns the events among rows, the numbers of theirs, and why the others are none."""
    lines = b"".join(_in_a_line(raw) + b"\n" for raw in raws)
    table, rows, malformed, num_lines = parse_json_lines(lines, types)
    events, rejects = validate(RawBlock(table, rows, num_lines, malformed, lines), rules)
    bad = {reject.row for reject in rejects}
    return events, [number for number in rows if number not in bad], rejects


def _with_source(reject: Mapping[str, Any]) -> bytes:
    """Returns a repaired row as it is kept, whole: a later specification may want more of it."""
    source = json.dumps({SOURCE_FILE: reject["file"], SOURCE_ROW: reject["row"]}).encode()
    # Of keys that come twice the last counts: what was repaired before still stands for its row.
    return source[:-1] + b", " + _in_a_line(reject["raw"]).lstrip()[1:]


def _in_a_line(raw: bytes) -> bytes:
    # JSON has no line break but between its tokens.
    return raw.replace(b"\n", b" ").replace(b"\r", b" ")


def _source(line: bytes) -> tuple[str, int]:
    content = json.loads(line)
    return content[SOURCE_FILE], content[SOURCE_ROW]


def _next_number(former: Iterable[Path]) -> int:
    return max((int(path.stem) for path in former), default=0) + 1


def _write(lines: Iterable[bytes], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    durable.write(path, b"".join(line + b"\n" for line in lines))


def _days(events: pa.Table, window_ms: int) -> list[int]:
    times = events[s.TIMESTAMP_MS].to_numpy()
    last = times // MS_PER_DAY
    first = (times - window_ms) // MS_PER_DAY
    spans = np.unique(np.stack([first, last], axis=1), axis=0)
    return sorted({day for start, end in spans for day in range(int(start), int(end) + 1)})


def count_repaired(files: Sequence[Path], logs: Iterable[str]) -> int:
    """Returns how many rows of some logs were rejected and are repaired."""
    wanted = set(logs)
    sources = {_source(line) for path in files for line in path.read_bytes().splitlines()}
    return sum(file in wanted for file, _ in sources)
